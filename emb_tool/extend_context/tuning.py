"""`--tune`: the added rows of a table of positions, trained on texts that need not be long."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.data.corpus import Corpus, check_parts
from emb_tool.data.text_options import TextOptions
from emb_tool.editing import CheckpointEditor
from emb_tool.evaluate.length_baselines import WindowedEncoder
from emb_tool.evaluate.sharded_encoding import encode_together
from emb_tool.evaluate.task import Task
from emb_tool.extend_context.base import ExtensionContext
from emb_tool.extend_context.job import ExtendJob
from emb_tool.model.encoder import Encoder
from emb_tool.progress import Progress
from emb_tool.training.finetune import FinetuneJob, tune
from emb_tool.training.store import VectorStore
from emb_tool.training.targets import gather_targets
from emb_tool.training.teacher import CheckpointTeacher
from emb_tool.training.vector_space import EmbeddingCacheKey

if TYPE_CHECKING:
    from torch import Tensor

    from emb_tool.runtime.device import Runtime
    from emb_tool.training.loop import Trainer


class PoSEPositions:
    """Positions with a gap: a text's beginning stays, the rest stands further on (PoSE).

    Tokens before a place c keep their positions, those from c on get u more, c uniform within the
    text, u uniform up to where the text would end at the target (arXiv:2309.10400, with two chunks
    of which the first begins at 0, as every text's does). Long texts stand as they are.

    A draw hangs on the text, the step and the seed alone, not on what stands beside it in a batch,
    a process or a sitting; every measuring draws the same gaps.

    Args:
        encoder: The student; what it collates is noted.
        context: Lengths, and where positions begin.
        seed: Of the gaps.

    Attributes:
        step: The step that training is at.
    """

    def __init__(self, encoder: Encoder, context: ExtensionContext, seed: int) -> None:
        self.context, self.seed = context, seed
        self.step: Callable[[], int] = lambda: 0
        self._measured = False
        self._ids: Sequence[np.ndarray] = ()
        collate = encoder.collate

        def noted(ids: Sequence[np.ndarray], *more: int) -> dict[str, Any]:
            self._ids = ids
            return collate(ids, *more)

        encoder.collate = noted  # type: ignore[method-assign, assignment]

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Gaps without a gradient, too, and the same ones every time."""
        self._measured = True
        try:
            yield
        finally:
            self._measured = False

    def _draws(self) -> Tensor:
        """Two numbers in [0, 1) for each text of the batch, (2, batch) float64."""
        key = struct.pack("<qq", self.seed, -1 if self._measured else self.step())
        found = [blake2b(row.tobytes(), digest_size=16, key=key).digest() for row in self._ids]
        numbers = np.frombuffer(b"".join(found), "<u8") >> np.uint64(11)
        return torch.from_numpy(numbers.reshape(-1, 2).T * 2.0**-53)

    def __call__(self, module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """The position ids with gaps: a forward pre-hook of the table."""
        if not (torch.is_grad_enabled() or self._measured):
            return None
        (ids,), lengths = args, torch.tensor([len(row) for row in self._ids])
        first, (original, target) = self.context.positions.first, self.context.span
        draw = self._draws()
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
    student = Encoder.open(checkpoint, runtime, training=True)
    for parameter in student.model.parameters():
        parameter.requires_grad_(False)
    body = student.model[0].auto_model
    table = next(m for n, m in body.named_modules() if n.endswith("position_embeddings"))
    end = context.positions.first + context.original
    table.weight.requires_grad_(True)
    table.weight.register_hook(lambda gradient: gradient.index_fill(0, _count(end, gradient), 0))
    skips = PoSEPositions(student, context, job.seed)
    table.register_forward_pre_hook(skips)

    def encode(texts: Sequence[str]) -> np.ndarray:
        with skips.measuring():
            return encode_together(student, texts, prompt)

    def watch(trainer: Trainer) -> None:
        skips.step = lambda: trainer.outcome.steps

    # decay would move rows that no gradient reaches
    method = FinetuneJob(
        epochs=job.epochs, lr=job.lr, batch_tokens=job.batch_tokens, weight_decay=0.0
    )
    outcome = tune(
        student, corpus, targets, prompt, method, runtime, state / "tune", progress, encode, watch,
        dev,
    )  # fmt: skip
    trained = table.weight.detach().cpu()
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


def _count(rows: int, like: Tensor) -> Tensor:
    return torch.arange(rows, device=like.device)
