"""`--tune`: trains the added rows of a position table on texts of any length."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.data.corpus import Corpus, check_parts
from emb_tool.data.text_options import TextOptions
from emb_tool.editing import CheckpointEditor
from emb_tool.evaluate.length_baselines import WindowedEncoder
from emb_tool.evaluate.task import Task
from emb_tool.extend_context.base import ExtensionContext
from emb_tool.extend_context.job import ExtendJob
from emb_tool.extend_context.pose import PoSEStudent
from emb_tool.model.encoder import Encoder
from emb_tool.progress import Progress
from emb_tool.training.embedding_cache import EmbeddingCacheKey
from emb_tool.training.finetune import FinetuneJob, tune
from emb_tool.training.store import VectorStore
from emb_tool.training.targets import gather_targets
from emb_tool.training.teacher import CheckpointTeacher

if TYPE_CHECKING:
    from emb_tool.runtime.device import Runtime


class WindowTeacher(CheckpointTeacher):
    """The original model as teacher: vectors of short texts, means over windows of long ones.

    Args:
        encoder: The original model.
        context: Original and target length.
        prompt: Prefix of each text.
    """

    shard_texts = 256

    def __init__(self, encoder: Encoder, context: ExtensionContext, prompt: str) -> None:
        super().__init__(encoder, query_prompt=prompt, document_prompt=prompt)
        self._windows, self._prompt = WindowedEncoder(encoder, *context.span), prompt
        self._span = context.span

    def space(self, role: str) -> EmbeddingCacheKey:
        """Cache key of the model's vectors, with the windows."""
        own, (original, target) = super().space(role), self._span
        return replace(own, pooling=f"{own.pooling}+even windows of {original}", max_length=target)

    def vectors(
        self, texts: Sequence[str], role: str, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """See `Teacher.vectors`."""
        return self._windows.encode(texts, self._prompt, progress=progress)


def tune_positions(
    folder: Path,
    original: Checkpoint,
    context: ExtensionContext,
    job: ExtendJob,
    state: Path,
    runtime: Runtime,
    progress: Progress,
    dev: Sequence[Task] = (),
) -> dict[str, Any]:
    """Train the added rows of the files in `folder` and write them; other rows do not change.

    Args:
        folder: The written extended model; its weights are replaced.
        original: The original model, the teacher.
        context: Lengths and positions.
        job: Texts and settings.
        state: Folder for the state of the run.
        runtime: Device and processes.
        progress: Receives progress and warnings.
        dev: Tasks that select the best state [the held-out texts].

    Returns:
        Facts for the report.
    """

    def read() -> Corpus:
        folder_of_corpus = state / "tune-corpus"
        opened = Corpus.open(folder_of_corpus) or Corpus.build(
            folder_of_corpus,
            job.tune,
            options=TextOptions.of(job),
            limit=job.limit,
            holdout=job.holdout,
        )
        counts = len(opened.train), len(opened.heldout)
        if warning := check_parts("--tune", *counts, job.holdout):
            progress.warn(warning)
        return opened

    runtime.on_main(read)
    corpus = read()
    corpus.tell(progress.note)
    teacher = Encoder.open(original, runtime)
    prompt = teacher.prompt(job.prompt_name)
    with progress.task("encoding by the teacher", len(corpus), "texts") as advance:
        targets = gather_targets(
            corpus,
            WindowTeacher(teacher, context, prompt),
            VectorStore(VectorStore.default_root(), progress.warn),
            progress=advance,
            skip=advance.skip,
            rank=runtime.rank,
            world=runtime.world,
        )
    del teacher
    runtime.reseed()  # random numbers drawn before depend on whether the run was resumed
    checkpoint = Checkpoint.open(folder)
    student = PoSEStudent.open(checkpoint, runtime, training=True)
    student.start(context, job.seed)

    # weight decay would change rows without gradients
    method = FinetuneJob(
        epochs=job.epochs, lr=job.lr, batch_tokens=job.batch_tokens, weight_decay=0.0
    )
    outcome = tune(
        student, corpus, targets, prompt, method, runtime, state / "tune", progress, dev=dev,
        encode=lambda texts: student.encode_with_gaps(texts, prompt),
        on_step=student.begin_step,
    )  # fmt: skip
    trained = student.table.weight.detach().cpu()
    end = context.positions.first + context.original
    name = context.positions.table
    assert name is not None

    def replace_files() -> None:
        draft = CheckpointEditor.of(checkpoint)
        draft.map(name, draft.spec(name), lambda old: trained.to(old))
        tuned = state / "tuned"
        shutil.rmtree(tuned, ignore_errors=True)
        draft.write(tuned)
        for path in tuned.rglob("*.safetensors"):
            path.replace(folder / path.relative_to(tuned))

    runtime.on_main(replace_files)
    return {
        "texts": outcome.texts,
        "parameters": trained[end:].numel(),
        "best_at": outcome.best,
        "choice": outcome.choice(),
        "seconds": outcome.seconds,
        "history": outcome.history,
        "resumed_at": outcome.resumed_at,
    }
