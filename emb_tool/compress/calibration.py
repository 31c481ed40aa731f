"""What a step may look at while it works: texts, their vectors, how often each token occurs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emb_tool.checkpoint.result_cache import Result, ResultCache
from emb_tool.errors import InvalidInput
from emb_tool.progress import Progress

if TYPE_CHECKING:
    from emb_tool.editing import CheckpointEditor
    from emb_tool.model.encoder import Encoder
    from emb_tool.runtime.device import Runtime

MAX_SAMPLE_TEXTS = 4096
"""Texts that are encoded at most; tokens are counted in all."""

PIECE = 1024
"""Texts whose vectors are kept together for a run that is taken up."""


class CalibrationContext:
    """The texts of a calibration, and the model run on them as the steps so far have made it.

    Args:
        texts: Calibration texts; what a result is measured on is never among them.
        runtime: Where the model runs.
        progress: Bars and warnings.
        scratch: Folder for drafts that have to be run before they are finished.
        seed: Of everything random.
        prompt_name: The prompt that texts are encoded with.
        kept: Results of steps, of this run and of one that was killed.
        unseen: Held-out texts, on which a step may tell what it costs; it learns nothing from them.
    """

    def __init__(
        self,
        texts: Sequence[str],
        runtime: Runtime,
        progress: Progress,
        scratch: Path,
        seed: int = 0,
        prompt_name: str = "document",
        kept: ResultCache | None = None,
        unseen: Sequence[str] = (),
    ) -> None:
        self.texts, self.unseen = texts, unseen
        self.runtime, self.progress, self.seed = runtime, progress, seed
        self.scratch = scratch
        self.kept = kept or ResultCache()
        self._prompt_name = prompt_name
        self._open: tuple[CheckpointEditor, Encoder] | None = None

    @property
    def sample(self) -> list[str]:
        """At most `SAMPLE` of the texts, spread over all of them."""
        step = max(1, -(-len(self.texts) // MAX_SAMPLE_TEXTS))
        return [self.texts[i] for i in range(0, len(self.texts), step)]

    def encoder(self, draft: CheckpointEditor) -> Encoder:
        """The draft as a model that runs, its weights float32."""
        from emb_tool.checkpoint.reader import Checkpoint
        from emb_tool.model.encoder import Encoder

        if self._open is None or self._open[0] is not draft:
            source = draft.checkpoint
            if draft.history:
                folder = self.scratch / f"step-{len(draft.history)}"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                draft.write(folder)
                source = Checkpoint.open(folder)
                source.name = f"{draft.checkpoint.name} after step {len(draft.history)}"
            with self.progress.task("opening the model"):
                encoder = Encoder.open(source, self.runtime, training=True)
            self._open = (draft, encoder)
        return self._open[1]

    def close(self) -> None:
        """Let the model go, and the folders of unfinished drafts."""
        self._open = None
        for folder in self.scratch.glob("step-*"):
            shutil.rmtree(folder)

    def result(
        self, draft: CheckpointEditor, kind: str, make: Callable[[], Result], *names: str
    ) -> Result:
        """What a step finds, made only if no run before has.

        Args:
            draft: The step's own, after `plan`: the result is that of its whole chain.
            kind: What is found, in the plural, as the report says it.
            make: Finds it.
            names: What tells it from others of the step.
        """
        return self.kept.result(kind, [*draft.chain, *names], make)

    def prompt(self, encoder: Encoder) -> str:
        """The prompt that texts are encoded with."""
        return encoder.prompt(self._prompt_name)

    def vectors(self, draft: CheckpointEditor, texts: Sequence[str] | None = None) -> np.ndarray:
        """(texts, dim) float32: the vectors of texts (the `sample` unless given).

        Raises:
            InvalidInput: One of them is not finite.
        """
        import torch

        texts = self.sample if texts is None else texts
        found = []
        with self.progress.task("encoding the texts", len(texts), "texts") as advance:
            for start in range(0, len(texts), PIECE):
                piece = texts[start : start + PIECE]

                def encode(piece: Sequence[str] = piece) -> Result:
                    encoder = self.encoder(draft)
                    prompt = self.prompt(encoder)
                    vectors = encoder.encode(piece, prompt)
                    _check_finite(vectors, piece, prompt, encoder)
                    return Result({"vectors": torch.from_numpy(vectors)}, {})

                before = self.kept.taken.total()
                pieces = self.result(draft, "pieces of texts encoded", encode, *piece)
                found.append(pieces.tensors["vectors"].numpy())
                there = self.kept.taken.total() > before
                (advance.skip if there else advance)(len(piece))
        if not found:
            return np.zeros((0, self.encoder(draft).dim), np.float32)
        return np.concatenate(found)

    def token_ids(
        self, draft: CheckpointEditor, texts: Sequence[str] | None = None
    ) -> list[np.ndarray]:
        """Token ids of texts (the `sample` unless given), special tokens included."""
        encoder = self.encoder(draft)
        return encoder.tokenize(self.sample if texts is None else texts, self.prompt(encoder))

    def frequencies(self, draft: CheckpointEditor) -> np.ndarray:
        """(vocabulary,) int64: how often each token id occurs in all the texts."""
        rows = draft.spec(draft.table_name()).shape[0]
        counts = np.zeros(rows, np.int64)
        for start in range(0, len(self.texts), MAX_SAMPLE_TEXTS):
            ids = self.token_ids(draft, self.texts[start : start + MAX_SAMPLE_TEXTS])
            if ids:
                counts += np.bincount(np.concatenate(ids), minlength=rows)
        return counts


def _check_finite(vectors: np.ndarray, texts: Sequence[str], prompt: str, encoder: Encoder) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        text = texts[int(np.argmin(finite))]
        why, hint = encoder.explain_not_finite(text, prompt)
        raise InvalidInput(
            f"{encoder.checkpoint.name} gives NaN or infinity for {text[:60]!r}{why}", hint
        )
