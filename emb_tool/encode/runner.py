"""Runner of `embtool encode`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from emb_tool.encode.job import EncodeJob
from emb_tool.encode.run import check, encode
from emb_tool.report import Report, Table
from emb_tool.runner import ReportRunner

if TYPE_CHECKING:
    from emb_tool.checkpoint.reader import Checkpoint
    from emb_tool.runtime.device import Runtime


class EncodeRunner(ReportRunner):
    """Writes a file of vectors."""

    distributed: ClassVar[bool] = False
    job: EncodeJob

    def preview(self) -> None:
        """Report the file that would be written, and its dimension."""
        model = self._check()
        dim = str(model.layout.dim) if model else "finished already"
        self.report.tables = [Table("would write", ["file", "width"], [[self.job.output, dim]])]
        self.report.warnings = list(model.warnings) if model else []

    def run(self) -> Report:
        """Encode every text."""
        self._check()
        runtime, options = cast("Runtime", self.start()), self.options
        with self.progress.task("encoding", self.job.limit, "texts") as advance:
            report = encode(
                self.job, runtime, overwrite=options.overwrite, resume=options.resume,
                progress=advance, skip=advance.skip, say=self.progress.say,
                note=self.progress.note,
            )  # fmt: skip
        for sentence in report.warnings:
            self.progress.warn(sentence)
        return report

    def _check(self) -> Checkpoint | None:
        options = self.options
        return check(
            self.job, overwrite=options.overwrite, resume=options.resume, warn=self.progress.warn
        )
