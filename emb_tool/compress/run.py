"""One compression: a chain of steps on a draft, then the files, then what they are worth."""

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
"""Texts whose vectors give the ranges for eight bits."""


RETENTION_WARNING = 0.9
"""Share of the ten nearest neighbors below which the loss is shouted."""


class Heldout(NamedTuple):
    """Texts that chains are compared on, and their vectors before anything was done."""

    texts: list[str]
    prompt: str
    vectors: np.ndarray


class CompressRunner(CheckpointRunner):
    """What the engine carries out for `embtool compress`.

    Args:
        job: The resolved job.
        options: How it is run.
        report: Filled on the way.
    """

    job: CompressJob

    def __init__(self, job: CompressJob, options: Options, report: Report) -> None:
        super().__init__(job, options, report)
        self.setup = Setup(job, options.progress)
        self.steps = self.setup.steps
        self.papers = list(dict.fromkeys(step.paper for step in self.steps if step.paper))
        self.target = job.target
        self.missed: str | None = None
        self._work: CalibrationContext | None = None
        self._heldout: Heldout | None = None
        self._reference: ModelPair | None = None

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """The checkpoints read, by the name that the user gave them."""
        return self.setup.inputs

    @property
    def relation(self) -> str:
        """Quantized where a step packs weights; the chain is the one that a search has chosen."""
        packs = any(isinstance(step, CompressStep) and step.packs for step in self.job.method)
        return "quantized" if packs else "finetune"

    @property
    def before(self) -> Checkpoint:
        """The model."""
        return self.setup.body

    def data(self) -> dict[str, dict[str, str]]:
        """Digests of the local files of texts."""
        return self.setup.data()

    def plan(self) -> Plan:
        """Every refusal that headers, settings and local files can give."""
        return self.setup.plan()

    # -- the work ---------------------------------------------------------------------------------

    def run(self, context: RunContext) -> None:
        """Write the compressed model; of several processes rank 0 does it alone, all of them tune.

        A resumed run repeats the same steps, and reads what it finds in `context.state`: results of
        steps, chains that a search has measured, the state of the training.
        """
        folder, state, runtime = context.folder, context.state, context.torch
        runtime.on_main(lambda: self._compress(folder, state, runtime.alone))
        if self.job.tune:
            with self._timed("tune_seconds"):
                told = tune_files(
                    folder,
                    self.setup.body,
                    self.job,
                    state,
                    runtime,
                    self.progress,
                    self.setup.tasks.dev,
                )
                self.report.facts["tuning"] = told
        if self.job.texts and not self.setup.is_bare:
            with self._timed("ranges_seconds"), self.progress.task("measuring the ranges"):
                runtime.on_main(lambda: self._write_ranges(folder))

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.report.timings[name] = time.perf_counter() - started

    def _compress(self, folder: Path, state: Path, runtime: Runtime) -> None:
        """All but the tuning: read the texts, carry out the steps, write what they make."""
        remove_folder(folder, state, *state.glob("step-*"))
        start = CheckpointEditor.of(self.setup.body)
        with self._timed("read_seconds"):
            work = self._work = self._begin(start, state, runtime)
        with self._timed("calibrate_seconds"):
            draft = run_steps(self.steps, start, work)
            if self.job.searches:
                draft = self._search(draft, work, state)
            self._tell_taken(work.cache)
        work.close()
        if self.job.format == "compressed-tensors":
            export(draft)
        with self._timed("write_seconds"):
            self._write(draft, folder)
            if self.setup.partner is not None:
                self.setup.shaped(self.setup.partner, draft.rotations).write(folder / "partner")
            if self.job.tune:
                write_teacher(self.setup.shaped(self.setup.body, draft.rotations), state)

    def _begin(self, start: CheckpointEditor, state: Path, runtime: Runtime) -> CalibrationContext:
        """What steps work with; and what chains, and the result, are measured on."""
        from emb_tool.compress.calibration import CalibrationContext

        job, kept = self.job, ResultCache(state / "kept")
        if self.setup.is_bare:  # tables alone: there is no model to run
            return CalibrationContext([], runtime, self.progress, state, job.seed, cache=kept)
        if not job.texts and any(step.calibrated for step in self.steps):
            self.progress.warn(
                "no --texts: calibrating on sentences of Python's documentation; give texts "
                "like those that will be searched, the result depends on them"
            )
        with self.progress.task("reading the texts"):
            parts = TextSplits.from_job(job, state, self.progress)
        self.report.facts["texts"] = parts.counts
        work = CalibrationContext(
            parts.calibration, runtime, self.progress, state, job.seed, job.prompt_name, kept,
            parts.report,
        )  # fmt: skip
        prompt = work.prompt(work.encoder(start))
        np.save(state / "heldout.npy", work.vectors(start, parts.report))
        lines = [json.dumps({"text": text, "prompt": prompt}) + "\n" for text in parts.report]
        (state / "heldout.jsonl").write_text("".join(lines), encoding="utf-8")
        if job.searches and not job.dev:
            self._heldout = Heldout(parts.choice, prompt, work.vectors(start, parts.choice))
        return work

    def _tell_taken(self, kept: ResultCache) -> None:
        """Say from where a run that was killed goes on."""
        if kept.hits:
            self.report.facts["taken_up"] = dict(kept.hits)
            told = ", ".join(f"{count:,} {kind}" for kind, count in kept.hits.items())
            self.progress.say(f"taken up from the run before: {told}")

    def _write(self, draft: CheckpointEditor, folder: Path) -> None:
        with self.progress.task("writing", draft.nbytes, "B") as advance:
            draft.write(folder, advance)
        self.report.facts |= {"steps": list(draft.notes), **draft.facts}

    def _write_ranges(self, folder: Path) -> None:
        """Ranges of the new vectors, for `embtool encode --precision int8`."""
        from emb_tool.checkpoint.ranges import Ranges, write_ranges
        from emb_tool.model.encoder import Encoder

        work = self._work
        assert work is not None
        written = Checkpoint.open(folder)
        written.name = self.setup.body.name  # what fails on both is a fault of the input
        encoder = Encoder.open(written, work.runtime)
        vectors = encoder.encode(work.sample[:RANGE_TEXTS], work.prompt(encoder))
        write_ranges(folder, Ranges.from_vectors(vectors))

    def _search(
        self, draft: CheckpointEditor, work: CalibrationContext, state: Path
    ) -> CheckpointEditor:
        """Find the chain that `--target` asks for."""
        from emb_tool.compress.search import ChainSearch

        job, vocabulary = self.job, self._tries_vocabulary(work)
        measure = partial(self._kept, work=work)
        search = ChainSearch(draft, work, measure, state, vocabulary=vocabulary)
        if job.target is not None:
            aim = f"--target {job.target / 1e6:g} MB"
            found = search.find_best(job.target)
            chosen = found or search.measured()[-1]
            gap = (job.target - chosen.bytes) / job.target
            said = (
                f"{chosen.bytes / 1e6:,.2f} MB, {abs(gap):.1%} {'below' if gap >= 0 else 'ABOVE'}"
            )
        else:
            assert job.target_retention is not None
            aim = f"--target-retention {job.target_retention:g}"
            found = search.find_smallest(job.target_retention)
            chosen = found or max(search.measured(), key=lambda chain: chain.score)
            said = f"{chosen.bytes / 1e6:,.2f} MB for"
        if found is None:
            self.missed = f"{aim} cannot be met; the nearest is {chosen.spec}"
        if self._heldout is not None:
            by = f"neighbors kept on {len(self._heldout.texts):,} held-out texts"
            by += " that are not reported on"
        else:
            by = "the least retention in " + ", ".join(t.label for t in self.setup.tasks.dev)
            by += " (--dev)"
        self.progress.say(f"chosen by {by}: {chosen.spec} ({said} {aim})")
        # the recipe that is recorded makes the same model again without a search
        steps = (*self.steps, *chosen.steps)
        nothing = {"target": None, "target_retention": None, "plot": None}
        dev = job.dev if job.tune else ()
        self.job = job.model_copy(update={"method": steps, "dev": dev, **nothing})
        self.papers = list(dict.fromkeys(step.paper for step in steps if step.paper))
        self.report.facts["search"] = {
            "aim": aim,
            "by": by,
            "chosen": chosen.spec,
            "bytes": chosen.bytes,
            "kept": chosen.retention,
            "tried": search.to_dicts(),
        }
        self.report.tables.append(search.table(chosen))
        self.report.tables.append(Table("chosen by", [""], [[by]]))
        if job.plot:
            search.plot(job.plot, self.setup.body.weight_bytes(), chosen)
        return search.draft(chosen)

    def _tries_vocabulary(self, work: CalibrationContext) -> bool:
        """Whether there are texts enough for `vocab` to know what others of their kind need."""
        enough = bool(self.job.texts) and len(work.texts) >= MIN_TEXTS
        if not enough:
            given = f"{len(work.texts):,} texts" if self.job.texts else "no --texts"
            self.progress.say(
                f"vocab is not tried: it takes {MIN_TEXTS:,} --texts to tell which tokens"
                f" are needed, and there are {given}"
            )
        return enough

    def _kept(self, folder: Path, work: CalibrationContext) -> float:
        """The least share that a written model keeps: of the tasks, or of the neighbors."""
        from emb_tool.evaluate.agreement import NEIGHBOURS, similarity_metrics
        from emb_tool.evaluate.model_pair import ModelPair
        from emb_tool.model.encoder import Encoder

        encoder = Encoder.open(folder, work.runtime)
        if self._heldout is not None:
            vectors = encoder.encode(self._heldout.texts, self._heldout.prompt)
            # of few texts the ten nearest are most of the others, whatever the model
            near = min(NEIGHBOURS, max(1, (len(vectors) - 1) // 10))
            return similarity_metrics(vectors, self._heldout.vectors, near)["neighbour overlap"]
        if self._reference is None:
            self._reference = ModelPair.of(
                Encoder.open(self.setup.body, work.runtime), self.setup.body.name
            )
        measures = run_tasks(
            self.setup.tasks.dev, ModelPair.of(encoder, folder.name), self._reference
        )
        kept = [m.value for m in measures if m.name == "retention"]
        return min(value / 100 if value is not None else 0.0 for value in kept)

    # -- after the files are written --------------------------------------------------------------

    def check(self, context: RunContext, target: CheckTarget) -> Check:
        """The vectors of held-out texts against the input's; or the tables that were packed."""
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
        """The table on top: what went in, what came out; and the gate on size."""
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
        kept = report.value("neighbour overlap", of="held-out texts")
        if kept is not None and kept < RETENTION_WARNING:
            loss = (
                f"MUCH IS LOST: {kept:.1%} of the ten nearest neighbors are kept, less than"
                f" {RETENTION_WARNING:.0%}; what it finds will differ from what the input finds"
            )
            report.facts["loss"] = loss
            self.progress.warn(f"{loss}; allow more bytes, or --tune it")
        limit, missed = self.job.max_bytes, [report.gate, self.missed]
        if limit is not None and after > limit:
            missed.append(f"{after:,} bytes of weights, more than --max-bytes {limit:,}")
        report.gate = "; ".join(said for said in missed if said) or None
