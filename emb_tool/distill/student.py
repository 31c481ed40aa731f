"""The student of a distillation: as it starts, and as it is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.data.corpus import Corpus
from emb_tool.distill.measure import tokenize_roles
from emb_tool.distill.setup import Setup
from emb_tool.editing import CheckpointEditor

if TYPE_CHECKING:
    from emb_tool.model.encoder import Encoder
    from emb_tool.runtime.device import Runtime
    from emb_tool.training.targets import Targets

SAMPLE = 4096
"""Texts from which a head's starting point is solved for."""


def open_student(
    setup: Setup,
    corpus: Corpus,
    targets: Targets,
    prompts: dict[str, str],
    state: Path,
    runtime: Runtime,
) -> Encoder:
    """The student before training: body, head, and the head's starting point.

    Args:
        setup: What the job names.
        corpus: The texts; the head is fitted to some of them.
        targets: What the teacher says of them.
        prompts: Of each role.
        state: Folder for the body, where layers are cut out of it.
        runtime: Where it is trained.
    """
    from emb_tool.model.encoder import Encoder
    from emb_tool.training.student import attach_head, fit_head, start_from_scratch

    job, method, body = setup.job, setup.method, setup.body
    if setup.keep is not None:
        runtime.on_main(lambda: _cut(setup, state))
        body = Checkpoint.open(_cut(setup, state))
    runtime.reseed()  # what came before depends on whether the run was taken up
    encoder = Encoder.open(body, runtime, max_length=method.max_length, training=True)
    if job.from_scratch:
        start_from_scratch(encoder)
    like = (setup.teacher or body).layout
    student = attach_head(
        encoder,
        targets.dim,
        targets.normalises,
        getattr(method, "head", "auto"),
        getattr(method, "bias", True),
        {**like.prompts, **prompts},
        like,
    )
    sample = corpus.train[:: max(1, len(corpus.train) // SAMPLE)][:SAMPLE]
    ids = tokenize_roles(student, corpus, sample, prompts).ids
    fit_head(student, ids, targets.read(sample))
    return student


def _cut(setup: Setup, state: Path) -> Path:
    """The student's body with the layers that it keeps, on disk."""
    cut, half = state / "body", state / "body.new"
    if not cut.exists():
        assert setup.keep is not None
        shutil.rmtree(half, ignore_errors=True)
        draft = CheckpointEditor.of(setup.body)
        draft.keep_layers(setup.keep)
        draft.write(half)
        half.rename(cut)
    return cut


def write_student(
    setup: Setup,
    student: Encoder,
    corpus: Corpus,
    targets: Targets,
    prompts: dict[str, str],
    folder: Path,
    state: Path,
) -> None:
    """The student's files in `folder`, and in `state` the held-out texts that it is measured on."""
    from emb_tool.training.student import checkpoint_dtype, write_router

    student.save(folder, checkpoint_dtype(setup.body))
    if setup.job.router and setup.teacher is not None:
        write_router(folder, setup.teacher, folder / "router", targets.dim)
    heldout = np.asarray(corpus.heldout)
    np.save(state / "heldout.npy", targets.read(heldout))
    with open(state / "heldout.jsonl", "w", encoding="utf-8") as file:
        for index in heldout:
            role = "query" if corpus.roles[index] else "document"
            line = {"text": corpus[int(index)], "prompt": prompts[role]}
            file.write(json.dumps(line) + "\n")
