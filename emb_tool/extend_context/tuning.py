"""`--tune`: the added rows of a table of positions, trained on texts that need not be long."""

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
    """What the original model says: its vector of a short text, the mean of windows of a long one.

    Args:
        encoder: The original model.
        context: Lengths.
        prompt: Put before each text.
    """

    shard_texts = 256

    def __init__(self, encoder: Encoder, context: ExtensionContext, prompt: str) -> None:
        super().__init__(encoder, query_prompt=prompt, document_prompt=prompt)
        self._windows, self._prompt = WindowedEncoder(encoder, *context.span), prompt
        self._span = context.span

    def space(self, role: str) -> EmbeddingCacheKey:
        """That of the model, but for the windows."""
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
    """Train the added rows of the files in `folder` and write them; the others stay to the bit.

    Args:
        folder: The lengthened model as written; its weights are replaced.
        original: The model that it was made from, the teacher.
        context: Lengths, and the table.
        job: Texts and settings.
        state: Folder for what is needed on the way, and for a run that is taken up.
        runtime: Where.
        progress: Bar and warnings.
        dev: Tasks that choose the state [the held-out texts].

    Returns:
        Figures for the report.
    """

    def read() -> Corpus:
        kept = state / "tune-corpus"
        found = Corpus.open(kept) or Corpus.build(
            kept, job.tune, options=TextOptions.of(job), limit=job.limit, holdout=job.holdout
        )
        counts = len(found.train), len(found.heldout)
        if warning := check_parts("--tune", *counts, job.holdout):
            progress.warn(warning)
        return found

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
    runtime.reseed()  # what came before depends on whether the run was taken up
    checkpoint = Checkpoint.open(folder)
    student = PoSEStudent.open(checkpoint, runtime, training=True)
    student.start(context, job.seed)

    # decay would move rows that no gradient reaches
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
