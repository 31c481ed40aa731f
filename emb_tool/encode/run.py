"""Texts in, vectors out: row i of the file belongs to record i of the input."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from itertools import chain, islice
from pathlib import Path

import numpy as np

from emb_tool.checkpoint.ranges import Ranges, read_ranges, read_ranges_file
from emb_tool.data.texts import Record, read_texts, scan
from emb_tool.encode.job import EncodeJob
from emb_tool.encode.vectors import VectorFile, check_output
from emb_tool.encoder import ROLES, Encoder
from emb_tool.errors import Refused
from emb_tool.ops.codes import Code, ScalarCode, make_code
from emb_tool.ops.precisions import CALIBRATED
from emb_tool.report import Measure, Report, Table
from emb_tool.runtime import Runtime

# Texts sorted by length together: enough that batches are even, little enough for memory.
BLOCK_TEXTS = 8192
BLOCK_CHARACTERS = 1 << 24

CALIBRATION_TEXTS = 8192
"""Texts that give the ranges where neither the model nor the user does."""

CLIPPED = 0.01
"""Share of numbers outside the ranges from which on the user is told."""


def encode(
    job: EncodeJob,
    runtime: Runtime,
    *,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Encode every record of the texts, empty ones and duplicates included, in their order.

    The texts are read and the vectors written block by block, so memory does not grow with
    their number. The file appears whole or not at all.

    Args:
        job: What to do.
        runtime: Where.
        overwrite: Whether the output may be replaced.
        progress: Called with the number of texts done in each batch.

    Raises:
        Refused: What `Encoder.open` and `read_texts` refuse, an output that cannot be written,
            a text for which the model gives NaN, ranges that do not fit the model.
    """
    output = Path(job.output).expanduser()
    check_output(output, overwrite)
    if runtime.world > 1:
        raise Refused(
            f"encode runs in one process, not in {runtime.world}", "start it without torchrun"
        )
    scan(job.texts, job.text_field)
    scan(job.calibrate, job.text_field)
    ranges = read_ranges_file(Path(job.ranges).expanduser()) if job.ranges else None
    origin = job.ranges

    began = time.perf_counter()
    model = Encoder.open(job.model, runtime, max_length=job.max_length)
    prompt = model.prompt(job.prompt_name)
    model = model.route(job.prompt_name if job.prompt_name in ROLES else "document")
    opened = time.perf_counter()

    def stream(sources: Iterable[str], limit: int | None) -> Iterator[tuple[list[str], np.ndarray]]:
        """Texts and their vectors, block by block."""
        for block in blocks(islice(read_texts(tuple(sources), field=job.text_field), limit)):
            texts = [record.text for record in block]
            vectors = model.encode(texts, prompt, batch_tokens=job.batch_tokens, progress=progress)
            finite = np.isfinite(vectors).all(axis=1)
            if not finite.all():
                bad = block[int(np.argmin(finite))]
                raise Refused(
                    f"{bad.where}: {job.model} gives NaN or infinity for this text (row {bad.row})",
                    "try --dtype fp32; if that does not help, the model's weights are broken",
                )
            yield texts, vectors

    report = Report("encode", output=str(output), job=job.recipe())
    coming = stream(job.texts, job.limit)
    if job.precision in CALIBRATED and ranges is None:
        if job.calibrate:
            ranges = reduce(
                Ranges.join, (Ranges.of(vectors) for _, vectors in stream(job.calibrate, None))
            )
            origin = "the calibration texts"
        else:
            ranges = read_ranges(model.checkpoint.path, model.dim)
            origin = "stored with the model"
        if ranges is None:
            head = list(_first(coming, CALIBRATION_TEXTS))
            coming = chain(head, coming)
            ranges = Ranges.of(np.concatenate([vectors for _, vectors in head]))
            origin = "the texts themselves"
            report.warn(
                f"{job.model} stores no ranges: they were taken from the first {ranges.texts:,} of "
                "these texts; for codes of other texts that go with these, give --ranges with the "
                "file beside this output"
            )
    code = make_code(job.precision, model.dim, ranges, job.seed)

    count = outside = 0
    with VectorFile(output, code) as file:
        for texts, vectors in coming:
            if isinstance(code, ScalarCode):
                outside += code.ranges.outside(vectors)
            file.append(texts, code.encode(vectors))
            count += len(texts)
    seconds = time.perf_counter() - opened
    _fill(report, job, model, code, count, seconds, output)
    report.facts["prompt"] = prompt
    report.measures.append(Measure("peak memory", runtime.peak_memory(), "B"))
    report.timings = {"open": opened - began, "encode": seconds}
    if ranges is not None:
        report.facts["ranges"] = {"from": origin, "texts": ranges.texts}
    if isinstance(code, ScalarCode):
        clipped = outside / (count * model.dim)
        report.measures.append(
            Measure("clipped", 100 * clipped, "%", note="numbers outside the ranges")
        )
        if clipped > CLIPPED:
            report.warn(
                f"{100 * clipped:.1f} % of the numbers lie outside the ranges: other texts or "
                "another model gave them; calibrate on texts like these: --calibrate TEXTS"
            )
    if model.truncated:
        report.warn(
            f"{model.truncated:,} of {count:,} texts were longer than {model.max_length} tokens; "
            "only their beginning was read"
        )
    return report


def _fill(
    report: Report,
    job: EncodeJob,
    model: Encoder,
    code: Code,
    count: int,
    seconds: float,
    output: Path,
) -> None:
    """The figures of a run, and their table."""
    size = output.stat().st_size
    report.facts |= {"normalised": model.normalises, "precision": job.precision}
    report.measures += [
        Measure("texts", count),
        Measure("dim", model.dim),
        Measure("bytes per vector", code.nbytes, "B"),
        Measure("truncated", model.truncated, note="texts longer than the model reads"),
        Measure("time", seconds, "s"),
        Measure("speed", count / seconds, "texts/s"),
        Measure("size", size, "B"),
    ]
    report.tables = [
        Table(
            f"vectors of {job.model}, {job.precision}",
            ["texts", "dim", "bytes each", "truncated", "time", "texts/s", "size"],
            [
                [
                    f"{count:,}",
                    str(model.dim),
                    f"{code.nbytes:,}",
                    f"{model.truncated:,}",
                    f"{seconds:.1f} s",
                    f"{count / seconds:,.0f}",
                    f"{size / 1e6:,.1f} MB",
                ]
            ],
        )
    ]


def _first(
    stream: Iterator[tuple[list[str], np.ndarray]], texts: int
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Blocks until so many texts are together."""
    count = 0
    while count < texts and (block := next(stream, None)) is not None:
        count += len(block[0])
        yield block


def blocks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records in lists bounded in number and in characters."""
    block: list[Record] = []
    size = 0
    for record in records:
        block.append(record)
        size += len(record.text)
        if len(block) >= BLOCK_TEXTS or size >= BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block
