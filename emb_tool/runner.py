"""What a verb is to the engine: a class that plans its job and carries it out.

A verb's package names it as `RUNNER = (module, class)`, beside `JOB` and `METHODS`.
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
    """How a job is run; none of it changes the result.

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
    """Where a job that writes a checkpoint works.

    Args:
        folder: The files to be written, `OUT.partial`; renamed to `OUT` when all is done.
        state: What `--resume` needs; removed at the end.
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
    """One job of a verb. The constructor reads headers and settings at most.

    Args:
        job: The resolved job.
        options: How it is run.
        report: Filled on the way.

    Attributes:
        distributed: Whether several processes (torchrun) can share the work.
    """

    distributed: ClassVar[bool] = True

    def __init__(self, job: Job, options: Options, report: Report) -> None:
        self.job, self.options, self.report = job, options, report

    @classmethod
    def create(cls, job: Job, options: Options, report: Report) -> Runner:
        """The runner of a job; a verb with jobs of several kinds chooses here."""
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
    """A job whose result is its report, and perhaps a file that it writes itself."""

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
        papers: What the output cites, `arXiv:...` or `doi:...`.
    """

    papers: list[str]

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, Checkpoint]:
        """The checkpoints read, by the name that the user gave them."""

    @property
    @abstractmethod
    def before(self) -> Checkpoint | None:
        """The model whose size and parts the output is compared with; None if there is not one."""

    @property
    def parent(self) -> Checkpoint | None:
        """The model that the output was made from; its ancestors are the output's."""
        return self.before

    @property
    def relation(self) -> str:
        """`base_model_relation` of the hub's model cards: finetune, quantized, merge or adapter."""
        return "finetune"

    @abstractmethod
    def data(self) -> dict[str, dict[str, str]]:
        """Digests of the local files read, by the name that the user gave them."""

    @abstractmethod
    def plan(self) -> Plan:
        """What will be written, from headers, settings and local files alone.

        Raises:
            InvalidInput: One of them is at fault.
        """

    def warmup(self, context: RunContext) -> Warmup | None:
        """What the check's process can do while the files are being written; None for nothing."""
        return None

    @abstractmethod
    def run(self, context: RunContext) -> None:
        """Write the checkpoint into `context.folder`; every process calls it."""

    @abstractmethod
    def check(self, context: RunContext, target: CheckTarget) -> Check:
        """What is measured on the written files, `target`; kinds are in `emb_tool.evaluate`."""

    @abstractmethod
    def summarize(self, report: Report) -> None:
        """Put the verb's own tables on top of the measured report."""

    def card(self) -> dict[str, Any] | None:
        """Front matter that the verb adds to the model card."""
        return None


__all__ = ["CheckpointRunner", "Options", "ReportRunner", "RunContext", "Runner"]
