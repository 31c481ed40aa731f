"""Runner of `embtool merge`: streams the weights while the inputs are hashed, then checks."""

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
from emb_tool.merge.data import DATA_SETTINGS
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

SAMPLE_SIZE = 8
"""Sentences on which the output is compared with the first model: a test that it loads and gives
plausible vectors, not an evaluation."""

MAX_SAMPLE_CHARACTERS = 60
"""Maximum characters of these sentences."""


class MergeRunner(CheckpointRunner):
    """The runner of `embtool merge`.

    Args:
        job: The resolved job.
        options: Options of the run.
        report: The report to fill.
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
        """An `InspectRunner` for `--inspect`, otherwise a `MergeRunner`."""
        assert isinstance(job, MergeJob)
        return (InspectRunner if job.inspect else cls)(job, options, report)

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """The checkpoints that are read, by the name given by the user."""
        return self.setup.inputs

    @property
    def relation(self) -> str:
        """A merge, to the hub."""
        return "merge"

    @property
    def before(self) -> None:
        """None: there is no single input to compare with."""

    @property
    def parent(self) -> Checkpoint | None:
        """The base, if there is one."""
        return self.setup.base

    def data(self) -> dict[str, dict[str, str]]:
        """Digests of the local data files."""
        return self.setup.data.digests()

    def start(self) -> Host | Runtime:
        """The host for numpy's threads, or the torch runtime if the method runs models."""
        if isinstance(self.method, DataDrivenMerge):
            return super().start()
        return Host(self.job.device, self.job.dtype, thread_count(), self.job.seed)

    def plan(self) -> Plan:
        """Check headers, settings and local files, and plan the output."""
        return self.setup.plan()

    def run(self, context: RunContext) -> None:
        """Write the merged model."""
        folder, state = context.folder, context.state
        if isinstance(self.method, DataDrivenMerge):
            self._fit_to_data(state, context.torch)
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
        reference = f"the base {self.job.base}" if self.setup.base else "the mean of the models"
        distances = sampled_distances(self.setup.slots)
        for name, distance in zip(self.job.models, distances, strict=False):
            if distance > MAX_DISTANCE:
                self.progress.warn(
                    f"{name} has a relative distance of {distance:.0%} to {reference}: models"
                    " trained from the same one are closer (see embtool merge ... --inspect)"
                )

    def _warn_of_copies(self) -> None:
        names: dict[tuple[str, ...], str] = {}
        for name, checkpoint in self.inputs.items():
            digests = checkpoint.hashes()
            key = tuple(digests[f] for f in sorted(digests) if f.endswith(".safetensors"))
            if key in names:
                self.progress.warn(f"{name} has the same weights as {names[key]}")
            names.setdefault(key, name)

    def _fit_to_data(self, state: Path, runtime: Runtime) -> None:
        """Run the search or gather the statistics, and replace the method by its result."""
        started = time.perf_counter()
        result = load_search_result(state)
        if result is None:
            evaluator = MergeEvaluator(self.setup, runtime, self.progress, state)
            result = cast(DataDrivenMerge, self.method).find(evaluator)
            if isinstance(self.method, WeightSearch):
                result.facts["chosen_by"] = evaluator.selection_criterion()
                save_search_result(state, result)
            evaluator.close()
        self.report.facts[self.method.name] = result.facts
        if result.table:
            self.report.tables.append(result.table)
        if criterion := result.facts.get("chosen_by"):
            self.report.tables.append(Table("weights chosen by", [""], [[criterion]]))
        if isinstance(self.method, WeightSearch):  # the recipe needs no data
            defaults = {
                name: MergeJob.model_fields[name].default for name in (*DATA_SETTINGS, "max_length")
            }
            self.job = self.job.model_copy(update={"method": result.method, **defaults})
        self.method = result.method
        self.papers = list(dict.fromkeys([*self.papers, *filter(None, [self.method.paper])]))
        self.report.timings["look_seconds"] = time.perf_counter() - started

    # -- after the files are written --------------------------------------------------------------

    def check(self, context: RunContext, target: CheckTarget) -> Check:
        """Compare vectors of a few sentences with the inputs', or only check the tensors."""
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
        """Compute the inputs' vectors of these sentences while the files are written."""
        if self.setup.is_bare or isinstance(self.method, DataDrivenMerge):
            return None
        return Warmup(
            models=tuple(path for path in self._compared().values() if path),
            texts=self._sample(),
            device=str(context.runtime.device),
            dtype=context.runtime.dtype_name,
        )

    def _compared(self) -> dict[str, Path | None]:
        """Input name to folder; None for adapters and bare files, which cannot run on their own."""
        return {
            name: c.path if c.path.is_dir() and not isinstance(c, Adapter) else None
            for name, c in self.inputs.items()
        }

    def _models(self) -> tuple[Path, ...]:
        """Folders of the inputs that can be loaded, with the base in place of adapters."""
        base = self.setup.base
        opened = [base if isinstance(c, Adapter) and base else c for c in self.setup.models]
        return tuple(dict.fromkeys(checkpoint.path for checkpoint in opened))

    @staticmethod
    def _sample() -> tuple[str, ...]:
        short = [
            text for text in sample_texts(20 * SAMPLE_SIZE) if len(text) <= MAX_SAMPLE_CHARACTERS
        ]
        return tuple(short[:SAMPLE_SIZE])

    def summarize(self, report: Report) -> None:
        """Add the table of inputs."""
        table = Table("merged", ["", "weights", "bytes read"])
        names = short_names(self.inputs)
        for name, checkpoint in self.inputs.items():
            size = checkpoint.weight_bytes()
            table.rows.append([names[name], self._format_weight(name), f"{size / 1e6:,.2f} MB"])
            report.measures.append(Measure("weights read", size, "B", model=name))
        report.tables.insert(0, table)

    def card(self) -> dict[str, Any]:
        """Front matter from the inputs' model cards: licenses, languages, datasets."""
        folders = [getattr(c, "folder", c.path) for c in self.inputs.values()]
        fronts = [read_front(folder) for folder in folders if folder.is_dir()]

        def collect(key: str) -> list[str]:
            lists = [x if isinstance(x, list) else [x] for f in fronts if (x := f.get(key))]
            return list(dict.fromkeys(str(x) for values in lists for x in values))

        front: dict[str, Any] = {"tags": ["merge", *collect("tags")]}
        licenses = collect("license")
        if len(licenses) == 1:
            front["license"] = licenses[0]
        elif licenses:
            front |= {"license": "other", "license_name": " and ".join(licenses)}
            self.progress.warn(
                f"the inputs have different licenses ({', '.join(licenses)}): the merged model must"
                " comply with all of them"
            )
        return front | {key: x for key in ("language", "datasets") if (x := collect(key))}

    def _format_weight(self, name: str) -> str:
        if name == self.job.base:
            return "base"
        if "weights" not in type(self.method).model_fields:
            return ""
        weights = getattr(self.method, "weights", None)
        index = self.job.models.index(name)
        if weights is None:
            return f"{self.method.default_weights(len(self.job.models))[index]:.4g}"
        return "; ".join(
            (f"{selector}: " if selector != "*" else "") + f"{numbers[index]:g}"
            for selector, numbers in weights.root.items()
        )
