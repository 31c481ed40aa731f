"""Calibration data for steps: texts, their vectors and their token frequencies."""

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
"""Maximum number of texts that are encoded; token frequencies are counted in all texts."""

BLOCK_TEXTS = 1024
"""Texts per cached block of vectors, for resumed runs."""


class CalibrationContext:
    """Calibration texts, and a model that runs them after the steps applied so far.

    Args:
        texts: Calibration texts, disjoint from those that the result is measured on.
        runtime: Device, dtype and processes.
        progress: Progress bars and warnings.
        scratch: Folder for intermediate checkpoints.
        seed: Random seed.
        prompt_name: Name of the prompt that texts are encoded with.
        cache: Results of steps, including those of an interrupted run.
        heldout: Texts on which a step may report its loss; never used for calibration.
    """

    def __init__(
        self,
        texts: Sequence[str],
        runtime: Runtime,
        progress: Progress,
        scratch: Path,
        seed: int = 0,
        prompt_name: str = "document",
        cache: ResultCache | None = None,
        heldout: Sequence[str] = (),
    ) -> None:
        self.texts, self.heldout = texts, heldout
        self.runtime, self.progress, self.seed = runtime, progress, seed
        self.scratch = scratch
        self.cache = cache or ResultCache()
        self._prompt_name = prompt_name
        self._open: tuple[CheckpointEditor, Encoder] | None = None

    @property
    def sample(self) -> list[str]:
        """At most `MAX_SAMPLE_TEXTS` of the texts, evenly spaced."""
        step = max(1, -(-len(self.texts) // MAX_SAMPLE_TEXTS))
        return [self.texts[i] for i in range(0, len(self.texts), step)]

    def encoder(self, draft: CheckpointEditor) -> Encoder:
        """The draft as an encoder with float32 weights."""
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
        """Release the model and remove the intermediate checkpoints."""
        self._open = None
        for folder in self.scratch.glob("step-*"):
            shutil.rmtree(folder)

    def result(
        self, draft: CheckpointEditor, kind: str, compute: Callable[[], Result], *names: str
    ) -> Result:
        """A cached result of a step; computed if it is not in the cache.

        Args:
            draft: The draft of the step after `plan`; its chain is part of the cache key.
            kind: Kind of result, a plural noun that the report shows.
            compute: Computes the result.
            names: Further parts of the cache key, to distinguish results of one step.
        """
        return self.cache.result(kind, [*draft.chain, *names], compute)

    def prompt(self, encoder: Encoder) -> str:
        """The prompt that texts are encoded with."""
        return encoder.prompt(self._prompt_name)

    def vectors(self, draft: CheckpointEditor, texts: Sequence[str] | None = None) -> np.ndarray:
        """Vectors of texts, by default of `sample`.

        Returns:
            (texts, dim) float32.

        Raises:
            InvalidInput: A vector is not finite.
        """
        import torch

        texts = self.sample if texts is None else texts
        blocks = []
        with self.progress.task("encoding the texts", len(texts), "texts") as advance:
            for start in range(0, len(texts), BLOCK_TEXTS):
                block = texts[start : start + BLOCK_TEXTS]

                def encode(block: Sequence[str] = block) -> Result:
                    encoder = self.encoder(draft)
                    prompt = self.prompt(encoder)
                    vectors = encoder.encode(block, prompt)
                    _check_vectors(vectors, block, prompt, encoder)
                    return Result({"vectors": torch.from_numpy(vectors)}, {})

                before = self.cache.hits.total()
                result = self.result(draft, "pieces of texts encoded", encode, *block)
                blocks.append(result.tensors["vectors"].numpy())
                cached = self.cache.hits.total() > before
                (advance.skip if cached else advance)(len(block))
        if not blocks:
            return np.zeros((0, self.encoder(draft).dim), np.float32)
        return np.concatenate(blocks)

    def token_ids(
        self, draft: CheckpointEditor, texts: Sequence[str] | None = None
    ) -> list[np.ndarray]:
        """Token ids of texts, by default of `sample`, with special tokens."""
        encoder = self.encoder(draft)
        return encoder.tokenize(self.sample if texts is None else texts, self.prompt(encoder))

    def frequencies(self, draft: CheckpointEditor) -> np.ndarray:
        """Occurrences of each token id in all texts, (vocabulary,) int64."""
        rows = draft.spec(draft.table_name()).shape[0]
        counts = np.zeros(rows, np.int64)
        for start in range(0, len(self.texts), MAX_SAMPLE_TEXTS):
            ids = self.token_ids(draft, self.texts[start : start + MAX_SAMPLE_TEXTS])
            if ids:
                counts += np.bincount(np.concatenate(ids), minlength=rows)
        return counts


def _check_vectors(
    vectors: np.ndarray, texts: Sequence[str], prompt: str, encoder: Encoder
) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        text = texts[int(np.argmin(finite))]
        why, hint = encoder.explain_not_finite(text, prompt)
        raise InvalidInput(
            f"{encoder.checkpoint.name} gives NaN or infinity for {text[:60]!r}{why}", hint
        )
