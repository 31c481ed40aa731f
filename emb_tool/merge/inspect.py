"""`embtool merge --inspect`: what decides whether a merge can work, before one is made.

Relative lengths of task vectors and the angles between them, of the whole model and layer by layer,
from one streamed pass; and in what configs, tokenizers, poolings and prompts the models differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from emb_tool.checkpoint.elements import FLOATS
from emb_tool.merge.base import Block, MergeTensor
from emb_tool.merge.job import MergeJob
from emb_tool.merge.model_order import MAX_DISTANCE
from emb_tool.merge.setup import Setup
from emb_tool.merge.sphere import gram
from emb_tool.merge.stream import OutputTensor, Stream, StreamedTensor
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report, Table
from emb_tool.runner import ReportRunner


def products(tensors: Sequence[MergeTensor]) -> list[np.ndarray]:
    """For each tensor the inner products of task vectors (or models), the base's square last.

    Without a base theta_i - mean(theta) stands for a task vector, and the mean for the base.

    Args:
        tensors: With blocks of N models.

    Returns:
        (N + 1, N + 1) float64 each; the last row and column are those of the base.
    """

    def of(block: Block) -> np.ndarray:
        base = block.base if block.base is not None else np.mean(block.models, axis=0)
        return gram([*(model - base for model in block.models), base])

    return [tensor.sum(of) for tensor in tensors]


class InspectRunner(ReportRunner):
    """Reports how the models of a merge differ; nothing is written."""

    distributed: ClassVar[bool] = False
    job: MergeJob

    def preview(self) -> None:
        """The report itself: it is made from the files alone."""
        inspect_models(self.job, self.progress, self.report)

    def run(self) -> Report:
        """Fill the report."""
        inspect_models(self.job, self.progress, self.report)
        return self.report


def inspect_models(job: MergeJob, progress: Progress, report: Report) -> None:
    """How the models of a job differ.

    Raises:
        InvalidInput: Models that have no tensors in common.
    """
    setup = Setup(job, progress)
    setup.inspect()
    names = [Path(name).name for name in job.models]
    differences = Table("differences from the first model", ["model", "what", ""])
    for found in setup.differences:
        differences.rows.append([names[found.model], found.key, found.said])
    report.facts["differences"] = [
        {"model": job.models[d.model], "what": d.key, "said": d.said} for d in setup.differences
    ]
    slots = [s for s in setup.slots if s.only is None and s.spec.dtype in FLOATS]
    total = sum(slot.spec.nbytes for slot in slots)
    with progress.task("comparing", total, "B") as advance:
        stream = Stream(job.seed)
        with stream.running():
            found_all = []
            for slot in slots:
                tensor = StreamedTensor(slot, np.ones(len(job.models)), stream, False)
                found_all += products([tensor])
                advance(slot.spec.nbytes)
    setup.tensors.files.close()
    whole = np.sum(found_all, axis=0)
    report.tables = [_lengths(names, whole, job, report, progress), _cosines(names, whole, report)]
    layered = _layers(names, slots, found_all)
    if layered.rows:
        report.tables.append(layered)
    if differences.rows:
        report.tables.append(differences)


def _lengths(
    names: list[str], whole: np.ndarray, job: MergeJob, report: Report, progress: Progress
) -> Table:
    base = "the base" if job.base else "the mean"
    table = Table(f"distance from {base}", ["model", "/ its length"])
    lengths = np.sqrt(np.diag(whole))
    for name, full, length in zip(names, job.models, lengths, strict=False):
        share = float(length / lengths[-1]) if lengths[-1] else 0.0
        table.rows.append([name, f"{share:.4f}"])
        report.measures.append(Measure("relative distance", share, of=base, model=full))
        if share > MAX_DISTANCE:
            progress.warn(
                f"{full} is far from {base} ({share:.0%} of its length): is it a fine-tune of the"
                " same model?"
            )
        if job.base and not length:
            progress.warn(f"{full} holds the weights of the base: its task vector is nothing")
    return table


def _cosines(names: list[str], whole: np.ndarray, report: Report) -> Table:
    of = "cosines of task vectors"
    table = Table(of, ["", *names])
    cosines = _cosine_matrix(whole)
    for i, name in enumerate(names):
        row = [f"{cosines[i, j]:.4f}" if j <= i else "" for j in range(len(names))]
        table.rows.append([name, *row])
        for j in range(i):
            report.measures.append(
                Measure("cosine", float(cosines[i, j]), of=of, model=f"{name}, {names[j]}")
            )
    return table


def _layers(names: list[str], slots: Sequence[OutputTensor], found: Sequence[np.ndarray]) -> Table:
    """Mean angle between two task vectors, and their relative length, by layer."""
    groups: dict[str, np.ndarray] = {}
    for slot, products_ in zip(slots, found, strict=True):
        key = f"layer {slot.layer}" if slot.layer is not None else slot.name.split(".")[0]
        groups[key] = groups.get(key, 0) + products_
    table = Table("by layer", ["", *(f"distance {name}" for name in names), "mean angle"])
    for key, whole in groups.items():
        lengths = np.sqrt(np.diag(whole))
        shares = [f"{x / lengths[-1]:.4f}" if lengths[-1] else "-" for x in lengths[:-1]]
        cosines = _cosine_matrix(whole)[np.triu_indices(len(names), 1)]
        angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
        shown = f"{np.nanmean(angles):.1f}°" if np.isfinite(angles).any() else "-"
        table.rows.append([key, *shares, shown])
    return table


def _cosine_matrix(whole: np.ndarray) -> np.ndarray:
    """Cosines of the task vectors; NaN where one of them is nothing."""
    count = len(whole) - 1
    lengths = np.sqrt(np.diag(whole))[:count]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(whole[:count, :count] / np.outer(lengths, lengths))
