"""`--stream`: a student that follows a teacher through texts that pass by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emb_tool.data.corpus import Corpus, text_key
from emb_tool.data.streams import Shards
from emb_tool.distill.job import DistillJob
from emb_tool.distill.setup import Setup

if TYPE_CHECKING:
    from emb_tool.encoder import Encoder
    from emb_tool.runtime import Runtime
    from emb_tool.training.streamed import StreamedTexts
    from emb_tool.training.teacher import Teacher

HEAD = 4096
"""Texts beside the held-out ones from which a head's starting point is solved for."""


def write_head(shards: Shards, path: Path, job: DistillJob) -> str:
    """Write the first texts of a stream to a file; its name."""
    from emb_tool.training.streamed import head

    count = min(job.holdout + HEAD, job.limit or job.holdout + HEAD)
    with path.open("w", encoding="utf-8") as file:
        for text in head(shards, job.seed, count):
            file.write(json.dumps({"text": text}) + "\n")
    return str(path)


def follow(
    setup: Setup,
    corpus: Corpus,
    student: Encoder,
    teacher: Teacher,
    prompts: dict[str, str],
    runtime: Runtime,
) -> StreamedTexts:
    """Batches of a job's streamed texts; what is held out of their head is left out of them.

    Args:
        setup: What the job names.
        corpus: The head.
        student: Its tokenizer.
        teacher: Reads each text when it is about to be trained on.
        prompts: Of each role.
        runtime: Processes and seed.
    """
    from emb_tool.training.streamed import StreamedTexts
    from emb_tool.training.teacher import unit

    job, method = setup.job, setup.method
    barred = {corpus.keys[index].tobytes() for index in corpus.heldout}
    dim = job.teacher_dim or teacher.dim
    cut = teacher.normalises and dim < teacher.dim

    def teach(texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros((0, dim), np.float32)
        vectors = teacher.vectors(texts, "document")[:, :dim]
        return unit(vectors) if cut else vectors

    return StreamedTexts(
        setup.shards,
        lambda texts: student.tokenize(texts, prompts["document"]),
        teach,
        wanted=lambda text: text_key(text) not in barred,
        gather=runtime.gather,
        batch_tokens=method.batch_tokens,
        epoch_texts=setup.epoch_texts,
        total=max(1, round(method.epochs * method.cycles * setup.epoch_texts)),
        seed=runtime.seed,
        buffer=job.buffer,
        rank=runtime.rank,
        world=runtime.world,
    )
