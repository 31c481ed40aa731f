"""Runner of `embtool compress`: apply a chain of steps, write the files, measure them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from emb_tool.checkpoint.output import remove_folder
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.checkpoint.result_cache import ResultCache
from emb_tool.compress.compressed_tensors import export
from emb_tool.compress.job import CompressJob
from emb_tool.compress.setup import Setup
from emb_tool.compress.step import CompressStep, run_steps
from emb_tool.compress.text_splits import TextSplits
from emb_tool.compress.tuning import tune_files, write_teacher
from emb_tool.compress.vocab import MIN_TEXTS
from emb_tool.editing import CheckpointEditor
from emb_tool.evaluate.heldout_check import HeldoutCheck
from emb_tool.evaluate.task import run_tasks
from emb_tool.evaluate.tensors_check import TablesCheck
from emb_tool.plan import Plan
from emb_tool.report import Report, Table
from emb_tool.runner import CheckpointRunner, Options, RunContext

if TYPE_CHECKING:
    from emb_tool.compress.calibration import CalibrationContext
    from emb_tool.evaluate.model_pair import ModelPair
    from emb_tool.runtime.check_process import Check, CheckTarget
    from emb_tool.runtime.device import Runtime


RANGE_TEXTS = 1024
"""Texts whose vectors determine the ranges of int8 vectors."""


RETENTION_WARNING = 0.9
"""Neighbor overlap below which the report has a warning."""


class Heldout(NamedTuple):
    """Texts on which chains are compared, with the vectors of the input model."""

    texts: list[str]
    prompt: str
    vectors: np.ndarray


class CompressRunner(CheckpointRunner):
    """Runs a `CompressJob`.

    Args:
        job: The resolved job.
        options: Options of the run.
        report: Report to fill in.
    """

    job: CompressJob

    def __init__(self, job: CompressJob, options: Options, report: Report) -> None:
        super().__init__(job, options, report)
        self.setup = Setup(job, options.progress)
        self.steps = self.setup.steps
        self.papers = list(dict.fromkeys(step.paper for step in self.steps if step.paper))
        self.target = job.target
        self.missed: str | None = None
        self._calibration: CalibrationContext | None = None
        self._heldout: Heldout | None = None
        self._reference: ModelPair | None = None

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """The checkpoints that are read, by the name given by the user."""
        return self.setup.inputs

    @property
    def relation(self) -> str:
        """`quantized` if a step of the chain packs weights, otherwise `finetune`."""
        packs = any(isinstance(step, CompressStep) and step.packs for step in self.job.method)
        return "quantized" if packs else "finetune"

    @property
    def before(self) -> Checkpoint:
        """The input model."""
        return self.setup.body

    def data(self) -> dict[str, dict[str, str]]:
        """Digests of the local text files."""
        return self.setup.data()

    def plan(self) -> Plan:
        """Plan the output and validate headers, settings and local files."""
        return self.setup.plan()

    # -- run ---------------------------------------------------------------------------------------

    def run(self, context: RunContext) -> None:
        """Write the compressed model on rank 0; all processes tune it.

        A resumed run repeats the same steps and reuses the contents of `context.state`: results of
        steps, measured chains of a search, the state of the training.
        """
        folder, state, runtime = context.folder, context.state, context.torch
        runtime.on_main(lambda: self._compress(folder, state, runtime.alone))
        if self.job.tune:
            with self._timed("tune_seconds"):
                tuning = tune_files(
                    folder,
                    self.setup.body,
                    self.job,
                    state,
                    runtime,
                    self.progress,
                    self.setup.tasks.dev,
                )
                self.report.facts["tuning"] = tuning
        if self.job.texts and not self.setup.is_bare:
            with self._timed("ranges_seconds"), self.progress.task("measuring the ranges"):
                runtime.on_main(lambda: self._write_ranges(folder))

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.report.timings[name] = time.perf_counter() - started

    def _compress(self, folder: Path, state: Path, runtime: Runtime) -> None:
        """Read the texts, apply the steps and write the result."""
        remove_folder(folder, state, *state.glob("step-*"))
        start = CheckpointEditor.of(self.setup.body)
        with self._timed("read_seconds"):
            calibration = self._calibration = self._begin(start, state, runtime)
        with self._timed("calibrate_seconds"):
            draft = run_steps(self.steps, start, calibration)
            if self.job.searches:
                draft = self._search(draft, calibration, state)
            self._report_cache_hits(calibration.cache)
        calibration.close()
        if self.job.format == "compressed-tensors":
            export(draft)
        with self._timed("write_seconds"):
            self._write(draft, folder)
            if self.setup.partner is not None:
                self.setup.shaped(self.setup.partner, draft.rotations).write(folder / "partner")
            if self.job.tune:
                write_teacher(self.setup.shaped(self.setup.body, draft.rotations), state)

    def _begin(self, start: CheckpointEditor, state: Path, runtime: Runtime) -> CalibrationContext:
        """Read the texts; create the context of the steps and the held-out vectors."""
        from emb_tool.compress.calibration import CalibrationContext

        job, cache = self.job, ResultCache(state / "cache")
        if self.setup.is_bare:  # only tables, no model
            return CalibrationContext([], runtime, self.progress, state, job.seed, cache=cache)
        if not job.texts and any(step.calibrated for step in self.steps):
            self.progress.warn(
                "no --texts: calibrating on sentences of Python's documentation; give texts "
                "like those that will be searched, because the result depends on them"
            )
        with self.progress.task("reading the texts"):
            splits = TextSplits.from_job(job, state, self.progress)
        self.report.facts["texts"] = splits.counts
        calibration = CalibrationContext(
            splits.calibration, runtime, self.progress, state, job.seed, job.prompt_name, cache,
            splits.report,
        )  # fmt: skip
        prompt = calibration.prompt(calibration.encoder(start))
        np.save(state / "heldout.npy", calibration.vectors(start, splits.report))
        lines = [json.dumps({"text": text, "prompt": prompt}) + "\n" for text in splits.report]
        (state / "heldout.jsonl").write_text("".join(lines), encoding="utf-8")
        if job.searches and not job.dev:
            self._heldout = Heldout(
                splits.choice, prompt, calibration.vectors(start, splits.choice)
            )
        return calibration

    def _report_cache_hits(self, cache: ResultCache) -> None:
        """Report the results of an interrupted run that are reused."""
        if cache.hits:
            self.report.facts["reused"] = dict(cache.hits)
            results = ", ".join(f"{count:,} {kind}" for kind, count in cache.hits.items())
            self.progress.say(f"reused from the interrupted run: {results}")

    def _write(self, draft: CheckpointEditor, folder: Path) -> None:
        with self.progress.task("writing", draft.nbytes, "B") as advance:
            draft.write(folder, advance)
        self.report.facts |= {"steps": list(draft.notes), **draft.facts}

    def _write_ranges(self, folder: Path) -> None:
        """Ranges of the new vectors, for `embtool encode --precision int8`."""
        from emb_tool.checkpoint.ranges import Ranges, write_ranges
        from emb_tool.model.encoder import Encoder

        calibration = self._calibration
        assert calibration is not None
        written = Checkpoint.open(folder)
        written.name = self.setup.body.name  # for messages
        encoder = Encoder.open(written, calibration.runtime)
        vectors = encoder.encode(calibration.sample[:RANGE_TEXTS], calibration.prompt(encoder))
        write_ranges(folder, Ranges.from_vectors(vectors))

    def _search(
        self, draft: CheckpointEditor, calibration: CalibrationContext, state: Path
    ) -> CheckpointEditor:
        """Search the chain for `--target` or `--target-retention`."""
        from emb_tool.compress.search import ChainSearch

        job, vocabulary = self.job, self._may_trim_vocabulary(calibration)
        measure = partial(self._retention, calibration=calibration)
        search = ChainSearch(draft, calibration, measure, state, vocabulary=vocabulary)
        if job.target is not None:
            aim = f"--target {job.target / 1e6:g} MB"
            best = search.find_best(job.target)
            chosen = best or search.measured()[-1]
            gap = (job.target - chosen.bytes) / job.target
            result = (
                f"{chosen.bytes / 1e6:,.2f} MB, {abs(gap):.1%} {'below' if gap >= 0 else 'ABOVE'}"
            )
        else:
            assert job.target_retention is not None
            aim = f"--target-retention {job.target_retention:g}"
            best = search.find_smallest(job.target_retention)
            chosen = best or max(search.measured(), key=lambda chain: chain.score)
            result = f"{chosen.bytes / 1e6:,.2f} MB for"
        if best is None:
            self.missed = f"{aim} cannot be met; the closest is {chosen.spec}"
        if self._heldout is not None:
            by = f"neighbor overlap on {len(self._heldout.texts):,} held-out texts"
            by += " that the report does not use"
        else:
            by = "the lowest retention in " + ", ".join(t.label for t in self.setup.tasks.dev)
            by += " (--dev)"
        self.progress.say(f"chosen by {by}: {chosen.spec} ({result} {aim})")
        # the recorded recipe gives the same model without a search
        steps = (*self.steps, *chosen.steps)
        unset = {"target": None, "target_retention": None, "plot": None}
        dev = job.dev if job.tune else ()
        self.job = job.model_copy(update={"method": steps, "dev": dev, **unset})
        self.papers = list(dict.fromkeys(step.paper for step in steps if step.paper))
        self.report.facts["search"] = {
            "aim": aim,
            "by": by,
            "chosen": chosen.spec,
            "bytes": chosen.bytes,
            "retention": chosen.retention,
            "tried": search.to_dicts(),
        }
        self.report.tables.append(search.table(chosen))
        self.report.tables.append(Table("chosen by", [""], [[by]]))
        if job.plot:
            search.plot(job.plot, self.setup.body.weight_bytes(), chosen)
        return search.draft(chosen)

    def _may_trim_vocabulary(self, calibration: CalibrationContext) -> bool:
        """Whether there are enough texts to choose the vocabulary from."""
        enough = bool(self.job.texts) and len(calibration.texts) >= MIN_TEXTS
        if not enough:
            given = f"{len(calibration.texts):,} texts" if self.job.texts else "no --texts"
            self.progress.say(
                f"vocab is not tried: at least {MIN_TEXTS:,} --texts are needed to choose tokens,"
                f" and there are {given}"
            )
        return enough

    def _retention(self, folder: Path, calibration: CalibrationContext) -> float:
        """The lowest retention of a written model over the tasks, or its neighbor overlap."""
        from emb_tool.evaluate.agreement import NEIGHBORS, similarity_metrics
        from emb_tool.evaluate.model_pair import ModelPair
        from emb_tool.model.encoder import Encoder

        encoder = Encoder.open(folder, calibration.runtime)
        if self._heldout is not None:
            vectors = encoder.encode(self._heldout.texts, self._heldout.prompt)
            # among few texts, the ten nearest are most of the others for any model
            neighbors = min(NEIGHBORS, max(1, (len(vectors) - 1) // 10))
            return similarity_metrics(vectors, self._heldout.vectors, neighbors)["neighbor overlap"]
        if self._reference is None:
            self._reference = ModelPair.of(
                Encoder.open(self.setup.body, calibration.runtime), self.setup.body.name
            )
        measures = run_tasks(
            self.setup.tasks.dev, ModelPair.of(encoder, folder.name), self._reference
        )
        retention = [m.value for m in measures if m.name == "retention"]
        return min(value / 100 if value is not None else 0.0 for value in retention)

    # -- after the files are written --------------------------------------------------------------

    def check(self, context: RunContext, target: CheckTarget) -> Check:
        """Compare the vectors of held-out texts with the input's, or the tables of a bare file."""
        state, source = context.state, self.setup.body.path
        if self.setup.is_bare:
            return TablesCheck(target=target, source=source.resolve())
        return HeldoutCheck(
            target=target,
            texts=state / "heldout.jsonl",
            vectors=state / "heldout.npy",
            against="the input's vectors",
            rotated=any(step.name == "rotate" for step in self.job.method),
            tasks=self.job.eval,
            reference=source if self.job.eval else None,
            min_retention=self.job.min_retention,
        )

    def summarize(self, report: Report) -> None:
        """Add the table of sizes before and after, and check the limits of size and quality."""
        before, after = (int(report.value(name) or 0) for name in ("weights before", "weights"))
        share = f"{after / before:.1%}"
        table = Table("compressed", ["", "before", "after", ""])
        table.rows.append(["weights", f"{before / 1e6:,.2f} MB", f"{after / 1e6:,.2f} MB", share])
        if self.target is not None:
            row = ["of --target", "", f"{self.target / 1e6:,.2f} MB", f"{after / self.target:.1%}"]
            table.rows.append(row)
        resident = report.value("resident")
        if resident is not None:
            table.rows.append(["resident weights", "", f"{resident / 1e6:,.2f} MB", ""])
        if not self.setup.is_bare:
            old, new = report.facts["parts"]["before"], report.facts["parts"]["after"]
            for part in dict.fromkeys([*old, *new]):
                sizes = [parts.get(part, {"bytes": 0})["bytes"] for parts in (old, new)]
                row = [f"{size / 1e6:,.2f} MB" if size else "" for size in sizes]
                share = f"{sizes[1] / sizes[0]:.1%}" if all(sizes) else ""
                table.rows.append([f"  {part}", *row, share])
        dims = report.value("dimensions")
        if dims is not None:
            table.rows.append(["dimensions", str(self.setup.body.layout.dim), str(dims), ""])
        report.tables.insert(0, table)
        steps = Table("steps", [""], [[note] for note in report.facts["steps"]])
        if steps.rows:
            report.tables.insert(1, steps)
        overlap = report.value("neighbor overlap", of="held-out texts")
        if overlap is not None and overlap < RETENTION_WARNING:
            loss = (
                f"LARGE LOSS: {overlap:.1%} of the ten nearest neighbors are the input's, less than"
                f" {RETENTION_WARNING:.0%}; search results will differ"
            )
            report.facts["loss"] = loss
            self.progress.warn(f"{loss}; allow more bytes, or --tune it")
        limit, missed = self.job.max_bytes, [report.gate, self.missed]
        if limit is not None and after > limit:
            missed.append(f"{after:,} bytes of weights, more than --max-bytes {limit:,}")
        report.gate = "; ".join(reason for reason in missed if reason) or None
