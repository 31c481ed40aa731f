"""Base classes of runners, which plan and run the jobs of a verb.

The package of a verb names its runner as `RUNNER = (module, class)`, next to `JOB` and `METHODS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from emb_tool.config import Job
from emb_tool.progress import Progress
from emb_tool.report import Report

if TYPE_CHECKING:
    from emb_tool.checkpoint.reader import Checkpoint
    from emb_tool.plan import Plan
    from emb_tool.runtime.check_process import Check, CheckTarget, Warmup
    from emb_tool.runtime.device import Runtime
    from emb_tool.runtime.host import Host


@dataclass(frozen=True)
class Options:
    """Run options; they do not change the result.

    Args:
        dry_run: Check everything and report what would be written; write nothing.
        overwrite: Replace an output that exists.
        resume: Continue an interrupted job.
        progress: Where bars, notes and warnings go.
    """

    dry_run: bool = False
    overwrite: bool = False
    resume: bool = False
    progress: Progress = field(default_factory=Progress)


@dataclass(frozen=True)
class RunContext:
    """Folders and runtime of a job that writes a checkpoint.

    Args:
        folder: Folder of the files to write, `OUT.partial`; renamed to `OUT` when complete.
        state: Folder of the state for `--resume`; removed at the end.
        runtime: Device, dtype, seed and processes.
    """

    folder: Path
    state: Path
    runtime: Runtime | Host

    @property
    def torch(self) -> Runtime:
        """The runtime of a job that runs models.

        Raises:
            TypeError: The job has started without torch.
        """
        from emb_tool.runtime.host import Host

        if isinstance(self.runtime, Host):
            raise TypeError("this job has started without torch")
        return self.runtime


class Runner:
    """Runs one job of a verb. The constructor reads only headers and settings.

    Args:
        job: The resolved job.
        options: How it is run.
        report: The report to fill.

    Attributes:
        distributed: Whether several processes (torchrun) can share the work.
    """

    distributed: ClassVar[bool] = True

    def __init__(self, job: Job, options: Options, report: Report) -> None:
        self.job, self.options, self.report = job, options, report

    @classmethod
    def create(cls, job: Job, options: Options, report: Report) -> Runner:
        """Create the runner of a job; verbs with several runners override this."""
        return cls(job, options, report)

    @property
    def progress(self) -> Progress:
        """Where bars, notes and warnings go."""
        return self.options.progress

    def start(self) -> Runtime | Host:
        """Device, dtype, seed and processes; imports torch."""
        from emb_tool.runtime.device import Runtime

        with self.progress.task("starting torch"):
            return Runtime.start(self.job.device, self.job.dtype, self.job.seed)


class ReportRunner(Runner, ABC):
    """A job whose result is its report, and optionally a file that it writes itself."""

    @abstractmethod
    def preview(self) -> None:
        """Check everything that can be checked before torch is imported; `--dry-run` stops here.

        Raises:
            InvalidInput: Settings, headers or data are at fault.
        """

    @abstractmethod
    def run(self) -> Report:
        """Do the work.

        Returns:
            The report: the one given, or one of its own.
        """


class CheckpointRunner(Runner, ABC):
    """A job that writes a checkpoint.

    The engine calls, in this order: `plan`, `start`, `warmup`, `run`, `check`, `summarize`, `card`.

    Attributes:
        papers: Publications that the output cites, `arXiv:...` or `doi:...`.
    """

    papers: list[str]

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, Checkpoint]:
        """The checkpoints read, by user-given name."""

    @property
    @abstractmethod
    def before(self) -> Checkpoint | None:
        """The model that the output is compared with in size and parts; None if there is none."""

    @property
    def parent(self) -> Checkpoint | None:
        """The model that the output is derived from."""
        return self.before

    @property
    def relation(self) -> str:
        """`base_model_relation` of the hub's model cards: finetune, quantized, merge or adapter."""
        return "finetune"

    @abstractmethod
    def data(self) -> dict[str, dict[str, str]]:
        """Digests of the local files read, by user-given name."""

    @abstractmethod
    def plan(self) -> Plan:
        """The plan of the output, from headers, settings and local files only.

        Raises:
            InvalidInput: One of them is invalid.
        """

    def warmup(self, context: RunContext) -> Warmup | None:
        """Work for the check process while the files are written; None for none."""
        return None

    @abstractmethod
    def run(self, context: RunContext) -> None:
        """Write the checkpoint into `context.folder`; every process calls it."""

    @abstractmethod
    def check(self, context: RunContext, target: CheckTarget) -> Check:
        """The check of the written files, `target`; see the checks in `emb_tool.evaluate`."""

    @abstractmethod
    def summarize(self, report: Report) -> None:
        """Insert the tables of the verb before the measured ones."""

    def card(self) -> dict[str, Any] | None:
        """Front matter that the verb adds to the model card."""
        return None


__all__ = ["CheckpointRunner", "Options", "ReportRunner", "RunContext", "Runner"]
