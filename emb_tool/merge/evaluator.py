"""Evaluation of mixes in memory for weight searches: --dev tasks, losses on pairs or texts."""

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

MODEL_FOLDERS = ("model", "model-state")
"""Temporary folders of the checkpoint that the model in memory is loaded from."""


class MergeEvaluator:
    """Evaluates mixes of the models of a merge.

    Args:
        setup: The inputs.
        runtime: Runtime of the models.
        progress: Bars and warnings.
        state: Folder for temporary files, which lasts as long as the merge.
    """

    def __init__(self, setup: Setup, runtime: Runtime, progress: Progress, state: Path) -> None:
        self.setup, self.runtime, self.progress, self.state = setup, runtime, progress, state
        self.job = setup.job
        self.names = self.job.models
        self.evaluations: list[tuple[np.ndarray, dict[str, float], float]] = []

    @cached_property
    def mixture(self) -> Mixture:
        """The model in memory whose weights are set to each mix in turn.

        It is loaded from a checkpoint as the merge will write it: with the files and tensor names
        of the output, and without a memory map of any input.
        """
        from emb_tool.merge.mixture import Mixture
        from emb_tool.model.encoder import Encoder

        self.close()
        folder, state = (self.state / name for name in MODEL_FOLDERS)
        for path in (folder, state):
            path.mkdir(parents=True)
        first = Linear(weights=Weights(np.eye(len(self.names))[0].tolist()))
        write_merge(self.setup, first, folder, state, self.progress)
        checkpoint = Checkpoint.open(folder)
        checkpoint.name = self.names[0]  # its configs, so messages name it
        length = self.job.max_length
        encoder = Encoder.open(checkpoint, self.runtime, max_length=length, training=True)
        encoder.layout = checkpoint.layout  # open() with training=True drops the truncation
        return Mixture(encoder, self.setup.slots)

    def close(self) -> None:
        """Delete the temporary folders."""
        for name in MODEL_FOLDERS:
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
        """The mean of the main metrics of a mix on the --dev tasks."""
        from emb_tool.evaluate.model_pair import ModelPair

        self.mixture.set(coefficients)
        mix = ModelPair.of(self.mixture.encoder, "mix")
        mean, figures = dev.mean_figure(self.setup.data.tasks.dev, mix, self._reference)
        self.evaluations.append((np.array(coefficients), figures, mean))
        weights = ", ".join(f"{c:.3g}" for c in coefficients)
        self.progress.say(f"{mean:.4f}: {weights}", level=2)
        return mean

    def probe(self, temperature: float, negatives: int) -> Probe:
        """The loss on --pairs, or on --texts with the teacher's vectors."""
        from emb_tool.merge.probe import PairProbe, TeacherProbe

        encoder = self.mixture.encoder
        if self.job.pairs:
            return PairProbe(encoder, self.setup.data.pairs, temperature, negatives)
        texts, targets = self.teacher_targets()
        if targets.shape[1] != encoder.dim:
            raise InvalidInput(
                f"--teacher {self.job.teacher} has {targets.shape[1]} dimensions, the models have"
                f" {encoder.dim}",
                "use the teacher that they were aligned to, or give --pairs",
            )
        return TeacherProbe(encoder, texts, targets)

    def teacher_targets(self) -> tuple[list[str], np.ndarray]:
        """The texts and their teacher vectors, from the store."""
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
        indices = np.arange(len(corpus))
        return corpus.texts(indices), targets.read(indices)

    @cached_property
    def corpus(self) -> Any:
        """The texts of --texts without duplicates."""
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

    def selection_criterion(self) -> str:
        """A phrase that says by what the weights are chosen."""
        job = self.job
        if job.dev:
            return dev.rule(self.setup.data.tasks.dev)
        if job.pairs:
            return f"the loss on {len(self.setup.data.pairs):,} --pairs, without a held-out set"
        return (
            f"the distance to {job.teacher} on {len(self.corpus):,} --texts, without a held-out set"
        )

    @property
    def has_texts(self) -> bool:
        """Whether there are texts or pairs."""
        return bool(self.job.texts or self.job.pairs)

    def texts(self) -> dict[str, list[str]]:
        """Texts by role, from --pairs if given, otherwise from --texts."""
        if not self.job.pairs:
            return {"document": self.corpus.texts(np.arange(len(self.corpus)))}
        pairs = self.setup.data.pairs
        documents = [text for pair in pairs for text in (*pair.positives, *pair.negatives)]
        return {
            "query": list(dict.fromkeys(pair.query for pair in pairs)),
            "document": list(dict.fromkeys(documents)),
        }

    def progress_bar(
        self, name: str, total: int, unit: str = "steps"
    ) -> AbstractContextManager[Task]:
        """A progress bar."""
        return self.progress.task(name, total, unit)

    def rows(self) -> list[list[str]]:
        """Table rows of the evaluated mixes, best first."""
        ordered = sorted(self.evaluations, key=lambda entry: -entry[2])
        return [
            [f"{mean:.4f}", *(f"{v:.4f}" for v in figures.values()), *(f"{c:.3g}" for c in mix)]
            for mix, figures, mean in ordered
        ]
