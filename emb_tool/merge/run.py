"""One merge: the weights streamed, the inputs' digests taken meanwhile, then what it is worth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.checkpoint.writer import replace_metadata
from emb_tool.config import Job
from emb_tool.data.builtin_texts import sample_texts
from emb_tool.evaluate.merged_check import MergedCheck
from emb_tool.evaluate.tensors_check import TensorsCheck
from emb_tool.formatting import short_names
from emb_tool.merge.adapter import Adapter
from emb_tool.merge.base import Merge
from emb_tool.merge.data import DATA
from emb_tool.merge.evaluator import MergeEvaluator
from emb_tool.merge.inspect import InspectRunner
from emb_tool.merge.job import MergeJob
from emb_tool.merge.metadata import describe, hash_in_background
from emb_tool.merge.model_order import MAX_DISTANCE, sampled_distances
from emb_tool.merge.setup import Setup
from emb_tool.merge.stream import thread_count
from emb_tool.merge.weight_search import (
    DataDrivenMerge,
    WeightSearch,
    load_search_result,
    save_search_result,
)
from emb_tool.merge.write import write_merge
from emb_tool.plan import Plan
from emb_tool.report import Measure, Report, Table
from emb_tool.reporting.model_card import read_front
from emb_tool.runner import CheckpointRunner, Options, RunContext, Runner
from emb_tool.runtime.check_process import Check, CheckTarget, Warmup
from emb_tool.runtime.host import Host

if TYPE_CHECKING:
    from emb_tool.runtime.device import Runtime

SAMPLE = 8
"""Sentences on which the result is compared with the first model: that it opens and gives sensible
vectors, not how good it is."""

SHORT = 60
"""Characters of them at most."""


class MergeRunner(CheckpointRunner):
    """What the engine carries out for `embtool merge`.

    Args:
        job: The resolved job.
        options: How it is run.
        report: Filled on the way.
    """

    distributed: ClassVar[bool] = False
    job: MergeJob

    def __init__(self, job: MergeJob, options: Options, report: Report) -> None:
        super().__init__(job, options, report)
        self.setup = Setup(job, options.progress)
        self.method = cast(Merge, job.method)
        self.papers = [self.method.paper] if self.method.paper else []

    @classmethod
    def create(cls, job: Job, options: Options, report: Report) -> Runner:
        """Another one for `--inspect`, which writes nothing."""
        assert isinstance(job, MergeJob)
        return (InspectRunner if job.inspect else cls)(job, options, report)

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """The checkpoints read, by the name that the user gave them."""
        return self.setup.inputs

    @property
    def relation(self) -> str:
        """A merge, to the hub."""
        return "merge"

    @property
    def before(self) -> None:
        """Several models went in."""

    @property
    def parent(self) -> Checkpoint | None:
        """The model that they were all trained from, if it is named."""
        return self.setup.base

    def data(self) -> dict[str, dict[str, str]]:
        """Digests of the local files of texts and pairs."""
        return self.setup.data.digests()

    def start(self) -> Host | Runtime:
        """Where it is merged: numpy's threads; what runs the models comes before, if they are."""
        if isinstance(self.method, DataDrivenMerge):
            return super().start()
        return Host(self.job.device, self.job.dtype, thread_count(), self.job.seed)

    def plan(self) -> Plan:
        """Every refusal that headers, settings and local files can give."""
        return self.setup.plan()

    def run(self, context: RunContext) -> None:
        """Write the merged model."""
        folder, state = context.folder, context.state
        if isinstance(self.method, DataDrivenMerge):
            self._look(state, context.torch)
        digests = hash_in_background(self.inputs.values())
        started = time.perf_counter()
        with self.progress.task("comparing the inputs"):
            self._warn_of_distances()
        write_merge(
            self.setup, self.method, folder, state, self.progress, self.report,
            metadata=describe(self.setup, self.method, known=False),
        )  # fmt: skip
        self.report.timings["merge_seconds"] = time.perf_counter() - started
        with self.progress.task("hashing the inputs"):
            for thread in digests:
                thread.join()
        self._warn_of_copies()
        metadata = describe(self.setup, self.method, known=True)
        for path in sorted(folder.rglob("*.safetensors")):
            if state not in path.parents:
                replace_metadata(path, metadata)
        self.report.timings["digest_seconds"] = time.perf_counter() - started
        self.setup.tensors.files.close()

    def _warn_of_distances(self) -> None:
        of = f"the base {self.job.base}" if self.setup.base else "the mean of the models"
        distances = sampled_distances(self.setup.slots)
        for name, share in zip(self.job.models, distances, strict=False):
            if share > MAX_DISTANCE:
                self.progress.warn(
                    f"{name} is {share:.0%} of its length away from {of}: models trained from the"
                    " same one are nearer (embtool merge ... --inspect)"
                )

    def _warn_of_copies(self) -> None:
        seen: dict[tuple[str, ...], str] = {}
        for name, checkpoint in self.inputs.items():
            digests = checkpoint.hashes()
            key = tuple(digests[f] for f in sorted(digests) if f.endswith(".safetensors"))
            if key in seen:
                self.progress.warn(f"{name} holds the same weights as {seen[key]}")
            seen.setdefault(key, name)

    def _look(self, state: Path, runtime: Runtime) -> None:
        """Let the method look at its data; what it finds takes its place."""
        started = time.perf_counter()
        found = load_search_result(state)
        if found is None:
            bench = MergeEvaluator(self.setup, runtime, self.progress, state)
            found = cast(DataDrivenMerge, self.method).find(bench)
            if isinstance(self.method, WeightSearch):
                found.facts["chosen_by"] = bench.chosen_by()
                save_search_result(state, found)
            bench.close()
        self.report.facts[self.method.name] = found.facts
        if found.table:
            self.report.tables.append(found.table)
        if by := found.facts.get("chosen_by"):
            self.report.tables.append(Table("weights chosen by", [""], [[by]]))
        if isinstance(self.method, WeightSearch):  # the recipe needs no data any more
            nothing = {name: MergeJob.model_fields[name].default for name in (*DATA, "max_length")}
            self.job = self.job.model_copy(update={"method": found.method, **nothing})
        self.method = found.method
        self.papers = list(dict.fromkeys([*self.papers, *filter(None, [self.method.paper])]))
        self.report.timings["look_seconds"] = time.perf_counter() - started

    # -- after the files are written --------------------------------------------------------------

    def check(self, context: RunContext, target: CheckTarget) -> Check:
        """The vectors of a few sentences against the inputs'; or the tensors alone."""
        if self.setup.is_bare:
            return TensorsCheck(target=target)
        return MergedCheck(
            target=target,
            texts=self._sample(),
            compared=self._compared(),
            models=self._models(),
            tasks=self.job.eval,
        )

    def warmup(self, context: RunContext) -> Warmup | None:
        """The inputs' vectors of these sentences."""
        if self.setup.is_bare or isinstance(self.method, DataDrivenMerge):
            return None
        return Warmup(
            models=tuple(path for path in self._compared().values() if path),
            texts=self._sample(),
            device=str(context.runtime.device),
            dtype=context.runtime.dtype_name,
        )

    def _compared(self) -> dict[str, Path | None]:
        """Every input's name to its folder; None for adapters and files, which do not run alone."""
        return {
            name: c.path if c.path.is_dir() and not isinstance(c, Adapter) else None
            for name, c in self.inputs.items()
        }

    def _models(self) -> tuple[Path, ...]:
        """Folders of the inputs as they can be opened: the base in the place of adapters."""
        base = self.setup.base
        opened = [base if isinstance(c, Adapter) and base else c for c in self.setup.models]
        return tuple(dict.fromkeys(checkpoint.path for checkpoint in opened))

    @staticmethod
    def _sample() -> tuple[str, ...]:
        short = [text for text in sample_texts(20 * SAMPLE) if len(text) <= SHORT]
        return tuple(short[:SAMPLE])

    def summarize(self, report: Report) -> None:
        """The table on top."""
        table = Table("merged", ["", "weights", "bytes read"])
        names = short_names(self.inputs)
        for name, checkpoint in self.inputs.items():
            size = checkpoint.weight_bytes()
            table.rows.append([names[name], self._shown(name), f"{size / 1e6:,.2f} MB"])
            report.measures.append(Measure("weights read", size, "B", model=name))
        report.tables.insert(0, table)

    def card(self) -> dict[str, Any]:
        """Front matter that follows from the inputs' own: licences, languages, data."""
        folders = [getattr(c, "folder", c.path) for c in self.inputs.values()]
        fronts = [read_front(folder) for folder in folders if folder.is_dir()]

        def all_of(key: str) -> list[str]:
            lists = [x if isinstance(x, list) else [x] for f in fronts if (x := f.get(key))]
            return list(dict.fromkeys(str(x) for found in lists for x in found))

        said: dict[str, Any] = {"tags": ["merge", *all_of("tags")]}
        licenses = all_of("license")
        if len(licenses) == 1:
            said["license"] = licenses[0]
        elif licenses:
            said |= {"license": "other", "license_name": " and ".join(licenses)}
            self.progress.warn(
                f"the inputs are under different licences ({', '.join(licenses)}): see that all"
                " are kept"
            )
        return said | {key: x for key in ("language", "datasets") if (x := all_of(key))}

    def _shown(self, name: str) -> str:
        if name == self.job.base:
            return "base"
        if "weights" not in type(self.method).model_fields:
            return ""
        weights = getattr(self.method, "weights", None)
        number = self.job.models.index(name)
        if weights is None:
            return f"{self.method.default_weights(len(self.job.models))[number]:.4g}"
        return "; ".join(
            (f"{selector}: " if selector != "*" else "") + f"{numbers[number]:g}"
            for selector, numbers in weights.root.items()
        )
