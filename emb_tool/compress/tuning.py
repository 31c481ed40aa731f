"""`--tune`: what a packed model has of floats, trained towards the vectors of its input."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.job import CompressJob
from emb_tool.data.corpus import Corpus
from emb_tool.draft import Draft, Lazy
from emb_tool.progress import Progress
from emb_tool.training.store import VectorStore

if TYPE_CHECKING:
    import torch

    from emb_tool.encoder import Encoder
    from emb_tool.runtime import Runtime


def tune_files(
    folder: Path, shaped: Draft, job: CompressJob, state: Path, runtime: Runtime, progress: Progress
) -> dict[str, Any]:
    """Train scales, codebooks, norms, biases and Dense modules; the matrices keep their codes.

    Args:
        folder: The files as written; replaced.
        shaped: The input after the steps that shape vectors: the teacher.
        job: Texts and settings.
        state: Folder for what is needed on the way.
        runtime: Where.
        progress: Bar and warnings.

    Returns:
        Figures for the report.
    """
    from emb_tool.encoder import Encoder
    from emb_tool.packed.base import Packed
    from emb_tool.training.targets import gather_targets
    from emb_tool.training.teacher import CheckpointTeacher
    from emb_tool.training.tune import Tune, tune

    corpus = Corpus.build(
        state / "tune-corpus", job.tune, field=job.text_field, limit=job.limit, holdout=job.holdout
    )
    source = shaped.checkpoint
    if shaped.history:
        source = _written(shaped, state / "teacher")
    teacher = Encoder.open(source, runtime)
    prompt = teacher.prompt(job.prompt_name)
    with progress.task("teacher", len(corpus), "texts") as advance:
        targets = gather_targets(
            corpus,
            CheckpointTeacher(teacher, query_prompt=prompt, document_prompt=prompt),
            VectorStore(VectorStore.default_root(), progress.warn),
            progress=advance,
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
    method = Tune(epochs=job.epochs, lr=job.lr, batch_tokens=job.batch_tokens)
    outcome = tune(student, corpus, targets, prompt, method, runtime, state / "tune", progress)
    for module in packed:
        module.lock()
    tuned = state / "tuned"
    take(Draft.of(checkpoint), student).write(tuned)
    for path in tuned.rglob("*.safetensors"):
        path.replace(folder / path.relative_to(tuned))
    shutil.rmtree(tuned)
    return {
        "texts": outcome.texts,
        "parameters": trained,
        "best_at": outcome.best,
        "history": outcome.history,
    }


def take(draft: Draft, encoder: Encoder) -> Draft:
    """A draft whose tensors are those of a model in memory, in the dtypes of the files."""
    body = encoder.model[0]
    model = getattr(body, "auto_model", body)
    base = f"{getattr(model, 'base_model_prefix', '')}."
    state = model.state_dict()
    for name, lazy in draft.tensors.items():
        plain = re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))
        found = next((n for n in (name, plain, plain.removeprefix(base)) if n in state), None)
        if found is not None:
            draft.tensors[name] = _of(lazy, state[found])
    for module, spec in zip(list(encoder.model)[1:], draft.layout.modules[1:], strict=True):
        held = module.state_dict()
        for name, lazy in draft.modules.get(spec.path, {}).items():
            draft.modules[spec.path][name] = _of(lazy, held[name])
    return draft


def _of(lazy: Lazy, value: torch.Tensor) -> Lazy:
    from emb_tool.draft import torch_dtype

    dtype = torch_dtype(lazy.spec.dtype)
    held = value.detach().cpu().to(dtype)
    return lazy._replace(load=lambda: held)


def _written(draft: Draft, folder: Path) -> Checkpoint:
    folder.mkdir(parents=True)
    draft.write(folder)
    return Checkpoint.open(folder)
