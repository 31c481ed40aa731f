"""The runner of `embtool eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from emb_tool.evaluate.job import EvalJob
from emb_tool.evaluate.run import evaluate, prepare
from emb_tool.report import Report, Table
from emb_tool.runner import ReportRunner
from emb_tool.runtime.host import is_distributed

if TYPE_CHECKING:
    from emb_tool.runtime.device import Runtime


class EvalRunner(ReportRunner):
    """Evaluates models; the result is the report."""

    job: EvalJob

    def preview(self) -> None:
        """List the tasks that would be measured."""
        prepared = prepare(self.job)
        self.report.warnings = prepared.warnings
        rows = [[task.spec] for task in prepared.tasks]
        self.report.tables = [Table("would measure", ["task"], rows)]

    def run(self) -> Report:
        """Measure every model in every task."""
        # several processes prepare in `evaluate`, after joining, so that all see an error
        prepared = None if is_distributed() else prepare(self.job)
        runtime = cast("Runtime", self.start())
        report = evaluate(self.job, runtime, prepared=prepared, progress=self.progress)
        for sentence in report.warnings:
            self.progress.warn(sentence)
        return report
