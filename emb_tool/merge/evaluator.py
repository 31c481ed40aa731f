"""What a search for weights may look at: mixes in memory, the tasks of --dev, a probe."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.data.text_options import TextOptions
from emb_tool.errors import InvalidInput
from emb_tool.evaluate import dev
from emb_tool.merge.linear import Linear
from emb_tool.merge.weights import Weights
from emb_tool.merge.write import write_merge
from emb_tool.progress import Progress, Task

if TYPE_CHECKING:
    from emb_tool.evaluate.model_pair import ModelPair
    from emb_tool.merge.mixture import Mixture
    from emb_tool.merge.probe import Probe
    from emb_tool.merge.setup import Setup
    from emb_tool.runtime.device import Runtime

FRAME = ("frame", "frame-state")
"""Folders of the copy that the running model is opened from."""


class MergeEvaluator:
    """Where mixes are tried.

    Args:
        setup: The inputs.
        runtime: Where models run.
        progress: Bars and warnings.
        state: Folder for what is kept while the merge runs.
    """

    def __init__(self, setup: Setup, runtime: Runtime, progress: Progress, state: Path) -> None:
        self.setup, self.runtime, self.progress, self.state = setup, runtime, progress, state
        self.job = setup.job
        self.names = self.job.models
        self.tried: list[tuple[np.ndarray, dict[str, float], float]] = []

    @cached_property
    def mixture(self) -> Mixture:
        """The running model that becomes each mix in turn.

        It is opened from a copy as the merge will write it: with what was taken from which model,
        under the names that are written, and with no input's file beneath its weights.
        """
        from emb_tool.merge.mixture import Mixture
        from emb_tool.model.encoder import Encoder

        self.close()
        frame, notes = (self.state / name for name in FRAME)
        for folder in (frame, notes):
            folder.mkdir(parents=True)
        first = Linear(weights=Weights(np.eye(len(self.names))[0].tolist()))
        write_merge(self.setup, first, frame, notes, self.progress)
        checkpoint = Checkpoint.open(frame)
        checkpoint.name = self.names[0]  # whose configs these are, and any fault of theirs
        length = self.job.max_length
        encoder = Encoder.open(checkpoint, self.runtime, max_length=length, training=True)
        encoder.layout = checkpoint.layout  # a student is trained in its whole width, a mix is not
        return Mixture(encoder, self.setup.slots)

    def close(self) -> None:
        """Let go what is kept for the running model."""
        for name in FRAME:
            shutil.rmtree(self.state / name, ignore_errors=True)

    @cached_property
    def _reference(self) -> ModelPair | None:
        from emb_tool.evaluate.model_pair import ModelPair
        from emb_tool.model.encoder import Encoder

        if not self.job.teacher or not any(
            task.needs_reference for task in self.setup.data.tasks.dev
        ):
            return None
        return ModelPair.of(Encoder.open(self.job.teacher, self.runtime), self.job.teacher)

    def score(self, coefficients: np.ndarray) -> float:
        """What a mix is worth: the mean of the main figures of the tasks of --dev."""
        from emb_tool.evaluate.model_pair import ModelPair

        self.mixture.set(coefficients)
        mix = ModelPair.of(self.mixture.encoder, "mix")
        worth, figures = dev.mean_figure(self.setup.data.tasks.dev, mix, self._reference)
        self.tried.append((np.array(coefficients), figures, worth))
        shown = ", ".join(f"{c:.3g}" for c in coefficients)
        self.progress.say(f"{worth:.4f}: {shown}", level=2)
        return worth

    def probe(self, temperature: float, negatives: int) -> Probe:
        """Pairs with their loss, or texts with the teacher's vectors."""
        from emb_tool.merge.probe import PairProbe, TeacherProbe

        encoder = self.mixture.encoder
        if self.job.pairs:
            return PairProbe(encoder, self.setup.data.pairs, temperature, negatives)
        texts, targets = self.taught()
        if targets.shape[1] != encoder.dim:
            raise InvalidInput(
                f"--teacher {self.job.teacher} has vectors of {targets.shape[1]} numbers, the"
                f" models of {encoder.dim}",
                "take the teacher that they were aligned to, or give --pairs",
            )
        return TeacherProbe(encoder, texts, targets)

    def taught(self) -> tuple[list[str], np.ndarray]:
        """The texts, and the teacher's vectors of them, from the store."""
        from emb_tool.model.encoder import Encoder
        from emb_tool.training.store import VectorStore
        from emb_tool.training.targets import gather_targets
        from emb_tool.training.teacher import CheckpointTeacher

        job, corpus = self.job, self.corpus
        assert job.teacher is not None
        teacher = CheckpointTeacher(Encoder.open(job.teacher, self.runtime))
        root = Path(job.store).expanduser() if job.store else VectorStore.default_root()
        store = VectorStore(root, self.progress.warn)
        with self.progress.task("encoding by the teacher", len(corpus), "texts") as advance:
            targets = gather_targets(corpus, teacher, store, progress=advance, skip=advance.skip)
        every = np.arange(len(corpus))
        return corpus.texts(every), targets.read(every)

    @cached_property
    def corpus(self) -> Any:
        """The texts of --texts, each once."""
        from emb_tool.data.corpus import Corpus, check_parts

        job = self.job
        corpus = Corpus.build(
            self.state / "corpus",
            job.texts,
            options=TextOptions.of(job),
            limit=job.limit,
            holdout=0,
        )
        corpus.tell(self.progress.note)
        self.setup.data.refuse_few("--texts", len(corpus))
        if warning := check_parts("--texts", len(corpus), 0, 0):
            self.progress.warn(warning)
        return corpus

    def chosen_by(self) -> str:
        """What the weights are found by, in words."""
        job = self.job
        if job.dev:
            return dev.rule(self.setup.data.tasks.dev)
        if job.pairs:
            return f"the loss on {len(self.setup.data.pairs):,} --pairs, none of them held out"
        return (
            f"the distance to {job.teacher} on {len(self.corpus):,} --texts, none of them held out"
        )

    @property
    def has_texts(self) -> bool:
        """Whether there are texts or pairs."""
        return bool(self.job.texts or self.job.pairs)

    def texts(self) -> dict[str, list[str]]:
        """Texts by role, those of the pairs if there are no others."""
        if not self.job.pairs:
            return {"document": self.corpus.texts(np.arange(len(self.corpus)))}
        pairs = self.setup.data.pairs
        documents = [text for pair in pairs for text in (*pair.positives, *pair.negatives)]
        return {
            "query": list(dict.fromkeys(pair.query for pair in pairs)),
            "document": list(dict.fromkeys(documents)),
        }

    def watch(self, name: str, total: int, unit: str = "steps") -> AbstractContextManager[Task]:
        """Shows how far a piece of work is."""
        return self.progress.task(name, total, unit)

    def rows(self) -> list[list[str]]:
        """What was tried, the best first, for a table."""
        ordered = sorted(self.tried, key=lambda entry: -entry[2])
        return [
            [f"{worth:.4f}", *(f"{v:.4f}" for v in figures.values()), *(f"{c:.3g}" for c in mix)]
            for mix, figures, worth in ordered
        ]
