"""The student of a distillation: initialization and files."""

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

SAMPLE_SIZE = 4096
"""Number of texts from which the head is initialized."""


def open_student(
    setup: Setup,
    corpus: Corpus,
    targets: Targets,
    prompts: dict[str, str],
    state: Path,
    runtime: Runtime,
) -> Encoder:
    """The student before training: backbone, and head with its initialization.

    Args:
        setup: The inputs of the job.
        corpus: The texts; the head is fitted to a sample of them.
        targets: Their target vectors.
        prompts: Prompt of each role.
        state: Folder for the backbone if layers are removed.
        runtime: Device and processes.
    """
    from emb_tool.model.encoder import Encoder
    from emb_tool.training.student import attach_head, fit_head, reinitialize

    job, method, backbone = setup.job, setup.method, setup.backbone
    if setup.keep is not None:
        runtime.on_main(lambda: _write_backbone(setup, state))
        backbone = Checkpoint.open(_write_backbone(setup, state))
    runtime.reseed()  # random numbers drawn before depend on whether the run was resumed
    encoder = Encoder.open(backbone, runtime, max_length=method.max_length, training=True)
    if job.from_scratch:
        reinitialize(encoder)
    teacher_layout = (setup.teacher or backbone).layout
    student = attach_head(
        encoder,
        targets.dim,
        targets.normalizes,
        getattr(method, "head", "auto"),
        getattr(method, "bias", True),
        {**teacher_layout.prompts, **prompts},
        teacher_layout,
    )
    sample = corpus.train[:: max(1, len(corpus.train) // SAMPLE_SIZE)][:SAMPLE_SIZE]
    ids = tokenize_roles(student, corpus, sample, prompts).ids
    fit_head(student, ids, targets.read(sample))
    return student


def _write_backbone(setup: Setup, state: Path) -> Path:
    """Write the backbone with the selected layers; returns its folder."""
    folder, temporary = state / "body", state / "body.new"
    if not folder.exists():
        assert setup.keep is not None
        shutil.rmtree(temporary, ignore_errors=True)
        draft = CheckpointEditor.of(setup.backbone)
        draft.keep_layers(setup.keep)
        draft.write(temporary)
        temporary.rename(folder)
    return folder


def write_student(
    setup: Setup,
    student: Encoder,
    corpus: Corpus,
    targets: Targets,
    prompts: dict[str, str],
    folder: Path,
    state: Path,
) -> None:
    """Write the student to `folder`, and the held-out texts for the check to `state`."""
    from emb_tool.training.student import checkpoint_dtype, write_router

    student.save(folder, checkpoint_dtype(setup.backbone))
    if setup.job.router and setup.teacher is not None:
        write_router(folder, setup.teacher, folder / "router", targets.dim)
    heldout = np.asarray(corpus.heldout)
    np.save(state / "heldout.npy", targets.read(heldout))
    with open(state / "heldout.jsonl", "w", encoding="utf-8") as file:
        for index in heldout:
            role = "query" if corpus.roles[index] else "document"
            line = {"text": corpus[int(index)], "prompt": prompts[role]}
            file.write(json.dumps(line) + "\n")
