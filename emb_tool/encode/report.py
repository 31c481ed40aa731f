"""The report of `embtool encode`: measures, table and warnings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from emb_tool.encode.job import EncodeJob
from emb_tool.encode.state import EncodeState
from emb_tool.ops.codes import Code, ScalarCode
from emb_tool.report import Measure, Report, Table

if TYPE_CHECKING:
    from emb_tool.model.encoder import Encoder

MAX_CLIPPED = 0.01
"""Fraction of values outside the ranges above which there is a warning."""


def describe(
    report: Report, job: EncodeJob, model: Encoder, code: Code, state: EncodeState, size: int
) -> None:
    """Fill the report of a run.

    Args:
        report: The report to fill.
        job: The job.
        model: The model.
        code: Format of the vectors.
        state: Final state.
        size: Bytes of the file.
    """
    speed = state.texts / state.seconds
    report.timings["encode"] = state.seconds
    report.facts |= {"normalized": model.normalizes, "precision": job.precision}
    report.measures += [
        Measure("texts", state.texts),
        Measure("dim", model.dim),
        Measure("bytes per vector", code.nbytes, "B"),
        Measure("truncated", state.truncated, note="texts longer than the model reads"),
        Measure("time", state.seconds, "s"),
        Measure("speed", speed, "texts/s"),
        Measure("size", size, "B"),
    ]
    columns = {
        "texts": f"{state.texts:,}",
        "dim": str(model.dim),
        "bytes each": f"{code.nbytes:,}",
        "truncated": f"{state.truncated:,}",
        "time": f"{state.seconds:.1f} s",
        "texts/s": f"{speed:,.0f}",
        "size": f"{size / 1e6:,.1f} MB",
    }
    title = f"vectors of {job.model}, {job.precision}"
    report.tables = [Table(title, list(columns), [list(columns.values())])]
    for sentence in state.warnings:
        report.warn(sentence)
    if (ranges := getattr(code, "ranges", None)) is not None:
        report.facts["ranges"] = {"from": state.ranges, "texts": ranges.texts}
    if isinstance(code, ScalarCode):
        clipped = state.outside / (state.texts * model.dim)
        report.measures.append(
            Measure("clipped", 100 * clipped, "%", note="numbers outside the ranges")
        )
        if clipped > MAX_CLIPPED:
            report.warn(
                f"{100 * clipped:.1f} % of the values are outside the ranges, which are from other "
                "texts or another model; calibrate on similar texts: --calibrate TEXTS"
            )
    if state.truncated:
        report.warn(
            f"{state.truncated:,} of {state.texts:,} texts were longer than {model.max_length} "
            "tokens and were truncated"
        )
