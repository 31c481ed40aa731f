"""What several checks do with a model as it was written: run it, run tasks on it, rename it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emb_tool.config import Dtype
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report

if TYPE_CHECKING:
    from emb_tool.checkpoint.reader import Checkpoint
    from emb_tool.runtime.check_process import CheckTarget
    from emb_tool.runtime.device import Runtime


def evaluate_tasks(
    written: Checkpoint,
    target: CheckTarget,
    tasks: Sequence[str],
    runtime: Runtime,
    progress: Progress,
    *,
    root: Checkpoint | None,
    beside: Sequence[Path] = (),
    reference: Path | None = None,
    min_retention: float | None = None,
) -> Report:
    """The report of `embtool eval` on the written model; without tasks, its size alone.

    Args:
        written: The model.
        target: What the report calls it, and where it is run.
        tasks: As of `embtool eval`.
        runtime: Where.
        progress: Shows how far it is.
        root: As of `evaluate`.
        beside: Models measured too.
        reference: As of `embtool eval`.
        min_retention: As of `embtool eval`.
    """
    from emb_tool.evaluate.job import EvalJob
    from emb_tool.evaluate.run import evaluate

    folder, name = str(target.folder), target.name
    if not tasks:
        size = Measure("weights", written.weight_bytes(), "B", model=name)
        return Report("check", measures=[size])
    job = EvalJob(
        models=(folder, *map(str, beside)),
        task=tuple(tasks),
        reference=str(reference) if reference else None,
        min_retention=min_retention,
        device=target.device,
        dtype=target.dtype,
    )
    report = evaluate(job, runtime, progress=progress, root=root)
    rename(report, folder, name)
    return report


@cache
def vectors_of(model: Path, texts: tuple[str, ...], device: str, dtype: Dtype) -> np.ndarray:
    """A model's vectors of some texts, (texts, dim) float32.

    Args:
        model: Its folder.
        texts: The texts.
        device: Where it runs.
        dtype: As of `Runtime.start`.
    """
    from emb_tool.model.encoder import Encoder
    from emb_tool.ops.products import use_onednn_linear
    from emb_tool.runtime.device import Runtime

    encoder = Encoder.open(model, Runtime.start(device, dtype))
    use_onednn_linear(encoder.model)
    return encoder.encode(list(texts))


def rename(report: Report, folder: str, name: str) -> None:
    """Let the report speak of the output by its final name."""

    def right(text: str) -> str:
        return text.replace(folder, name).replace(Path(folder).name, Path(name).name)

    def renamed(fact: Any) -> Any:
        if isinstance(fact, dict):
            return {right(key): renamed(value) for key, value in fact.items()}
        return right(fact) if isinstance(fact, str) else fact

    for measure in report.measures:
        measure.model = right(measure.model)
    for table in report.tables:
        table.rows = [[right(cell) for cell in row] for row in table.rows]
    report.facts = renamed(report.facts)
    report.gate = right(report.gate) if report.gate else None
    report.warnings = [right(sentence) for sentence in report.warnings]
