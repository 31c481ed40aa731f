"""One compression: a chain of steps on a draft, then the files, then what they are worth."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.compressed_tensors import export
from emb_tool.compress.job import CompressJob
from emb_tool.compress.setup import Setup
from emb_tool.data.corpus import Corpus
from emb_tool.draft import Draft
from emb_tool.evaluate.task import run_tasks
from emb_tool.ops.parts import parts_of
from emb_tool.plan import Plan
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report, Table
from emb_tool.surgery import carry_out

if TYPE_CHECKING:
    from emb_tool.calibration import Work
    from emb_tool.evaluate.pair import Pair
    from emb_tool.runtime import Runtime


RANGE_TEXTS = 1024
"""Texts whose vectors give the ranges for eight bits."""


class Heldout(NamedTuple):
    """Texts that nothing is calibrated on, and their vectors before anything was done."""

    texts: list[str]
    prompt: str
    vectors: np.ndarray


class Compress:
    """What the engine carries out for `embtool compress`.

    Args:
        job: The resolved job.
        progress: Where bars and warnings go.
        report: Filled on the way.
    """

    def __init__(self, job: CompressJob, progress: Progress, report: Report) -> None:
        self.job, self.progress, self.report = job, progress, report
        self.setup = Setup(job, progress)
        self.steps = self.setup.steps
        self.papers = list(dict.fromkeys(step.paper for step in self.steps if step.paper))
        self.missed: str | None = None
        self.folder = Path(job.output)
        self._reference: Pair | None = None

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """The checkpoints read, by the name that the user gave them."""
        return self.setup.inputs

    def data(self) -> dict[str, dict[str, str]]:
        """Digests of the local files of texts."""
        return self.setup.data()

    def plan(self) -> Plan:
        """Every refusal that headers, settings and local files can give."""
        return self.setup.plan()

    # -- the work ---------------------------------------------------------------------------------

    def work(self, folder: Path, state: Path, runtime: Runtime) -> None:
        """Write the compressed model into `folder`."""
        clock = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal clock
            now = time.perf_counter()
            self.report.timings[name] = now - clock
            clock = now

        _clear(folder, state)
        start = Draft.of(self.setup.body)
        if self.setup.is_bare:
            self._work_on_tables(start, folder, state, runtime)
            return
        work, heldout = self._texts(state, runtime)
        goal = work.vectors(start, heldout)
        prompt = work.prompt(work.encoder(start))
        np.save(state / "heldout.npy", goal)
        lines = [json.dumps({"text": text, "prompt": prompt}) + "\n" for text in heldout]
        (state / "heldout.jsonl").write_text("".join(lines), encoding="utf-8")
        lap("read_seconds")
        draft, searches = carry_out(self.steps, start, work), self.job.searches
        if searches:
            self._search(draft, work, Heldout(heldout, prompt, goal), folder, state)
        lap("calibrate_seconds")
        work.close()
        if self.job.format == "compressed-tensors":
            export(draft)
        if not searches:
            self._write(draft, folder)
        if self.setup.partner is not None:
            self.setup.shaped(self.setup.partner, draft.values).write(folder / "partner")
        lap("write_seconds")
        if self.job.tune:
            from emb_tool.compress.tuning import tune_files

            shaped = self.setup.shaped(self.setup.body, draft.values)
            self.report.facts["tuning"] = tune_files(
                folder, shaped, self.job, state, runtime, self.progress
            )
            lap("tune_seconds")
        if self.job.texts:
            self._write_ranges(folder, work)
            lap("ranges_seconds")

    def _work_on_tables(self, draft: Draft, folder: Path, state: Path, runtime: Runtime) -> None:
        """Tables of a bare file: there is no model to run."""
        from emb_tool.calibration import Work

        clock = time.perf_counter()
        work = Work([], runtime, self.progress, state, self.job.seed)
        draft = carry_out(self.steps, draft, work)
        self.report.timings["calibrate_seconds"] = time.perf_counter() - clock
        clock = time.perf_counter()
        self._write(draft, folder)
        self.report.timings["write_seconds"] = time.perf_counter() - clock

    def _write(self, draft: Draft, folder: Path) -> None:
        with self.progress.task("writing", draft.nbytes, "B") as advance:
            draft.write(folder, advance)
        self.report.facts |= {"steps": list(draft.notes), **draft.facts}

    def _write_ranges(self, folder: Path, work: Work) -> None:
        """Ranges of the new vectors, for `embtool encode --precision int8`."""
        from emb_tool.checkpoint.ranges import Ranges, write_ranges
        from emb_tool.encoder import Encoder

        encoder = Encoder.open(folder, work.runtime)
        vectors = encoder.encode(work.sample[:RANGE_TEXTS], work.prompt(encoder))
        write_ranges(folder, Ranges.of(vectors))

    def _search(
        self, draft: Draft, work: Work, heldout: Heldout, folder: Path, state: Path
    ) -> None:
        """Find the chain that `--target` asks for; its files become the output."""
        from emb_tool.compress.search import Search

        job = self.job
        search = Search(draft, work, lambda path: self._kept(path, heldout, work), state)
        if job.target is not None:
            aim = f"--target {job.target / 1e6:g} MB"
            found = search.below(job.target)
        else:
            assert job.target_retention is not None
            aim = f"--target-retention {job.target_retention:g}"
            found = search.keeping(job.target_retention)
        chosen = found or search.nearest()
        assert chosen.folder is not None
        for path in chosen.folder.iterdir():
            path.rename(folder / path.name)
        if found is None:
            self.missed = f"{aim} cannot be met; the nearest is {chosen.spelled}"
        # the recipe that is recorded makes the same model again without a search
        steps = (*self.steps, *chosen.steps)
        self.job = job.model_copy(
            update={"method": steps, "target": None, "target_retention": None, "plot": None}
        )
        self.papers = list(dict.fromkeys(step.paper for step in steps if step.paper))
        self.report.facts |= {
            "steps": chosen.notes,
            "search": {"aim": aim, "chosen": chosen.spelled, "tried": search.told()},
        }
        self.report.tables.append(search.table(chosen))
        if job.plot:
            search.draw(job.plot, self.setup.body.weight_bytes(), chosen)

    def _kept(self, folder: Path, heldout: Heldout, work: Work) -> float:
        """The least share that a written model keeps: of the tasks, or of the neighbours."""
        from emb_tool.encoder import Encoder
        from emb_tool.evaluate.agreement import likeness
        from emb_tool.evaluate.pair import Pair

        encoder = Encoder.open(folder, work.runtime)
        if not self.setup.tasks:
            vectors = encoder.encode(heldout.texts, heldout.prompt)
            return likeness(vectors, heldout.vectors)["neighbour overlap"]
        if self._reference is None:
            self._reference = Pair.of(
                Encoder.open(self.setup.body, work.runtime), self.setup.body.name
            )
        measures = run_tasks(self.setup.tasks, Pair.of(encoder, folder.name), self._reference)
        kept = [m.value for m in measures if m.name == "retention"]
        return min(value / 100 if value is not None else 0.0 for value in kept)

    def _texts(self, state: Path, runtime: Runtime) -> tuple[Work, list[str]]:
        """Calibration, and the texts that the result is measured on."""
        from emb_tool.calibration import Work

        job = self.job
        sources = job.texts
        if not sources:
            from emb_tool.data.sample import sample_texts

            path = state / "sample.jsonl"
            lines = [json.dumps({"text": text}) for text in sample_texts()]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            sources = (str(path),)
            if any(step.calibrated for step in self.steps):
                self.progress.warn(
                    "no --texts: calibrating on sentences of Python's documentation; give texts "
                    "like those that will be searched, the result depends on them"
                )
        corpus = Corpus.build(
            state / "corpus", sources, field=job.text_field, limit=job.limit, holdout=job.holdout
        )
        self.report.facts["texts"] = dict(corpus.counts)
        texts = corpus.texts(map(int, corpus.train))
        heldout = corpus.texts(map(int, corpus.heldout))
        work = Work(texts, runtime, self.progress, state, job.seed, job.prompt_name)
        return work, heldout

    # -- after the files are written --------------------------------------------------------------

    def check(self, folder: Path, state: Path) -> dict[str, Any]:
        """What the engine's child process is to measure on the written files."""
        self.folder = folder
        if self.setup.is_bare:
            return {"folder": str(folder), "tables": str(self.setup.body.path.resolve())}
        return {
            "folder": str(folder),
            "heldout": [str(state / "heldout.jsonl"), str(state / "heldout.npy")],
            "against": "the input's vectors",
            "tasks": list(self.job.eval),
            "reference": str(self.setup.body.path) if self.job.eval else None,
            "min_retention": self.job.min_retention,
        }

    def summarise(self, report: Report) -> None:
        """The table on top: what went in, what came out; and the gate on size."""
        before, after = self.setup.body.weight_bytes(), int(report.value("weights") or 0)
        report.measures.insert(0, Measure("weights before", before, "B"))
        share = f"{after / before:.1%}"
        table = Table("compressed", ["", "before", "after", ""])
        table.rows.append(["weights", f"{before / 1e6:,.2f} MB", f"{after / 1e6:,.2f} MB", share])
        resident = report.value("resident")
        if resident is not None:
            table.rows.append(["resident weights", "", f"{resident / 1e6:,.2f} MB", ""])
        if not self.setup.is_bare:
            old = parts_of(self.setup.body)
            new = parts_of(Checkpoint.open(self.folder))
            for part in dict.fromkeys([*old, *new]):
                sizes = [parts.get(part, {"bytes": 0})["bytes"] for parts in (old, new)]
                row = [f"{size / 1e6:,.2f} MB" for size in sizes]
                table.rows.append([f"  {part}", *row, f"{sizes[1] / max(sizes[0], 1):.1%}"])
            report.facts["parts"] = {"before": old, "after": new}
        dims = report.value("dimensions")
        if dims is not None:
            table.rows.append(["dimensions", str(self.setup.body.layout.dim), str(dims), ""])
        report.tables.insert(0, table)
        steps = Table("steps", [""], [[note] for note in report.facts["steps"]])
        if steps.rows:
            report.tables.insert(1, steps)
        limit, missed = self.job.max_bytes, [report.gate, self.missed]
        if limit is not None and after > limit:
            missed.append(f"{after:,} bytes of weights, more than --max-bytes {limit:,}")
        report.gate = "; ".join(said for said in missed if said) or None


def _clear(folder: Path, state: Path) -> None:
    """Remove what a killed run has left: a chain is begun anew, it takes minutes at most."""
    for path in [*folder.iterdir(), *state.iterdir()]:
        if path != state and not (path.parent == state and path.is_file()):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
