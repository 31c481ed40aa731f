"""Texts in, vectors out: row i of the file belongs to record i of the input."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from emb_tool.data.texts import Record, read_texts, scan
from emb_tool.encode.job import EncodeJob
from emb_tool.encode.vectors import VectorFile, check_output
from emb_tool.encoder import ROLES, Encoder
from emb_tool.errors import Refused
from emb_tool.report import Measure, Report, Table
from emb_tool.runtime import Runtime

# Texts sorted by length together: enough that batches are even, little enough for memory.
BLOCK_TEXTS = 8192
BLOCK_CHARACTERS = 1 << 24


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
            a text for which the model gives NaN.
    """
    output = Path(job.output).expanduser()
    check_output(output, overwrite)
    if runtime.world > 1:
        raise Refused(
            f"encode runs in one process, not in {runtime.world}", "start it without torchrun"
        )
    scan(job.texts, job.text_field)

    began = time.perf_counter()
    model = Encoder.open(job.model, runtime, max_length=job.max_length)
    prompt = model.prompt(job.prompt_name)
    model = model.route(job.prompt_name if job.prompt_name in ROLES else "document")
    opened = time.perf_counter()

    count = 0
    records = islice(read_texts(job.texts, field=job.text_field), job.limit)
    with VectorFile(output, model.dim) as file:
        for block in blocks(records):
            texts = [record.text for record in block]
            vectors = model.encode(texts, prompt, batch_tokens=job.batch_tokens, progress=progress)
            finite = np.isfinite(vectors).all(axis=1)
            if not finite.all():
                bad = block[int(np.argmin(finite))]
                raise Refused(
                    f"{bad.where}: {job.model} gives NaN or infinity for this text (row {bad.row})",
                    "try --dtype fp32; if that does not help, the model's weights are broken",
                )
            file.append(texts, vectors)
            count += len(block)
    seconds = time.perf_counter() - opened

    report = Report("encode", output=str(output), job=job.recipe())
    report.timings = {"open": opened - began, "encode": seconds}
    report.facts = {"prompt": prompt, "normalised": model.normalises}
    report.measures = [
        Measure("texts", count),
        Measure("dim", model.dim),
        Measure("truncated", model.truncated, note="texts longer than the model reads"),
        Measure("time", seconds, "s"),
        Measure("speed", count / seconds, "texts/s"),
        Measure("size", output.stat().st_size, "B"),
        Measure("peak memory", runtime.peak_memory(), "B"),
    ]
    report.tables = [
        Table(
            f"vectors of {job.model}",
            ["texts", "dim", "truncated", "time", "texts/s", "size"],
            [
                [
                    f"{count:,}",
                    str(model.dim),
                    f"{model.truncated:,}",
                    f"{seconds:.1f} s",
                    f"{count / seconds:,.0f}",
                    f"{output.stat().st_size / 1e6:,.1f} MB",
                ]
            ],
        )
    ]
    if model.truncated:
        report.warn(
            f"{model.truncated:,} of {count:,} texts were longer than {model.max_length} tokens; "
            "only their beginning was read"
        )
    return report


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
