"""`--tune`: finetune the float parameters of a packed model to reproduce the input's vectors."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.job import CompressJob
from emb_tool.compress.text_splits import split_heldout
from emb_tool.data.corpus import Corpus, check_parts
from emb_tool.data.text_options import TextOptions
from emb_tool.editing import CheckpointEditor, LazyTensor
from emb_tool.evaluate.task import Task
from emb_tool.progress import Progress
from emb_tool.training.store import VectorStore

if TYPE_CHECKING:
    import torch

    from emb_tool.model.encoder import Encoder
    from emb_tool.runtime.device import Runtime

TEACHER = "teacher"
"""Folder of the teacher, if steps change its vectors."""


def write_teacher(shaped: CheckpointEditor, state: Path) -> None:
    """Write the teacher, unless it is the input itself.

    Args:
        shaped: The input after the steps of the stage `vectors`.
        state: Folder for intermediate files.
    """
    if shaped.history:
        shutil.rmtree(state / TEACHER, ignore_errors=True)
        (state / TEACHER).mkdir()
        shaped.write(state / TEACHER)


def tune_files(
    folder: Path,
    body: Checkpoint,
    job: CompressJob,
    state: Path,
    runtime: Runtime,
    progress: Progress,
    dev: Sequence[Task] = (),
) -> dict[str, Any]:
    """Train scales, codebooks, norms, biases and Dense modules; codes are fixed.

    Args:
        folder: The written checkpoint; its weight files are replaced.
        body: The input, which is the teacher unless `write_teacher` wrote one.
        job: Texts and settings.
        state: Folder for intermediate files and for resuming.
        runtime: Device, dtype and processes.
        progress: Progress bars and warnings.
        dev: Tasks that select the state [the held-out texts].

    Returns:
        Figures for the report.
    """
    from emb_tool.model.encoder import Encoder
    from emb_tool.packed.base import Packed
    from emb_tool.training.finetune import FinetuneJob, tune
    from emb_tool.training.targets import gather_targets
    from emb_tool.training.teacher import CheckpointTeacher

    def check() -> None:
        corpus = _corpus(job, state)
        counts = len(corpus.train), len(corpus.heldout)
        if warning := check_parts("--tune", *counts, job.holdout):
            progress.warn(warning)

    runtime.on_main(check)
    corpus = _corpus(job, state)
    corpus.tell(progress.note)
    runtime.reseed()  # earlier random numbers depend on whether the run was resumed
    source = state / TEACHER
    teacher = Encoder.open(Checkpoint.open(source) if source.is_dir() else body, runtime)
    prompt = teacher.prompt(job.prompt_name)
    with progress.task("encoding by the teacher", len(corpus), "texts") as advance:
        targets = gather_targets(
            corpus,
            CheckpointTeacher(teacher, query_prompt=prompt, document_prompt=prompt),
            VectorStore(VectorStore.default_root(), progress.warn),
            progress=advance,
            skip=advance.skip,
            rank=runtime.rank,
            world=runtime.world,
        )
    del teacher
    checkpoint = Checkpoint.open(folder)
    student = Encoder.open(checkpoint, runtime, training=True)
    for parameter in student.model.parameters():
        parameter.requires_grad_(parameter.ndim <= 1)
    for head in list(student.model)[1:]:  # they are small
        head.requires_grad_(True)
    packed = [module for module in student.model.modules() if isinstance(module, Packed)]
    for module in packed:
        module.unlock()
    trained = sum(p.numel() for p in student.model.parameters() if p.requires_grad)
    method = FinetuneJob(epochs=job.epochs, lr=job.lr, batch_tokens=job.batch_tokens)
    outcome = tune(
        student, corpus, targets, prompt, method, runtime, state / "tune", progress, dev=dev
    )
    for module in packed:
        module.lock()

    def replace_files() -> None:
        tuned = state / "tuned"
        shutil.rmtree(tuned, ignore_errors=True)
        tuned.mkdir()
        load_state_into_draft(CheckpointEditor.of(checkpoint), student).write(tuned)
        for path in tuned.rglob("*.safetensors"):
            path.replace(folder / path.relative_to(tuned))

    runtime.on_main(replace_files)
    return {
        "texts": outcome.texts,
        "parameters": trained,
        "best_at": outcome.best,
        "choice": outcome.choice(),
        "history": outcome.history,
        "resumed_at": outcome.resumed_at,
    }


def _corpus(job: CompressJob, state: Path) -> Corpus:
    """The texts to finetune on, without those that the result is measured on."""
    folder = state / "tune-corpus"
    corpus = Corpus.open(folder) or Corpus.build(
        folder, job.tune, options=TextOptions.of(job), limit=job.limit, holdout=job.holdout
    )
    measured = Corpus.open(state / "corpus")
    if measured is not None:
        report, _ = split_heldout(measured)
        excluded = {measured.keys[i].tobytes() for i in report}
        corpus.train, corpus.heldout = (
            np.array([i for i in part if corpus.keys[i].tobytes() not in excluded], part.dtype)
            for part in (corpus.train, corpus.heldout)
        )
    return corpus


def load_state_into_draft(draft: CheckpointEditor, encoder: Encoder) -> CheckpointEditor:
    """A draft with the tensors of a model in memory, in the dtypes of the files."""
    transformer = encoder.model[0]
    model = getattr(transformer, "auto_model", transformer)
    base = f"{getattr(model, 'base_model_prefix', '')}."
    state = model.state_dict()
    for name, lazy in draft.tensors.items():
        modern = re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))
        key = next((n for n in (name, modern, modern.removeprefix(base)) if n in state), None)
        if key is not None:
            draft.tensors[name] = _with_value(lazy, state[key])
    for module, spec in zip(list(encoder.model)[1:], draft.layout.modules[1:], strict=True):
        module_state = module.state_dict()
        for name, lazy in draft.modules.get(spec.path, {}).items():
            draft.modules[spec.path][name] = _with_value(lazy, module_state[name])
    return draft


def _with_value(lazy: LazyTensor, value: torch.Tensor) -> LazyTensor:
    from emb_tool.editing import torch_dtype

    dtype = torch_dtype(lazy.spec.dtype)
    tensor = value.detach().cpu().to(dtype)
    return lazy._replace(load=lambda: tensor)
