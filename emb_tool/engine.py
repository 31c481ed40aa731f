"""One job from its settings to its report; what every verb that writes a checkpoint shares.

plan -> work in OUT.partial -> measure the files as written, in a child process -> provenance,
report and model card -> rename to OUT.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emb_tool import registry
from emb_tool.checkpoint.output import OutputFolder, check_file_size, disk_full
from emb_tool.config import Job
from emb_tool.errors import EmbToolError, Failed, Interrupted, Refused
from emb_tool.evaluate import check_process
from emb_tool.plan import Plan
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report, Table

if TYPE_CHECKING:
    from emb_tool.checkpoint.reader import Checkpoint
    from emb_tool.runtime.device import Runtime
    from emb_tool.runtime.host import Host


@dataclass(frozen=True)
class Options:
    """How a job is run; none of it changes the result. `started` is set by `run`."""

    dry_run: bool = False
    overwrite: bool = False
    resume: bool = False
    progress: Progress = field(default_factory=Progress)
    started: float = 0.0


def run(job: Job, options: Options) -> Report:
    """Carry out one job.

    Raises:
        Refused, Failed, Interrupted: See the design of each; a full disk is a Failed.
    """
    options = replace(options, started=time.perf_counter())
    options.progress.warnings.clear()
    options.progress.notes.clear()
    try:
        with options.progress.task(job.verb):
            report = _VERBS[job.verb](job, options)
    except KeyboardInterrupt:
        raise Interrupted(2, _how_to_resume(job)) from None
    except Interrupted as error:
        raise Interrupted(error.exit_code - 128, _how_to_resume(job)) from None
    except EmbToolError:
        raise
    except Exception as error:
        raise _understood(error) or error from error.__cause__
    report.timings["total_seconds"] = time.perf_counter() - options.started
    _add_said(options.progress, report)
    return report


def _add_said(progress: Progress, report: Report) -> None:
    """What the user was told on the way."""
    for sentence in progress.warnings:
        report.warn(sentence)
    if progress.notes:
        report.facts["notes"] = list(progress.notes)


def _understood(error: Exception) -> Failed | None:
    """A full disk and memory that ran out, in our words; None for a bug."""
    check_file_size(error)
    if disk_full(error):
        name = getattr(error, "filename", None)
        where = f" ({name})" if name else ""
        return Failed(f"the disk is full{where}", "free some space, then go on with --resume")
    from emb_tool.runtime.device import Runtime

    if Runtime.is_out_of_memory(error):
        hint = "lower --batch-tokens or --max-length, then go on with --resume"
        return Failed("memory ran out", hint)
    return None


def _how_to_resume(job: Job) -> str | None:
    return "go on with --resume" if hasattr(job, "output") else None


def _runtime(job: Job, progress: Progress) -> Runtime:
    with progress.task("starting torch"):
        from emb_tool.runtime.device import Runtime

        return Runtime.start(job.device, job.dtype, job.seed)


def _evaluate(job: Any, options: Options) -> Report:
    from emb_tool.evaluate.run import evaluate, prepare

    # several processes have to hear of a refusal: `evaluate` then prepares, once they are joined
    prepared = None if _are_several() and not options.dry_run else prepare(job)
    if prepared and options.dry_run:
        report = Report("eval", job=job.recipe(), warnings=prepared.warnings)
        rows = [[task.spec] for task in prepared.tasks]
        report.tables = [Table("would measure", ["task"], rows)]
        return report
    progress = options.progress
    report = evaluate(job, _runtime(job, progress), prepared=prepared, progress=progress)
    for sentence in report.warnings:
        options.progress.warn(sentence)
    return report


def _encode(job: Any, options: Options) -> Report:
    from emb_tool.encode.run import check, encode

    _refuse_several(job)
    model = check(
        job, overwrite=options.overwrite, resume=options.resume, warn=options.progress.warn
    )
    if options.dry_run:
        width = str(model.layout.dim) if model else "finished already"
        table = Table("would write", ["file", "width"], [[job.output, width]])
        warnings = list(model.warnings) if model else []
        return Report("encode", job=job.recipe(), tables=[table], warnings=warnings)
    runtime = _runtime(job, options.progress)
    with options.progress.task("encoding", job.limit, "texts") as advance:
        report = encode(
            job, runtime, overwrite=options.overwrite, resume=options.resume,
            progress=advance, skip=advance.skip, say=options.progress.say,
            note=options.progress.note,
        )  # fmt: skip
    for sentence in report.warnings:
        options.progress.warn(sentence)
    return report


def _distill(job: Any, options: Options) -> Report:
    from emb_tool.distill.run import Distill

    return make(job, options, Distill)


def _compress(job: Any, options: Options) -> Report:
    from emb_tool.compress.run import Compress

    return make(job, options, Compress)


def _merge(job: Any, options: Options) -> Report:
    from emb_tool.merge.run import MergeModels

    _refuse_several(job)
    if job.inspect:
        from emb_tool.merge.inspect import inspect_models

        return inspect_models(job, options.progress)
    return make(job, options, MergeModels)


def _extend(job: Any, options: Options) -> Report:
    from emb_tool.extend_context.run import ExtendContext

    return make(job, options, ExtendContext)


def _are_several() -> bool:
    """Whether torchrun or Accelerate has started more than this process."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def _refuse_several(job: Job) -> None:
    if _are_several():
        raise Refused(f"{job.verb} works in one process", "start it without torchrun")


def make(job: Any, options: Options, worker: Any) -> Report:
    """Write a checkpoint: the way that every verb with an output folder goes.

    Args:
        job: Has an `output`.
        options: How to run it.
        worker: Class with `plan`, `work`, `check`, `summarise`, `inputs`, `data` and `papers`;
            `before`, the checkpoint that size and parts are compared with, or None; `start`, if it
            brings its own runtime, `card`, if it adds to the model card, and `ahead`, if the check
            can begin before the files are written.
    """
    progress = options.progress
    report = Report(job.verb, job=job.recipe())
    work = worker(job, progress, report)
    out = Path(job.output).expanduser()
    folder = OutputFolder(
        out, job_digest=job.digest(), overwrite=options.overwrite, resume=options.resume
    )
    if options.dry_run:
        folder.check()
        plan = work.plan()
        _warn_of_inputs(work, progress)
        report.tables = _planned(plan)
        report.facts["plan"] = {"bytes": plan.nbytes, "config": plan.config, "notes": plan.notes}
        if plan.trials:
            report.facts["plan"]["trials"] = [[*trial] for trial in plan.trials]
        return report
    # one process alone starts it after the refusals; several have to hear of them
    runtime = _runtime(job, progress) if _are_several() else None
    with ExitStack() as stack:

        def begin() -> bool:
            stack.enter_context(folder)  # rank 0 holds the lock and owns the folder
            if folder.finished:
                progress.say(f"{out} is finished already: nothing to do")
                return True
            if options.resume and not folder.resumed:
                progress.say(f"nothing to resume at {out}: starting from the beginning")
            with progress.task("reading headers and settings"):
                work.plan()
            _warn_of_inputs(work, progress)
            return False

        if runtime.on_main(begin) if runtime else begin():
            return _read_report(out)
        runtime = runtime or (work.start() if hasattr(work, "start") else _runtime(job, progress))
        ahead = work.ahead() if hasattr(work, "ahead") and progress.is_main else None
        checking = stack.enter_context(check_process.running(runtime, ahead)) if ahead else None
        work.work(folder.partial, folder.partial / ".state", runtime)

        def finish() -> bool:
            _finish(job, work, folder, report, runtime, options, checking)
            return bool(report.gate)

        if runtime.on_main(finish) and not runtime.is_main:
            report.gate = "see rank 0"
    return report


def _warn_of_inputs(work: Any, progress: Progress) -> None:
    for checkpoint in work.inputs.values():
        for sentence in checkpoint.warnings:
            progress.warn(sentence)


def _finish(
    job: Any,
    work: Any,
    folder: OutputFolder,
    report: Report,
    runtime: Runtime | Host,
    options: Options,
    checking: check_process.Child | None = None,
) -> None:
    """Measure the files as written, put what is known beside them, and give them their name."""
    from emb_tool.checkpoint.layout import needs_hub
    from emb_tool.checkpoint.provenance import write_provenance
    from emb_tool.checkpoint.reader import Checkpoint
    from emb_tool.reporting.families import root_table
    from emb_tool.reporting.lineage import folders
    from emb_tool.reporting.model_card import write_model_card
    from emb_tool.reporting.page import write_page
    from emb_tool.reporting.size_breakdown import parts_of

    progress = options.progress
    out, partial, digest = Path(job.output).expanduser(), folder.partial, job.digest()
    job = work.job  # a search has put what it found in its place
    report.job = job.recipe()
    started = time.perf_counter()
    parent: Checkpoint | None = work.parent if hasattr(work, "parent") else work.before
    with progress.task("following the input back to its root"):
        root = _lineage(work.before, parent, report) if parent is not None else None
    with progress.task("checking the written files"):
        request = work.check(partial, partial / ".state")
        if root is not None and root is not work.before and root.path.is_dir():
            request["root"] = {"path": str(root.path), "name": root.name}
        checked = check_process.ask(request, runtime, str(out), progress, checking)
    report.timings["check_seconds"] = time.perf_counter() - started
    report.measures += [Measure(**m) for m in checked["measures"]]
    report.tables += [Table(**t) for t in checked["tables"]]
    report.facts["check"] = checked["facts"]
    report.gate = checked["gate"]
    for sentence in checked["warnings"]:
        progress.warn(sentence)
    report.output = str(out)
    bare = all(c.path.is_file() for c in work.inputs.values())
    before: Checkpoint | None = work.before
    if before is not None:
        report.measures.insert(0, Measure("weights before", before.weight_bytes(), "B"))
    written = None if bare else Checkpoint.open(partial)
    if written is not None:
        report.facts["needs_hub"] = needs_hub(written.config, written.layout)
        report.facts["parts"] = {
            "before": parts_of(before) if before is not None else {},
            "after": parts_of(written),
        }
    work.summarise(report)
    if of_root := root_table(report):
        report.tables.append(of_root)
    _add_said(progress, report)
    with progress.task("hashing the inputs"):
        inputs = {name: c.hashes() for name, c in work.inputs.items()} | work.data()
    if folder.resumed:
        report.facts["resumed"] = True
    # what is left takes milliseconds, and stands in what is printed
    report.timings["total_seconds"] = time.perf_counter() - options.started
    told = json.dumps(report.to_file(), indent=2)
    (partial / "report.json").write_text(told + "\n", encoding="utf-8")
    write_provenance(
        partial,
        job=job.recipe(),
        inputs=inputs,
        runtime=runtime.facts(),
        papers=work.papers,
        extra={"digest": digest, "folders": folders(work.inputs)},
    )
    write_model_card(
        partial,
        title=out.name,
        base_models=list(work.inputs),
        report=report,
        job=job.recipe(),
        layout=written.layout if written is not None else None,
        front=work.card() if hasattr(work, "card") else None,
    )
    write_page(partial)
    with progress.task("sealing the output"):
        folder.seal()


def _lineage(made_from: Checkpoint | None, parent: Checkpoint, report: Report) -> Checkpoint:
    """What `parent` goes back to; put into the report, for outputs to be compared by."""
    from emb_tool.reporting.lineage import lineage

    root, broken = lineage(parent)
    report.facts["lineage"] = {"broken": broken} | {
        key: {"name": c.name, "digest": c.fingerprint(), "bytes": c.weight_bytes()}
        for key, c in (("input", made_from), ("root", root))
        if c is not None
    }
    return root


def _planned(plan: Plan) -> list[Table]:
    table = Table("would write", ["what", "size"])
    if plan.steps:
        tensors = sum(len(step.writes) for step in plan.steps)
        table.rows.append([f"{tensors} tensors", f"{plan.nbytes / 1e6:,.1f} MB"])
    for key, value in plan.config.items():
        table.rows.append([f"config.json {key}", str(value)])
    for note in plan.notes:
        table.rows.append([note, ""])
    rows = [[f"{nbytes / 1e6:,.2f}", chain] for chain, nbytes in plan.trials]
    trials = Table("would try", ["about MB", "chain"], rows)
    return [found for found in (table, trials) if found.rows]


def _read_report(out: Path) -> Report:
    """The report of a finished output."""
    return Report.from_json(json.loads((out / "report.json").read_text(encoding="utf-8")))


_VERBS = {
    "eval": _evaluate, "encode": _encode, "distill": _distill, "compress": _compress,
    "merge": _merge, "extend-context": _extend,
}  # fmt: skip
assert set(_VERBS) == set(registry.VERBS)
