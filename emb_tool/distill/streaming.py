"""`--stream`: training on streamed texts."""

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

HEAD_TEXTS = 4096
"""Texts, in addition to the held-out ones, from which the student's head is initialized."""


def write_heads(setup: Setup, folder: Path) -> dict[str, list[str]]:
    """Write the first texts of each stream to a file; returns the files by role."""
    job = setup.job
    heads: dict[str, list[str]] = {"document": [], "query": []}
    count = min(job.holdout + HEAD_TEXTS, setup.epoch_texts)
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
    """Save which files are streamed and, on resume, check that they are unchanged.

    Raises:
        InvalidInput: The shards have changed, on which positions in the stream depend.
    """
    current = {role: shards.facts() for role, shards in setup.streams.items()}
    path = state / "streams.json"
    if not path.exists():
        write_atomically(path, json.dumps(current))
        return
    saved = json.loads(path.read_text(encoding="utf-8"))
    for role, facts in current.items():
        shards, before = facts["shards"], saved[role]["shards"]
        for name in sorted({*shards} | {*before}):
            if shards.get(name) != before.get(name):
                change = "has changed"
                if name not in shards or name not in before:
                    change = "is new" if name in shards else "is missing"
                raise InvalidInput(
                    f"{name}: {change} since the run started, which can only continue with the same"
                    " files",
                    "restore the files, or start again with --overwrite",
                )
        for name, nbytes in facts["bytes"].items():
            if nbytes != saved[role]["bytes"][name]:
                setup.progress.warn(
                    f"{name} has changed since the run started; reading continues at the old"
                    " position"
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
    """Batches of a job's streamed texts, without the held-out texts.

    Args:
        setup: The inputs of the job.
        corpus: The first texts of the streams, with the held-out texts.
        student: Provides the tokenizer.
        teacher: Encodes each text when it is used.
        store: Store of its vectors, used with --store.
        prompts: Prompt of each role.
        runtime: Processes and seed.
        separate: Whether texts of two roles cannot be in the same batch.
    """
    from emb_tool.training.cached_teacher import CachedTeacher
    from emb_tool.training.streaming import StreamedTexts, StreamSource
    from emb_tool.training.targets import ROLES
    from emb_tool.training.teacher import unit

    job, method = setup.job, setup.method
    excluded = {corpus.keys[index].tobytes() for index in corpus.heldout}
    dim = job.teacher_dim or teacher.dim
    renormalize = teacher.normalizes and dim < teacher.dim
    cache = CachedTeacher(teacher, store) if job.store else None

    def source(role: str) -> StreamSource:
        def encode_targets(texts: Sequence[str]) -> np.ndarray:
            if not texts:
                return np.zeros((0, dim), np.float32)
            vectors = (cache or teacher).vectors(texts, role)[:, :dim]
            return unit(vectors) if renormalize else vectors

        def tokenize(texts: Sequence[str]) -> Tokens:
            return student.tokens(texts, prompts[role])

        return StreamSource(setup.streams[role], tokenize, encode_targets, ROLES.index(role))

    first, *others = map(source, setup.streams)
    return StreamedTexts(
        first,
        others[0] if others else None,
        setup.query_share if others else 0.0,
        separate=separate,
        teacher_cache=cache,
        include=lambda text: text_key(text) not in excluded,
        gather=runtime.gather,
        batch_tokens=method.batch_tokens,
        epoch_texts=setup.epoch_texts,
        total=max(1, round(method.epochs * method.cycles * setup.epoch_texts)),
        seed=runtime.seed,
        buffer=job.shuffle_buffer,
        rank=runtime.rank,
        world=runtime.world,
    )
