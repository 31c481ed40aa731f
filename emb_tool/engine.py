"""The engine: runs one job and returns its report.

The steps of a verb that writes a checkpoint: plan -> write to OUT.partial -> check the written
files in a child process -> provenance, report and model card -> rename to OUT.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from emb_tool import registry
from emb_tool.checkpoint.output import OutputFolder, disk_full, raise_file_too_large
from emb_tool.checkpoint.own_files import REPORT, own_file
from emb_tool.config import Job
from emb_tool.errors import EmbToolError, Interrupted, InvalidInput, RunFailed
from emb_tool.install import require_extra
from emb_tool.plan import Plan
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report, Table
from emb_tool.runner import CheckpointRunner, Options, ReportRunner, RunContext, Runner
from emb_tool.runtime import check_process
from emb_tool.runtime.host import is_distributed

if TYPE_CHECKING:
    from emb_tool.checkpoint.reader import Checkpoint


def run(job: Job, options: Options) -> Report:
    """Run one job.

    Raises:
        InvalidInput, RunFailed, Interrupted: See `emb_tool.errors`; a full disk is a `RunFailed`.
    """
    started = time.perf_counter()
    options.progress.warnings.clear()
    options.progress.notes.clear()
    hint = "continue with --resume" if job.output_path() else None
    try:
        with options.progress.task(job.verb):
            report = _run(job, options, started)
    except KeyboardInterrupt:
        raise Interrupted(2, hint) from None
    except Interrupted as error:
        raise Interrupted(error.exit_code - 128, hint) from None
    except EmbToolError:
        raise
    except Exception as error:
        if failure := _failure(error):
            raise failure from error
        raise
    report.timings["total_seconds"] = time.perf_counter() - started
    _add_notes(options.progress, report)
    return report


def _run(job: Job, options: Options, started: float) -> Report:
    if job.output_path() is not None:
        job = pin_models(job)
    runner = runner_class(job.verb).create(job, options, Report(job.verb, job=job.recipe()))
    if is_distributed():
        if not runner.distributed:
            raise InvalidInput(f"{job.verb} runs in one process", "start it without torchrun")
        require_extra("distributed", f"{job.verb} in several processes")
    if isinstance(runner, CheckpointRunner):
        return run_checkpoint_job(runner, started)
    assert isinstance(runner, ReportRunner)
    if options.dry_run:
        runner.preview()
        return runner.report
    return runner.run()


def pin_models(job: Job) -> Job:
    """The job with the commits of hub models in their names, for provenance and resumption.

    Raises:
        InvalidInput: The hub does not have a model or revision.
    """
    from emb_tool.checkpoint.source import pin_revision

    return job.map_models(pin_revision)


def runner_class(verb: str) -> type[Runner]:
    """The runner class of a verb, as named by its package."""
    module, attribute = import_module(registry.VERBS[verb]).RUNNER
    cls: type[Runner] = getattr(import_module(module), attribute)
    return cls


def _add_notes(progress: Progress, report: Report) -> None:
    """Add the printed warnings and notes to the report."""
    for sentence in progress.warnings:
        report.warn(sentence)
    if progress.notes:
        report.facts["notes"] = list(progress.notes)


def _failure(error: Exception) -> RunFailed | None:
    """The error for a full disk or exhausted memory; None for a bug."""
    raise_file_too_large(error)
    if disk_full(error):
        name = getattr(error, "filename", None)
        where = f" ({name})" if name else ""
        return RunFailed(f"the disk is full{where}", "free some space, then continue with --resume")
    from emb_tool.runtime.device import Runtime

    if Runtime.is_out_of_memory(error):
        hint = "lower --batch-tokens or --max-length, then continue with --resume"
        return RunFailed("out of memory", hint)
    return None


def run_checkpoint_job(runner: CheckpointRunner, started: float) -> Report:
    """Write a checkpoint: plan, write to `OUT.partial`, check, rename.

    Args:
        runner: The runner of the job, which has an output.
        started: Start of the job, by `time.perf_counter`.
    """
    job, options, report, progress = runner.job, runner.options, runner.report, runner.progress
    out = job.output_path()
    assert out is not None
    folder = OutputFolder(
        out, job_digest=job.digest(), overwrite=options.overwrite, resume=options.resume
    )
    if options.dry_run:
        folder.check()
        plan = runner.plan()
        _warn_of_inputs(runner)
        report.tables = _planned(plan)
        report.facts["plan"] = {"bytes": plan.nbytes, "config": plan.config, "notes": plan.notes}
        if plan.trials:
            report.facts["plan"]["trials"] = [[*trial] for trial in plan.trials]
        return report
    # a single process validates before it starts torch; several processes must all see an error
    runtime = runner.start() if is_distributed() else None
    with ExitStack() as stack:

        def begin() -> bool:
            stack.enter_context(folder)  # rank 0 holds the lock and owns the folder
            if folder.finished:
                progress.say(f"{out} is finished already: nothing to do")
                return True
            if options.resume and not folder.resumed:
                progress.say(f"nothing to resume at {out}: starting from the beginning")
            with progress.task("reading headers and settings"):
                runner.plan()
            _warn_of_inputs(runner)
            return False

        if runtime.on_main(begin) if runtime else begin():
            return _read_report(out)
        runtime = runtime or runner.start()
        context = RunContext(folder.partial, folder.partial / ".state", runtime)
        warmup = runner.warmup(context) if progress.is_main else None
        process = stack.enter_context(check_process.start_check_process(warmup)) if warmup else None
        runner.run(context)

        def finish() -> bool:
            _finish(runner, context, folder, started, process)
            return bool(report.gate)

        if runtime.on_main(finish) and not runtime.is_main:
            report.gate = "see rank 0"
    return report


def _warn_of_inputs(runner: CheckpointRunner) -> None:
    for checkpoint in runner.inputs.values():
        for sentence in checkpoint.warnings:
            runner.progress.warn(sentence)


def _finish(
    runner: CheckpointRunner,
    context: RunContext,
    folder: OutputFolder,
    started: float,
    process: check_process.CheckProcess | None,
) -> None:
    """Check the written files, write report, card and provenance, and rename the folder."""
    from emb_tool.checkpoint.layout import needs_hub
    from emb_tool.checkpoint.provenance import write_provenance
    from emb_tool.checkpoint.reader import Checkpoint
    from emb_tool.reporting.families import root_table
    from emb_tool.reporting.lineage import folders
    from emb_tool.reporting.model_card import write_model_card
    from emb_tool.reporting.page import write_page
    from emb_tool.reporting.size_breakdown import parameter_groups

    report, progress, partial = runner.report, runner.progress, context.folder
    job = runner.job  # a search replaces it by the job with its result
    out = job.output_path()
    assert out is not None
    report.job = job.recipe()
    report.output = str(out)
    _check(runner, context, str(out), process)
    is_bare = all(c.path.is_file() for c in runner.inputs.values())
    before = runner.before
    if before is not None:
        report.measures.insert(0, Measure("weights before", before.weight_bytes(), "B"))
    written = None if is_bare else Checkpoint.open(partial)
    if written is not None:
        report.facts["needs_hub"] = needs_hub(written.config, written.layout)
        report.facts["parts"] = {
            "before": parameter_groups(before) if before is not None else {},
            "after": parameter_groups(written),
        }
    runner.summarize(report)
    if retention_table := root_table(report):
        report.tables.append(retention_table)
    _add_notes(progress, report)
    with progress.task("hashing the inputs"):
        inputs = {name: c.hashes() for name, c in runner.inputs.items()} | runner.data()
    if folder.resumed:
        report.facts["resumed"] = True
    # the rest takes milliseconds, and the printed report must equal the one on disk
    report.timings["total_seconds"] = time.perf_counter() - started
    text = json.dumps(report.to_file(), indent=2)
    own_file(partial, REPORT).write_text(text + "\n", encoding="utf-8")
    write_provenance(
        partial,
        job=job.recipe(),
        inputs=inputs,
        runtime=context.runtime.facts(),
        papers=runner.papers,
        extra={"digest": folder.digest, "folders": folders(runner.inputs)},
    )
    write_model_card(
        partial,
        title=out.name,
        base_models=list(runner.inputs),
        relation=runner.relation,
        report=report,
        job=job.recipe(),
        layout=written.layout if written is not None else None,
        front=runner.card(),
    )
    write_page(partial)
    with progress.task("finishing the output"):
        folder.seal()


def _check(
    runner: CheckpointRunner,
    context: RunContext,
    name: str,
    process: check_process.CheckProcess | None,
) -> None:
    """Add the measures of the check process on the written files to the report."""
    report, progress = runner.report, runner.progress
    started = time.perf_counter()
    root = None
    if runner.parent is not None:
        with progress.task("finding the root of the input"):
            root = _lineage(runner.before, runner.parent, report)
    with progress.task("checking the written files"):
        ancestor = None
        if root is not None and root is not runner.before and root.path.is_dir():
            ancestor = check_process.Ancestor(path=root.path, name=root.name)
        target = check_process.CheckTarget(
            folder=context.folder,
            name=name,
            device=str(context.runtime.device),
            dtype=context.runtime.dtype_name,
            root=ancestor,
        )
        result = check_process.ask(runner.check(context, target), progress, process)
    report.timings["check_seconds"] = time.perf_counter() - started
    report.measures += result.measures
    report.tables += result.tables
    report.facts["check"] = result.facts
    report.gate = result.gate
    for sentence in result.warnings:
        progress.warn(sentence)


def _lineage(before: Checkpoint | None, parent: Checkpoint, report: Report) -> Checkpoint:
    """The root of `parent`, also added to the report for comparisons of outputs."""
    from emb_tool.reporting.lineage import lineage

    root, broken = lineage(parent)
    report.facts["lineage"] = {"broken": broken} | {
        key: {"name": c.name, "digest": c.fingerprint(), "bytes": c.weight_bytes()}
        for key, c in (("input", before), ("root", root))
        if c is not None
    }
    return root


def _planned(plan: Plan) -> list[Table]:
    table = Table("would write", ["what", "size"])
    if plan.writes:
        table.rows.append([f"{len(plan.writes)} tensors", f"{plan.nbytes / 1e6:,.1f} MB"])
    for key, value in plan.config.items():
        table.rows.append([f"config.json {key}", str(value)])
    for note in plan.notes:
        table.rows.append([note, ""])
    rows = [[f"{nbytes / 1e6:,.2f}", chain] for chain, nbytes in plan.trials]
    trials = Table("would try", ["about MB", "chain"], rows)
    return [item for item in (table, trials) if item.rows]


def _read_report(out: Path) -> Report:
    """The report of a complete output."""
    return Report.from_json(json.loads((out / REPORT).read_text(encoding="utf-8")))
