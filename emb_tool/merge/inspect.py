"""`embtool merge --inspect`: a report on how the models differ, without merging.

Relative lengths of task vectors and the angles between them, for the whole model and by layer, from
one streamed pass; and differences of configs, tokenizers, poolings and prompts.
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
from emb_tool.merge.sphere import gram_matrix
from emb_tool.merge.stream import OutputTensor, Stream, StreamedTensor
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report, Table
from emb_tool.runner import ReportRunner


def gram_matrices(tensors: Sequence[MergeTensor]) -> list[np.ndarray]:
    """For each tensor the Gram matrix of the task vectors and the base.

    Without a base the mean of the models takes its place.

    Args:
        tensors: Tensors of N models.

    Returns:
        (N + 1, N + 1) float64 each; the last row and column belong to the base.
    """

    def block_gram(block: Block) -> np.ndarray:
        base = block.base if block.base is not None else np.mean(block.models, axis=0)
        return gram_matrix([*(model - base for model in block.models), base])

    return [tensor.sum(block_gram) for tensor in tensors]


class InspectRunner(ReportRunner):
    """Reports how the models of a merge differ; nothing is written."""

    distributed: ClassVar[bool] = False
    job: MergeJob

    def preview(self) -> None:
        """Fill the report, which needs only the files."""
        inspect_models(self.job, self.progress, self.report)

    def run(self) -> Report:
        """Fill the report."""
        inspect_models(self.job, self.progress, self.report)
        return self.report


def inspect_models(job: MergeJob, progress: Progress, report: Report) -> None:
    """Report how the models of a job differ.

    Raises:
        InvalidInput: Models that have no tensors in common.
    """
    setup = Setup(job, progress)
    setup.inspect()
    names = [Path(name).name for name in job.models]
    differences = Table("differences from the first model", ["model", "what", ""])
    for difference in setup.differences:
        differences.rows.append([names[difference.model], difference.key, difference.description])
    report.facts["differences"] = [
        {"model": job.models[d.model], "what": d.key, "said": d.description}
        for d in setup.differences
    ]
    slots = [s for s in setup.slots if s.only is None and s.spec.dtype in FLOATS]
    total = sum(slot.spec.nbytes for slot in slots)
    with progress.task("comparing", total, "B") as advance:
        stream = Stream(job.seed)
        with stream.running():
            grams = []
            for slot in slots:
                tensor = StreamedTensor(slot, np.ones(len(job.models)), stream, False)
                grams += gram_matrices([tensor])
                advance(slot.spec.nbytes)
    setup.tensors.files.close()
    gram = np.sum(grams, axis=0)
    report.tables = [_lengths(names, gram, job, report, progress), _cosines(names, gram, report)]
    layered = _layers(names, slots, grams)
    if layered.rows:
        report.tables.append(layered)
    if differences.rows:
        report.tables.append(differences)


def _lengths(
    names: list[str], gram: np.ndarray, job: MergeJob, report: Report, progress: Progress
) -> Table:
    base = "the base" if job.base else "the mean"
    table = Table(f"distance from {base}", ["model", "/ its length"])
    lengths = np.sqrt(np.diag(gram))
    for name, model, length in zip(names, job.models, lengths, strict=False):
        distance = float(length / lengths[-1]) if lengths[-1] else 0.0
        table.rows.append([name, f"{distance:.4f}"])
        report.measures.append(Measure("relative distance", distance, of=base, model=model))
        if distance > MAX_DISTANCE:
            progress.warn(
                f"{model} is far from {base} ({distance:.0%} of its norm): is it a fine-tune of the"
                " same model?"
            )
        if job.base and not length:
            progress.warn(f"{model} has the weights of the base: its task vector is zero")
    return table


def _cosines(names: list[str], gram: np.ndarray, report: Report) -> Table:
    title = "cosines of task vectors"
    table = Table(title, ["", *names])
    cosines = _cosine_matrix(gram)
    for i, name in enumerate(names):
        row = [f"{cosines[i, j]:.4f}" if j <= i else "" for j in range(len(names))]
        table.rows.append([name, *row])
        for j in range(i):
            report.measures.append(
                Measure("cosine", float(cosines[i, j]), of=title, model=f"{name}, {names[j]}")
            )
    return table


def _layers(names: list[str], slots: Sequence[OutputTensor], grams: Sequence[np.ndarray]) -> Table:
    """Relative length of the task vectors and the mean angle between them, by layer."""
    groups: dict[str, np.ndarray] = {}
    for slot, gram in zip(slots, grams, strict=True):
        key = f"layer {slot.layer}" if slot.layer is not None else slot.name.split(".")[0]
        groups[key] = groups.get(key, 0) + gram
    table = Table("by layer", ["", *(f"distance {name}" for name in names), "mean angle"])
    for key, gram in groups.items():
        lengths = np.sqrt(np.diag(gram))
        distances = [f"{x / lengths[-1]:.4f}" if lengths[-1] else "-" for x in lengths[:-1]]
        cosines = _cosine_matrix(gram)[np.triu_indices(len(names), 1)]
        angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
        mean_angle = f"{np.nanmean(angles):.1f}°" if np.isfinite(angles).any() else "-"
        table.rows.append([key, *distances, mean_angle])
    return table


def _cosine_matrix(gram: np.ndarray) -> np.ndarray:
    """Cosines of the task vectors; NaN where one of them is zero."""
    count = len(gram) - 1
    lengths = np.sqrt(np.diag(gram))[:count]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(gram[:count, :count] / np.outer(lengths, lengths))
