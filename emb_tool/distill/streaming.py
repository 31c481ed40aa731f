"""`--stream`: a student that follows a teacher through texts that pass by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emb_tool.checkpoint.files import write_atomically
from emb_tool.data.batches import Tokens
from emb_tool.data.corpus import Corpus, text_key
from emb_tool.data.shard_order import head
from emb_tool.distill.setup import Setup
from emb_tool.errors import InvalidInput

if TYPE_CHECKING:
    from emb_tool.model.encoder import Encoder
    from emb_tool.runtime.device import Runtime
    from emb_tool.training.store import VectorStore
    from emb_tool.training.streaming import StreamedTexts, StreamSource
    from emb_tool.training.teacher import Teacher

HEAD = 4096
"""Texts beside the held-out ones from which a head's starting point is solved for."""


def write_heads(setup: Setup, folder: Path) -> dict[str, list[str]]:
    """Write the first texts of each stream to a file; its name, by role."""
    job = setup.job
    heads: dict[str, list[str]] = {"document": [], "query": []}
    count = min(job.holdout + HEAD, setup.epoch_texts)
    queries = round(count * setup.query_share)
    counts = {"document": count - queries, "query": queries}
    for role, shards in setup.streams.items():
        path = folder / f"{role}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for text in head(shards, job.seed, max(1, counts[role])):
                file.write(json.dumps({"text": text}) + "\n")
        heads[role].append(str(path))
    return heads


def check_sources(setup: Setup, state: Path) -> None:
    """Note what is streamed and, in a later sitting, hold it against that.

    Raises:
        InvalidInput: Other shards: a place in a stream is one among them.
    """
    now = {role: shards.facts() for role, shards in setup.streams.items()}
    path = state / "streams.json"
    if not path.exists():
        write_atomically(path, json.dumps(now))
        return
    then = json.loads(path.read_text(encoding="utf-8"))
    for role, facts in now.items():
        shards, before = facts["shards"], then[role]["shards"]
        for name in sorted({*shards} | {*before}):
            if shards.get(name) != before.get(name):
                gone, new = name not in shards, name not in before
                raise InvalidInput(
                    f"{name}: {'is gone' if gone else 'is new' if new else 'has changed'}"
                    " since the run began, which goes on with the same files alone",
                    "put them back as they were, or start anew with --overwrite",
                )
        for name, nbytes in facts["bytes"].items():
            if nbytes != then[role]["bytes"][name]:
                setup.progress.warn(
                    f"{name} has changed since the run began; it is read on from where it was left"
                )


def streamed_batches(
    setup: Setup,
    corpus: Corpus,
    student: Encoder,
    teacher: Teacher,
    store: VectorStore,
    prompts: dict[str, str],
    runtime: Runtime,
    *,
    separate: bool,
) -> StreamedTexts:
    """Batches of a job's streamed texts; what is held out of their heads is left out of them.

    Args:
        setup: What the job names.
        corpus: The heads.
        student: Its tokenizer.
        teacher: Reads each text when it is about to be trained on.
        store: Where its vectors are kept, if --store names it.
        prompts: Of each role.
        runtime: Processes and seed.
        separate: Whether texts of two roles cannot stand in one batch.
    """
    from emb_tool.training.cached_teacher import CachedTeacher
    from emb_tool.training.streaming import StreamedTexts, StreamSource
    from emb_tool.training.targets import ROLES
    from emb_tool.training.teacher import unit

    job, method = setup.job, setup.method
    barred = {corpus.keys[index].tobytes() for index in corpus.heldout}
    dim = job.teacher_dim or teacher.dim
    cut = teacher.normalises and dim < teacher.dim
    memory = CachedTeacher(teacher, store) if job.store else None

    def source(role: str) -> StreamSource:
        def teach(texts: Sequence[str]) -> np.ndarray:
            if not texts:
                return np.zeros((0, dim), np.float32)
            vectors = (memory or teacher).vectors(texts, role)[:, :dim]
            return unit(vectors) if cut else vectors

        def tokenize(texts: Sequence[str]) -> Tokens:
            return student.tokens(texts, prompts[role])

        return StreamSource(setup.streams[role], tokenize, teach, ROLES.index(role))

    first, *others = map(source, setup.streams)
    return StreamedTexts(
        first,
        others[0] if others else None,
        setup.query_share if others else 0.0,
        separate=separate,
        memory=memory,
        wanted=lambda text: text_key(text) not in barred,
        gather=runtime.gather,
        batch_tokens=method.batch_tokens,
        epoch_texts=setup.epoch_texts,
        total=max(1, round(method.epochs * method.cycles * setup.epoch_texts)),
        seed=runtime.seed,
        buffer=job.shuffle_buffer,
        rank=runtime.rank,
        world=runtime.world,
    )
