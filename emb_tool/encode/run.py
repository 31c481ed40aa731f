"""Encodes texts into a file of vectors: row i of the file is of record i of the input."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from emb_tool.checkpoint.files import write_json
from emb_tool.checkpoint.length_checks import check_max_length
from emb_tool.checkpoint.output_file import OutputFile
from emb_tool.checkpoint.prompts import check_prompt, format_prompt
from emb_tool.checkpoint.provenance import provenance
from emb_tool.checkpoint.ranges import Ranges, read_ranges, read_ranges_file
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.data.text_field import field_sentence
from emb_tool.data.text_options import TextOptions
from emb_tool.data.texts import Record, hashes, read_texts, scan
from emb_tool.encode.job import EncodeJob
from emb_tool.encode.report import describe
from emb_tool.encode.state import EncodeState
from emb_tool.encode.vector_files import (
    PLAIN,
    make_writer,
    metadata_path,
    output_file,
    provenance_of,
)
from emb_tool.errors import InvalidInput, resumable_failure
from emb_tool.ops.codes import Code, ScalarCode, code_from_json, make_code
from emb_tool.ops.precisions import CALIBRATED
from emb_tool.report import Measure, Report, Table

if TYPE_CHECKING:
    from emb_tool.runtime.device import Runtime

# Texts that are sorted by length together: enough for even batches, few enough that a kill loses
# little work.
BLOCK_TEXTS = 8192
BLOCK_CHARACTERS = 1 << 22

CALIBRATION_TEXTS = 8192
"""Number of texts from which ranges are computed if neither model nor user provides them."""

SAVE_SECONDS = 20.0
"""Seconds between saved states: a kill loses at most this and the current block."""


class Block(NamedTuple):
    """A block of encoded texts.

    Args:
        texts: The texts.
        vectors: (texts, dim) float32.
        truncated: Number of truncated texts.
    """

    texts: list[str]
    vectors: np.ndarray
    truncated: int


def check(
    job: EncodeJob,
    *,
    overwrite: bool = False,
    resume: bool = False,
    warn: Callable[[str], None] = lambda sentence: None,
) -> Checkpoint | None:
    """Check settings, headers and first records before torch is imported.

    Args:
        job: The job.
        overwrite: Whether to replace an existing output.
        resume: Whether to resume an interrupted run.
        warn: Called with warnings, which the report also has.

    Returns:
        The model; None if the output is finished.
    """
    path = Path(job.output).expanduser()
    if output_file(path, job.digest(), overwrite=overwrite, resume=resume).check():
        return None
    model = Checkpoint.open(job.model)
    check_max_length(job.max_length, model.layout, model.name)
    check_prompt(model.layout, job.prompt_name, job.model, warn)
    scan((*job.texts, *job.calibrate), TextOptions.of(job))
    if job.ranges:
        read_ranges_file(Path(job.ranges).expanduser(), model.layout.dim)
    return model


def encode(
    job: EncodeJob,
    runtime: Runtime,
    *,
    overwrite: bool = False,
    resume: bool = False,
    progress: Callable[[int], None] | None = None,
    skip: Callable[[int], None] = lambda count: None,
    say: Callable[[str], None] = lambda sentence: None,
    note: Callable[[str], None] = lambda sentence: None,
) -> Report:
    """Encode every record of the texts, empty ones and duplicates included, in their order.

    Texts are read and vectors written block by block, so memory does not grow with their number.
    The file is written atomically; until it is complete all data are in `FILE.partial/`, from
    which a killed run is resumed.

    Args:
        job: The job.
        runtime: Device and dtype.
        overwrite: Whether to replace an existing output.
        resume: Whether to resume an interrupted run.
        progress: Called with the number of texts of each batch.
        skip: Called with the number of texts that an interrupted run has encoded.
        say: Called with messages.
        note: Called with notes for the report.

    Raises:
        InvalidInput: See `Encoder.open` and `read_texts`; an output that cannot be written, NaN in
            a vector, ranges that do not fit the model, texts or a model that have changed since
            the resumed run.
        RunFailed: An invalid text after vectors of other texts were saved.
    """
    output = Path(job.output).expanduser()
    file = output_file(output, job.digest(), overwrite=overwrite, resume=resume)
    with file:
        if file.finished:
            say(f"{output} is finished already: nothing to do")
            return Report("encode", output=str(output), job=job.recipe())
        if resume and not file.resumed:
            say(f"nothing to resume at {output}: starting from the beginning")
        run = _Run(job, runtime, file, progress, note)
        skip(run.state.texts)
        try:
            report = run.go()
        except InvalidInput as error:
            if (
                file.resumed or not run.state.saved
            ):  # resumed runs are not removed; otherwise nothing is lost
                raise
            raise resumable_failure(error) from error
        file.seal()
    return report


class _Run:
    """One run of a job."""

    def __init__(
        self,
        job: EncodeJob,
        runtime: Runtime,
        file: OutputFile,
        progress: Callable[[int], None] | None,
        note: Callable[[str], None],
    ) -> None:
        self.job, self.runtime, self.file, self.progress = job, runtime, file, progress
        self.note = note
        self.report = Report("encode", output=str(Path(job.output).expanduser()), job=job.recipe())
        ranges = read_ranges_file(Path(job.ranges).expanduser()) if job.ranges else None
        from emb_tool.model.encoder import Encoder

        started = time.perf_counter()
        checkpoint = Checkpoint.open(job.model)
        layout = checkpoint.layout
        self.prompt = check_prompt(layout, job.prompt_name, job.model, self.report.warn)
        model = Encoder.open(checkpoint, runtime, max_length=job.max_length)
        self.model = model.route(job.prompt_name)
        self.opened = time.perf_counter()
        self.report.timings["open"] = self.opened - started
        for sentence in model.checkpoint.warnings:
            self.report.warn(sentence)
        self.user_ranges = ranges
        self.target = file.partial / file.path.name
        self.state_file = file.state / "place.json"
        self.state = EncodeState(model=model.checkpoint.fingerprint())
        self.digest = blake2b(digest_size=16)
        self.resumed_at: int | None = None
        if file.resumed and self.state_file.exists():
            state = EncodeState.read(self.state_file)
            if state.model != self.state.model:
                raise InvalidInput(
                    f"{job.model} has changed since {file.partial.name} was begun",
                    "put the model back, or begin anew with --overwrite",
                )
            self.state = state
            self.resumed_at = state.texts

    def go(self) -> Report:
        """Encode the remaining texts and fill the report."""
        job, state = self.job, self.state
        blocks = self._stream(self._remaining())
        if state.code:
            code = code_from_json(state.code, str(self.state_file))
        else:
            ranges, blocks = self._ranges(blocks)
            code = make_code(job.precision, self.model.dim, ranges, job.seed)
            state.code = code.to_json()
        writer = make_writer(self.target, code, self.file.state, state.saved)
        seconds_before, saved = state.seconds, time.perf_counter()
        for texts, vectors, truncated in blocks:
            if isinstance(code, ScalarCode):
                state.outside += code.ranges.count_outside(vectors)
            writer.append(texts, code.encode(vectors))
            state.texts += len(texts)
            for text in texts:
                _add(self.digest, text)
            state.truncated += truncated
            state.seconds = seconds_before + time.perf_counter() - self.opened
            if time.perf_counter() - saved >= SAVE_SECONDS:
                state.saved, state.digest = writer.save(), self.digest.hexdigest()
                state.save(self.state_file)
                saved = time.perf_counter()
        writer.finish()
        self._describe(code)
        return self.report

    def _remaining(self) -> Iterator[Record]:
        """The records that are not encoded yet; checks that encoded records have not changed."""
        job, state = self.job, self.state
        records = islice(self._read(job.texts), job.limit)
        for record in islice(records, state.texts):
            _add(self.digest, record.text)
        if state.texts and self.digest.hexdigest() != state.digest:
            raise InvalidInput(
                f"the texts have changed: the first {state.texts:,} are not those whose vectors"
                f" are in {self.file.partial.name}",
                "give the same texts, or begin anew with --overwrite",
            )
        return records

    def _read(self, sources: Sequence[str]) -> Iterator[Record]:
        options = TextOptions.of(self.job)
        return read_texts(sources, options, note=lambda *field: self.note(field_sentence(*field)))

    def _stream(self, records: Iterable[Record]) -> Iterator[Block]:
        """Encode records, block by block."""
        job = self.job
        for block in blocks(records):
            texts, before = [record.text for record in block], self.model.truncated
            vectors = self.model.encode(
                texts, self.prompt, batch_tokens=job.batch_tokens, progress=self.progress
            )
            finite = np.isfinite(vectors).all(axis=1)
            if not finite.all():
                bad = block[int(np.argmin(finite))]
                why, hint = self.model.explain_not_finite(bad.text, self.prompt)
                raise InvalidInput(
                    f"{bad.where}: {job.model} gives NaN or infinity for this text"
                    f" (row {bad.row}){why}",
                    hint,
                )
            yield Block(texts, vectors, self.model.truncated - before)

    def _ranges(self, blocks: Iterator[Block]) -> tuple[Ranges | None, Iterator[Block]]:
        """Ranges of the codes, and the blocks, including those from which ranges were computed."""
        job, state, ranges = self.job, self.state, self.user_ranges
        if job.precision not in CALIBRATED:
            return None, blocks
        state.ranges = job.ranges
        if ranges is None and job.calibrate:
            calibration = self._stream(self._read(job.calibrate))
            ranges = reduce(
                Ranges.merge, (Ranges.from_vectors(block.vectors) for block in calibration)
            )
            state.ranges = "the calibration texts"
        elif ranges is None:
            ranges = read_ranges(self.model.checkpoint.path, self.model.dim)
            state.ranges = "stored with the model"
        if ranges is None:
            head = list(_first(blocks, CALIBRATION_TEXTS))
            blocks = chain(head, blocks)
            ranges = Ranges.from_vectors(np.concatenate([block.vectors for block in head]))
            state.ranges = "the texts themselves"
            state.warnings.append(
                f"{job.model} stores no ranges: they were computed from the first {ranges.texts:,} "
                "texts; to encode other texts to compatible codes, give --ranges with the file "
                "beside this output"
            )
        return ranges, blocks

    def _describe(self, code: Code) -> None:
        """Write the other files and fill the report."""
        job, model, state, report = self.job, self.model, self.state, self.report
        if self.file.path.suffix == ".npy" and code.precision not in PLAIN:
            write_json(self.file.partial / metadata_path(self.file.path).name, code.to_json())
        facts = provenance(
            job=job.recipe(),
            inputs={job.model: model.checkpoint.hashes(), **hashes(job.texts)},
            runtime=self.runtime.facts(),
            papers=[],
            extra={"digest": job.digest(), "texts": state.texts, "resumed_at": self.resumed_at},
        )
        write_json(self.file.partial / provenance_of(self.file.path).name, facts)
        describe(report, job, model, code, state, self.target.stat().st_size)
        report.tables.append(Table(f"prompts: texts {format_prompt(self.prompt)}", []))
        report.facts |= {"prompts": {"texts": self.prompt}, "resumed_at": self.resumed_at}
        report.measures.append(Measure("peak memory", self.runtime.peak_memory(), "B"))


def _add(digest: Any, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    digest.update(len(data).to_bytes(8, "little") + data)


def _first(stream: Iterator[Block], texts: int) -> Iterator[Block]:
    """Blocks with at least a number of texts in total."""
    count = 0
    while count < texts and (block := next(stream, None)) is not None:
        count += len(block.texts)
        yield block


def blocks(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Group records into lists of bounded size."""
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
