"""`--tune`: the added rows of a table of positions, trained on texts that need not be long."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
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
from emb_tool.training.tune import Tune, tune

if TYPE_CHECKING:
    from torch import Tensor

    from emb_tool.runtime import Runtime


class Skips:
    """Positions with a gap: a text's beginning stays, the rest stands further on (PoSE).

    Tokens before a place c keep their positions, those from c on get u more, c uniform within the
    text, u uniform up to where the text would end at the target (arXiv:2309.10400, with two chunks
    of which the first begins at 0, as every text's does). Long texts stand as they are.

    Args:
        encoder: The student; what it collates is noted.
        context: Lengths, and where positions begin.
        seed: Decides the places.
    """

    def __init__(self, encoder: Encoder, context: Context, seed: int) -> None:
        self.context, self.seed = context, seed
        self.measuring = False
        self._lengths = torch.ones(1, dtype=torch.long)
        self._draw = torch.Generator().manual_seed(seed)
        collate = encoder.collate

        def noted(ids: Sequence[np.ndarray], prompt_length: int = 0) -> dict[str, Any]:
            self._lengths = torch.tensor([len(row) for row in ids])
            return collate(ids, prompt_length)

        encoder.collate = noted  # type: ignore[method-assign]

    def begin_measuring(self) -> Tensor:
        """From here on the same gaps as in every measuring; returns what `end_measuring` takes."""
        state = self._draw.get_state()
        self._draw.manual_seed(self.seed + 1)
        self.measuring = True
        return state

    def end_measuring(self, state: Tensor) -> None:
        """Go on drawing where training was."""
        self._draw.set_state(state)
        self.measuring = False

    def __call__(self, module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The position ids with gaps: a forward pre-hook of the table."""
        if not (torch.is_grad_enabled() or self.measuring):
            return None
        (ids,), lengths = args, self._lengths
        first, (original, target) = self.context.positions.first, self.context.span
        draw = torch.rand(2, len(lengths), generator=self._draw, dtype=torch.float64)
        place = 1 + (draw[0] * (lengths - 1)).long()
        room = torch.where(lengths <= original, target - lengths, 0)
        gap = (draw[1] * (room + 1)).long()
        place, gap = place.to(ids.device)[:, None], gap.to(ids.device)[:, None]
        behind = torch.arange(ids.shape[-1], device=ids.device)[None] >= place
        moved = (ids + gap * behind).clamp(max=first + target - 1)
        return (torch.where(ids < first, ids.expand_as(moved), moved),)


class WindowTargets:
    """What the original model says: its vector of a short text, the mean of windows of a long one.

    Args:
        vectors: (texts, dim) float32, in a file.
        normalises: Whether they have norm 1.
    """

    def __init__(self, vectors: np.ndarray, normalises: bool) -> None:
        self.vectors, self.normalises = vectors, normalises
        self.dim = int(vectors.shape[1])

    def read(self, indices: np.ndarray) -> np.ndarray:
        """(k, dim) vectors of texts."""
        return np.asarray(self.vectors[indices])


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
        state: Folder for what is needed on the way.
        runtime: Where.
        progress: Bar and warnings.

    Returns:
        Figures for the report.
    """
    corpus = Corpus.build(
        state / "tune-corpus", job.tune, field=job.text_field, limit=job.limit, holdout=job.holdout
    )
    teacher = Encoder.open(original, runtime)
    prompt = teacher.prompt(job.prompt_name)
    targets = _targets(corpus, teacher, prompt, context, state, progress)
    del teacher
    checkpoint = Checkpoint.open(folder)
    student = Encoder.open(checkpoint, runtime, training=True)
    for parameter in student.model.parameters():
        parameter.requires_grad_(False)
    body = student.model[0].auto_model
    table = next(m for n, m in body.named_modules() if n.endswith("position_embeddings"))
    kept = context.positions.first + context.original
    table.weight.requires_grad_(True)
    table.weight.register_hook(lambda gradient: gradient.index_fill(0, _count(kept, gradient), 0))
    skips = Skips(student, context, job.seed)
    table.register_forward_pre_hook(skips)

    def encode(texts: Sequence[str]) -> np.ndarray:
        resumed = skips.begin_measuring()
        vectors = student.encode(texts, prompt)
        skips.end_measuring(resumed)
        return vectors

    # decay would move rows that no gradient reaches
    method = Tune(epochs=job.epochs, lr=job.lr, batch_tokens=job.batch_tokens, weight_decay=0.0)
    outcome = tune(
        student, corpus, targets, prompt, method, runtime, state / "tune", progress, encode
    )
    trained = table.weight.detach().cpu()
    draft = Draft.of(checkpoint)
    name = context.positions.table
    assert name is not None
    draft.map(name, draft.spec(name), lambda old: torch.cat([old[:kept], trained[kept:].to(old)]))
    tuned = state / "tuned"
    draft.write(tuned)
    for path in tuned.rglob("*.safetensors"):
        path.replace(folder / path.relative_to(tuned))
    shutil.rmtree(tuned)
    return {
        "texts": outcome.texts,
        "parameters": trained[kept:].numel(),
        "best_at": outcome.best,
        "seconds": outcome.seconds,
        "history": outcome.history,
    }


def _count(rows: int, like: Tensor) -> Tensor:
    return torch.arange(rows, device=like.device)


def _targets(
    corpus: Corpus, teacher: Encoder, prompt: str, context: Context, state: Path, progress: Progress
) -> WindowTargets:
    """The teacher's vectors of a corpus, kept in a file."""
    windows = Windows(teacher, *context.span)
    made = np.lib.format.open_memmap(
        state / "targets.npy", "w+", np.float32, (len(corpus), teacher.dim)
    )
    with progress.task("teacher", len(corpus), "texts") as advance:
        for start in range(0, len(corpus), 1024):
            texts = corpus.texts(range(start, min(start + 1024, len(corpus))))
            made[start : start + len(texts)] = windows.encode(texts, prompt, progress=advance)
    return WindowTargets(made, teacher.normalises)
