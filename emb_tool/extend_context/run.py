"""Runner of `embtool extend-context`."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

from emb_tool.checkpoint.output import remove_folder
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.data.text_options import TextOptions
from emb_tool.data.texts import hashes
from emb_tool.evaluate import dev
from emb_tool.evaluate.extended_check import ExtendedCheck
from emb_tool.extend_context.cost import max_checkable_length
from emb_tool.extend_context.job import ExtendJob
from emb_tool.extend_context.setup import Setup
from emb_tool.plan import Plan
from emb_tool.report import Report, Table
from emb_tool.runner import CheckpointRunner, Options, RunContext

if TYPE_CHECKING:
    from emb_tool.runtime.check_process import Check, CheckTarget


class ExtendContextRunner(CheckpointRunner):
    """The runner of `embtool extend-context`.

    Args:
        job: The resolved job.
        options: Options of the run.
        report: The report to fill.
    """

    job: ExtendJob

    def __init__(self, job: ExtendJob, options: Options, report: Report) -> None:
        super().__init__(job, options, report)
        self.setup = Setup(job, options.progress)
        self.papers = []

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """The checkpoints that are read, by the name given by the user."""
        return {self.setup.checkpoint.name: self.setup.checkpoint}

    @property
    def before(self) -> Checkpoint:
        """The model."""
        return self.setup.checkpoint

    def data(self) -> dict[str, dict[str, str]]:
        """Digests of the local files of texts."""
        digests = dev.digests(self.setup.tasks.dev)
        return hashes([*self.job.texts, *self.job.tune]) | digests

    def plan(self) -> Plan:
        """Check headers, settings and local files, and plan the output."""
        plan, method = self.setup.plan(), self.setup.method
        self.job = self.job.model_copy(update={"method": method})  # the recipe names it
        self.papers = [method.paper] if method.paper else []
        return plan

    def run(self, context: RunContext) -> None:
        """Write the extended model on rank 0, then fine-tune on all processes."""
        folder, state, runtime = context.folder, context.state, context.torch
        runtime.on_main(lambda: self._extend(folder, state))
        if self.job.tune:
            from emb_tool.extend_context.tuning import tune_positions

            started = time.perf_counter()
            self.report.facts["tuning"] = tune_positions(
                folder, self.setup.checkpoint, self.setup.context, self.job, state, runtime,
                self.progress, self.setup.tasks.dev,
            )  # fmt: skip
            self.report.timings["tune_seconds"] = time.perf_counter() - started

    def _extend(self, folder: Path, state: Path) -> None:
        remove_folder(folder, state)
        started = time.perf_counter()
        digests = Thread(target=self.setup.checkpoint.hashes, daemon=True)
        digests.start()  # while the files are in the page cache
        draft = self.setup.extended.draft
        with self.progress.task("writing", draft.nbytes, "B") as advance:
            draft.write(folder, advance)
        self.report.timings["write_seconds"] = time.perf_counter() - started
        with self.progress.task("hashing the input"):
            digests.join()
        self.report.facts |= {"steps": list(draft.notes), **draft.facts}

    # -- after the files are written --------------------------------------------------------------

    def check(self, context: RunContext, target: CheckTarget) -> Check:
        """Check lengths and positions, and compare vectors of short and long inputs."""
        extension, model = self.setup.context, self.setup.checkpoint
        return ExtendedCheck(
            target=target,
            source=model.path,
            original=extension.original,
            extended=extension.target,
            short=extension.short,
            longest=max_checkable_length(
                model.config, *extension.span, extension.positions.family.eager
            ),
            exact=self.setup.preserves_short or self.job.preserve_short,
            rows=self._rows(),
            rotary=self.setup.extended.rotary,
            texts=tuple(name for name in self.job.texts or self.job.tune if name != "-"),
            text_options=TextOptions.of(self.job),
            limit=self.job.limit,
            prompt_name=self.job.prompt_name,
            tasks=tuple(task.spec for task in self.setup.tasks.reported),
        )

    def _rows(self) -> int | None:
        """Number of rows of the written position table, None without one."""
        draft, table = self.setup.extended.draft, self.setup.positions.table
        if table is None:
            return None
        packed = draft.packed.get(table.removesuffix(".weight"))
        return int(packed["shape"][0]) if packed else draft.spec(table).shape[0]

    def summarize(self, report: Report) -> None:
        """Add the tables of lengths and steps."""
        context = self.setup.context
        before = int(report.value("weights before") or 0)
        after = int(
            report.value("weights", model=str(Path(self.job.output).expanduser())) or before
        )
        table = Table("extended", ["", "before", "after"])
        limit = f"{context.limit:,}" if context.limit else "no limit"
        table.rows += [
            ["tokens read", limit, f"{context.target:,}"],
            ["weights", f"{before / 1e6:,.2f} MB", f"{after / 1e6:,.2f} MB"],
        ]
        report.tables.insert(0, table)
        notes = report.facts["steps"]
        if notes:
            report.tables.insert(1, Table("steps", [""], [[note] for note in notes]))
