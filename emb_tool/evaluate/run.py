"""`embtool eval`: measure every model in every task, and write one report."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from emb_tool.checkpoint.length_checks import check_max_length
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.evaluate import input_report
from emb_tool.evaluate.long_tasks import LongTask, Synthetic
from emb_tool.evaluate.model_pair import CachedEncoder, ModelPair
from emb_tool.evaluate.result_tables import by_model, tables
from emb_tool.evaluate.root_comparison import warn_on_failure
from emb_tool.evaluate.task import Task, run_tasks
from emb_tool.formatting import public_name
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report
from emb_tool.reporting import plots

if TYPE_CHECKING:
    from emb_tool.evaluate.job import EvalJob
    from emb_tool.runtime.device import Runtime


class LoadedModel(NamedTuple):
    """A loaded model as query and document encoder (the same unless the model is a Router)."""

    query: CachedEncoder
    document: CachedEncoder
    size: list[Measure]

    @property
    def pair(self) -> ModelPair:
        """Its two encoders as a pair."""
        return ModelPair(self.query, self.document)


class PreparedEvaluation(NamedTuple):
    """The validated inputs of a job.

    Args:
        tasks: The tasks, with their files read.
        checkpoints: The models, the reference and the query model, by name.
        warnings: Warnings about the models, the data and the prompts.
        prompts: The prompts of the texts, by model, task and kind of text.
    """

    tasks: list[Task]
    checkpoints: dict[str, Checkpoint]
    warnings: list[str]
    prompts: input_report.Prompts


def prepare(job: EvalJob) -> PreparedEvaluation:
    """Validate settings, checkpoint headers and task files before torch is imported."""
    if job.plot:
        plots.check_plot(job.plot)
    tasks = job.tasks()
    named = [name for name in (*job.models, job.reference, job.query_model) if name]
    checkpoints = {name: Checkpoint.open(name) for name in dict.fromkeys(named)}
    for name, checkpoint in checkpoints.items():
        check_max_length(job.max_length, checkpoint.layout, name)
    warnings = [sentence for checkpoint in checkpoints.values() for sentence in checkpoint.warnings]
    warnings += [sentence for task in tasks for sentence in task.check()]
    prompts, unused = input_report.read_prompts(tasks, checkpoints, job)
    return PreparedEvaluation(tasks, checkpoints, warnings + unused, prompts)


def evaluate(
    job: EvalJob,
    runtime: Runtime,
    *,
    prepared: PreparedEvaluation | None = None,
    progress: Progress | None = None,
    root: Checkpoint | None = None,
) -> Report:
    """Measure the models of a job, one in memory at a time besides reference and query model.

    Several processes divide the texts; each gathers all vectors and computes the same figures.

    Args:
        job: The models and tasks.
        runtime: Device and processes.
        prepared: The result of `prepare`; None calls it.
        progress: Reports progress.
        root: The root of the first model, which is compared with it too; this comparison is not
            part of tables and gate.

    Returns:
        Every figure (`model` is the name as given, `of` is the task), a summary table and a table
        for each task, and the gate if a model's retention is below `min_retention`.

    Raises:
        InvalidInput: A model, file or setting is invalid; raised before any model is loaded.
    """
    report = Report("eval", job=job.recipe())
    report.facts["runtime"] = runtime.facts()
    progress = progress or Progress(-1)
    names = list(dict.fromkeys(job.models))
    if prepared is None:
        first: list[PreparedEvaluation] = []
        with progress.task("reading the tasks"):
            # only one process reports an error
            runtime.on_main(lambda: first.append(prepare(job)))
        prepared = first[0] if first else prepare(job)
    tasks, checkpoints = prepared.tasks, prepared.checkpoints
    report.facts["prompts"] = prepared.prompts
    report.facts["commits"] = {name: c.commit for name, c in checkpoints.items() if c.commit}
    for sentence in prepared.warnings:
        report.warn(sentence)

    def clock(what: str, seconds: float) -> None:
        report.timings[what] = report.timings.get(what, 0.0) + seconds

    cache: dict[Path, LoadedModel] = {}

    def opened(name: str, keep: bool = False) -> LoadedModel:
        path = checkpoints[name].path.resolve()
        if path in cache:
            return cache[path]
        start = perf_counter()
        with progress.task(f"opening {public_name(name)}"):
            loaded = _open(checkpoints[name], name, job, runtime, progress)
        clock("open", perf_counter() - start)
        if keep:
            cache[path] = loaded
        return loaded

    def measure(pair: ModelPair, size: list[Measure], against: ModelPair | None) -> None:
        report.measures += [Measure(m.name, m.value, m.unit, model=pair.label) for m in size]
        report.measures += run_tasks(
            tasks, pair, against,
            clock=lambda task, seconds: clock(task.label, seconds),
            watch=lambda task: progress.task(task.label),
        )  # fmt: skip
        input_report.warn_truncated(report, pair)

    reference = opened(job.reference, keep=True).pair if job.reference else None
    queries = opened(job.query_model, keep=True).query if job.query_model else None
    labels = []
    first_pair: ModelPair | None = None
    for name in names:
        model = opened(name)
        if queries is not None:
            pair = ModelPair(queries, model.document, f"{job.query_model} > {name}")
        elif reference is not None and model.document is reference.document:
            reference.label = name
            pair = reference
        else:
            pair = ModelPair(model.query, model.document, name)
        labels.append(pair.label)
        measure(pair, model.size, reference)
        first_pair = first_pair or (pair if root is not None else None)
        del model, pair
    reference_label = None
    if reference is not None and job.reference:
        reference_label = reference.label
        if reference_label not in labels:
            measure(reference, opened(job.reference).size, None)
    report.gate = _gate(report, job.min_retention, labels, against=reference_label)
    report.tables = tables(report, tasks, reference_label)
    if prompts := input_report.table_of_prompts(report):
        report.tables.append(prompts)
    for task in tasks:
        if isinstance(task, LongTask) and reference_label:
            for sentence in task.verdicts(by_model(report, task), reference_label):
                report.warn(sentence)
    if root is not None and first_pair is not None:
        del reference, queries
        cache.clear()  # at most two models in memory
        with warn_on_failure(report, root):
            report.measures += _against(tasks, first_pair, root, job, runtime, progress)
    if job.plot and runtime.is_main:
        _draw(report, tasks, reference_label, job.plot)
        report.facts["plot"] = job.plot
    return report


def _against(
    tasks: list[Task], pair: ModelPair, root: Checkpoint, job: EvalJob, runtime: Runtime,
    progress: Progress,
) -> list[Measure]:  # fmt: skip
    """Retention of the root's figures by a model, and the root's own figures."""
    tasks = [task for task in tasks if task.retains]
    if not tasks:
        return []
    with progress.task(f"opening {public_name(root.name)}"):
        opened = _open(root, root.name, job, runtime, progress)
    measures: list[Measure] = []
    for task in tasks:
        with progress.task(task.label):
            measures += task.against(pair, opened.pair)
    return measures


def _open(
    checkpoint: Checkpoint, name: str, job: EvalJob, runtime: Runtime, progress: Progress
) -> LoadedModel:
    from emb_tool.model.encoder import Encoder

    encoder = Encoder.open(checkpoint, runtime, max_length=job.max_length)
    query, document = encoder.route("query"), encoder.route("document")
    sides = [
        CachedEncoder(side, name, batch_tokens=job.batch_tokens, progress=progress)
        for side in ((document,) if query is document else (query, document))
    ]
    size = [
        Measure("weights", checkpoint.weight_bytes(), "B"),
        Measure("parameters", count_parameters(encoder.model), "parameters"),
        Measure("dimensions", document.dim, "dimensions"),
    ]
    return LoadedModel(sides[0], sides[-1], size)


def count_parameters(model: Any) -> int:
    """Number of parameters; a packed matrix counts with its unpacked size."""
    from emb_tool.packed.base import Packed

    packed = [module for module in model.modules() if isinstance(module, Packed)]
    matrices = sum(module.num_embeddings * module.embedding_dim for module in packed)
    return matrices + sum(int(parameter.numel()) for parameter in model.parameters())


def _gate(
    report: Report, minimum: float | None, models: list[str], against: str | None
) -> str | None:
    """A message about the lowest retention if it is below the minimum, else None."""
    if minimum is None:
        return None
    retentions = [m for m in report.measures if m.name == "retention" and m.model in models]
    worst = min(retentions, key=lambda m: -1.0 if m.value is None else m.value)
    base = "the reference's figure" if against else "its own float32 figure"
    message = f"{worst.model} keeps {{}} of {base} in {worst.of}"
    if worst.value is None:
        return message.format("an unknown share") + f": {worst.note}"
    if worst.value >= 100 * minimum:
        return None
    return (
        message.format(f"{worst.value:.2f} %") + f", less than --min-retention {100 * minimum:g} %"
    )


def _draw(report: Report, tasks: list[Task], reference: str | None, path: str) -> None:
    from emb_tool.formatting import short_names

    names = short_names(dict.fromkeys(m.model for m in report.measures))
    panels: dict[tuple[str, str], list[plots.Point]] = {}
    for task in tasks:
        for m in report.measures:
            if isinstance(task, Synthetic):
                break  # drawn against length
            if m.of == task.label and m.name == task.main and m.value is not None:
                size = report.value("weights", model=m.model) or 0
                is_reference = m.model == reference
                label = names[m.model] + (" (reference)" if is_reference else "")
                point = plots.Point(label, size, m.value, is_reference)
                panels.setdefault((task.label, m.name), []).append(point)
    curves = {
        task.label: {names.get(k, k): v for k, v in task.curves(by_model(report, task)).items()}
        for task in tasks
        if isinstance(task, Synthetic)
    }
    plots.draw(panels, path, curves)
