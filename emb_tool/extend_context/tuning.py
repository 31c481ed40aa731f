"""`--tune`: the added rows of a table of positions, trained on texts that need not be long."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.data.corpus import Corpus
from emb_tool.draft import Draft
from emb_tool.encoder import Encoder
from emb_tool.evaluate.windows import Windows
from emb_tool.extend_context.base import Context
from emb_tool.extend_context.job import ExtendJob
from emb_tool.progress import Progress
from emb_tool.training.space import Space
from emb_tool.training.store import VectorStore
from emb_tool.training.targets import gather_targets
from emb_tool.training.teacher import CheckpointTeacher
from emb_tool.training.tune import Tune, tune

if TYPE_CHECKING:
    from torch import Tensor

    from emb_tool.runtime import Runtime


class Skips:
    """Positions with a gap: a text's beginning stays, the rest stands further on (PoSE).

    Tokens before a place c keep their positions, those from c on get u more, c uniform within the
    text, u uniform up to where the text would end at the target (arXiv:2309.10400, with two chunks
    of which the first begins at 0, as every text's does). Long texts stand as they are.

    Training draws from torch's own generator, whose state is saved with that of the training;
    every measuring draws the same gaps.

    Args:
        encoder: The student; what it collates is noted.
        context: Lengths, and where positions begin.
        seed: Of the gaps of a measuring.
    """

    def __init__(self, encoder: Encoder, context: Context, seed: int) -> None:
        self.context, self.seed = context, seed
        self._measured: torch.Generator | None = None
        self._lengths = torch.ones(1, dtype=torch.long)
        collate = encoder.collate

        def noted(ids: Sequence[np.ndarray], prompt_length: int = 0) -> dict[str, Any]:
            self._lengths = torch.tensor([len(row) for row in ids])
            return collate(ids, prompt_length)

        encoder.collate = noted  # type: ignore[method-assign]

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Gaps without a gradient, too, and the same ones every time."""
        self._measured = torch.Generator().manual_seed(self.seed)
        try:
            yield
        finally:
            self._measured = None

    def __call__(self, module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The position ids with gaps: a forward pre-hook of the table."""
        if not (torch.is_grad_enabled() or self._measured):
            return None
        (ids,), lengths = args, self._lengths
        first, (original, target) = self.context.positions.first, self.context.span
        draw = torch.rand(2, len(lengths), generator=self._measured, dtype=torch.float64)
        place = 1 + (draw[0] * (lengths - 1)).long()
        room = torch.where(lengths <= original, target - lengths, 0)
        gap = (draw[1] * (room + 1)).long()
        place, gap = place.to(ids.device)[:, None], gap.to(ids.device)[:, None]
        behind = torch.arange(ids.shape[-1], device=ids.device)[None] >= place
        moved = (ids + gap * behind).clamp(max=first + target - 1)
        return (torch.where(ids < first, ids.expand_as(moved), moved),)


class WindowTeacher(CheckpointTeacher):
    """What the original model says: its vector of a short text, the mean of windows of a long one.

    Args:
        encoder: The original model.
        context: Lengths.
        prompt: Put before each text.
    """

    shard_texts = 256

    def __init__(self, encoder: Encoder, context: Context, prompt: str) -> None:
        super().__init__(encoder, query_prompt=prompt, document_prompt=prompt)
        self._windows, self._prompt = Windows(encoder, *context.span), prompt
        self._span = context.span

    def space(self, role: str) -> Space:
        """That of the model, but for the windows."""
        own, (original, target) = super().space(role), self._span
        return replace(own, pooling=f"{own.pooling}+windows of {original}", max_length=target)

    def vectors(
        self, texts: Sequence[str], role: str, progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """See `Teacher.vectors`."""
        return self._windows.encode(texts, self._prompt, progress=progress)


def tune_positions(
    folder: Path,
    original: Checkpoint,
    context: Context,
    job: ExtendJob,
    state: Path,
    runtime: Runtime,
    progress: Progress,
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

    Returns:
        Figures for the report.
    """
    kept = state / "tune-corpus"
    corpus = Corpus.open(kept) or Corpus.build(
        kept, job.tune, field=job.text_field, limit=job.limit, holdout=job.holdout
    )
    teacher = Encoder.open(original, runtime)
    prompt = teacher.prompt(job.prompt_name)
    with progress.task("teacher", len(corpus), "texts") as advance:
        targets = gather_targets(
            corpus,
            WindowTeacher(teacher, context, prompt),
            VectorStore(VectorStore.default_root(), progress.warn),
            progress=advance,
        )
    del teacher
    runtime.reseed()  # what came before depends on whether the run was taken up
    checkpoint = Checkpoint.open(folder)
    student = Encoder.open(checkpoint, runtime, training=True)
    for parameter in student.model.parameters():
        parameter.requires_grad_(False)
    body = student.model[0].auto_model
    table = next(m for n, m in body.named_modules() if n.endswith("position_embeddings"))
    end = context.positions.first + context.original
    table.weight.requires_grad_(True)
    table.weight.register_hook(lambda gradient: gradient.index_fill(0, _count(end, gradient), 0))
    skips = Skips(student, context, job.seed)
    table.register_forward_pre_hook(skips)

    def encode(texts: Sequence[str]) -> np.ndarray:
        with skips.measuring():
            return student.encode(texts, prompt)

    # decay would move rows that no gradient reaches
    method = Tune(epochs=job.epochs, lr=job.lr, batch_tokens=job.batch_tokens, weight_decay=0.0)
    outcome = tune(
        student, corpus, targets, prompt, method, runtime, state / "tune", progress, encode
    )
    trained = table.weight.detach().cpu()
    draft = Draft.of(checkpoint)
    name = context.positions.table
    assert name is not None
    draft.map(name, draft.spec(name), lambda old: torch.cat([old[:end], trained[end:].to(old)]))
    tuned = state / "tuned"
    shutil.rmtree(tuned, ignore_errors=True)
    draft.write(tuned)
    for path in tuned.rglob("*.safetensors"):
        path.replace(folder / path.relative_to(tuned))
    return {
        "texts": outcome.texts,
        "parameters": trained[end:].numel(),
        "best_at": outcome.best,
        "seconds": outcome.seconds,
        "history": outcome.history,
        "resumed_at": outcome.resumed_at,
    }


def _count(rows: int, like: Tensor) -> Tensor:
    return torch.arange(rows, device=like.device)
