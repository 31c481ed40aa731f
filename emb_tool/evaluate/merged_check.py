"""The check of a merged model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from emb_tool.errors import RunFailed
from emb_tool.evaluate.root_comparison import open_root
from emb_tool.evaluate.written_model import evaluate_tasks, vectors_of
from emb_tool.formatting import short_names
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report, Table
from emb_tool.runtime.check_process import Check


class MergedCheck(Check):
    """Open the written model as a user would, and compare it with the merge's inputs.

    Args:
        texts: A few sentences.
        compared: Folder of every input by name; None if it cannot be run by itself.
        models: Folders of the inputs that can be run, also measured in the tasks.
        tasks: As of `embtool eval`.
    """

    kind: Literal["merged"] = "merged"
    texts: tuple[str, ...]
    compared: dict[str, Path | None]
    models: tuple[Path, ...]
    tasks: tuple[str, ...] = ()

    def run(self, progress: Progress) -> Report:
        """See `Check.run`."""
        from emb_tool.checkpoint.reader import Checkpoint
        from emb_tool.evaluate.agreement import similarity_metrics
        from emb_tool.runtime.device import Runtime

        target = self.target
        runtime = Runtime.start(target.device, target.dtype)
        written, root = Checkpoint.open(target.folder), open_root(target) if self.tasks else None
        report = evaluate_tasks(
            written, target, self.tasks, runtime, progress, root=root, beside=self.models
        )
        vectors = self._vectors(target.folder)
        if not np.isfinite(vectors).all():
            raise RunFailed("the vectors of the output are not finite", None)
        names = short_names(self.compared)
        table = Table(f"{len(vectors)} sentences, against the inputs", ["", "cosine", "lowest"])
        for other, path in self.compared.items():
            if path is None:
                table.rows.append([f"{names[other]} (not run)", "-", "-"])
                continue
            with progress.task(f"comparing with {names[other]}"):
                figures = similarity_metrics(vectors, self._vectors(path))
            figures = {key: figures[key] for key in ("cosine mean", "cosine p1", "cosine floor")}
            report.measures += [
                Measure(k, v, of="sentences", model=other) for k, v in figures.items()
            ]
            cosines = [figures["cosine mean"], figures["cosine p1"]]
            table.rows.append([names[other], *(f"{value:.4f}" for value in cosines)])
        report.tables.append(table)
        return report

    def untested_inputs(self) -> tuple[Sequence[Path], Sequence[str]]:
        """The inputs: a merge runs no model before its check."""
        return self.models, self.texts

    def _vectors(self, model: Path) -> np.ndarray:
        return vectors_of(model, self.texts, self.target.device, self.target.dtype)
