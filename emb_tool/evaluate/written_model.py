"""Functions of several checks of a written model: encode, run tasks, and rename in reports."""

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
    """The report of `embtool eval` on the written model; without tasks, only its size.

    Args:
        written: The model.
        target: Its name in the report, and its device and dtype.
        tasks: As of `embtool eval`.
        runtime: Device and processes.
        progress: Reports progress.
        root: As of `evaluate`.
        beside: Further models to measure.
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
        model: Folder of the model.
        texts: The texts.
        device: As of `Runtime.start`.
        dtype: As of `Runtime.start`.
    """
    from emb_tool.model.encoder import Encoder
    from emb_tool.ops.products import use_onednn_linear
    from emb_tool.runtime.device import Runtime

    encoder = Encoder.open(model, Runtime.start(device, dtype))
    use_onednn_linear(encoder.model)
    return encoder.encode(list(texts))


def rename(report: Report, folder: str, name: str) -> None:
    """Replace the staging folder by the output's final name in a report."""

    def replace_name(text: str) -> str:
        return text.replace(folder, name).replace(Path(folder).name, Path(name).name)

    def replace_in(fact: Any) -> Any:
        if isinstance(fact, dict):
            return {replace_name(key): replace_in(value) for key, value in fact.items()}
        return replace_name(fact) if isinstance(fact, str) else fact

    for measure in report.measures:
        measure.model = replace_name(measure.model)
    for table in report.tables:
        table.rows = [[replace_name(cell) for cell in row] for row in table.rows]
    report.facts = replace_in(report.facts)
    report.gate = replace_name(report.gate) if report.gate else None
    report.warnings = [replace_name(sentence) for sentence in report.warnings]
