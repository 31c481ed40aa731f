"""Report the prompts of the evaluated texts, and how many texts were truncated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from emb_tool.checkpoint.prompts import format_prompt, prompt_text, unused_prompt
from emb_tool.report import Report, Table

if TYPE_CHECKING:
    from emb_tool.checkpoint.reader import Checkpoint
    from emb_tool.evaluate.job import EvalJob
    from emb_tool.evaluate.model_pair import ModelPair
    from emb_tool.evaluate.task import Task


Prompts = dict[str, dict[str, dict[str, str]]]
"""Prompt text by model, task and kind of input, such as `queries`."""


def read_prompts(
    tasks: Sequence[Task], models: Mapping[str, Checkpoint], job: EvalJob
) -> tuple[Prompts, list[str]]:
    """The prompts of a job, and warnings about prompts of the models that are not used.

    Args:
        tasks: The tasks.
        models: The models by name, including the reference and the query model.
        job: Names the reference and the query model.

    Raises:
        InvalidInput: A model has no prompt of the given name.
    """
    unused: dict[str, list[str]] = {}
    prompts: Prompts = {}
    for model, checkpoint in models.items():
        layout = checkpoint.layout
        for task in tasks:
            for what, name in task.prompts().items():
                if not _encodes(model, what, job):
                    continue
                text = prompt_text(layout, name, checkpoint.name)
                prompts.setdefault(model, {}).setdefault(task.label, {})[what] = text
                if (setting := task.prompted.get(what)) and (other := unused_prompt(layout, name)):
                    suggestion = f"{task.spec},{setting}={other[0]}"
                    unused.setdefault(f"{other[1]}; to use it: {suggestion}", []).append(model)
    return prompts, [f"{', '.join(whose)}: {sentence}" for sentence, whose in unused.items()]


def _encodes(model: str, what: str, job: EvalJob) -> bool:
    """Whether a model encodes such texts; a query model encodes only the query side."""
    if job.query_model is None or model == job.reference:
        return True
    is_query = what in ("queries", "first sentences")
    return (is_query and model == job.query_model) or (not is_query and model in job.models)


def table_of_prompts(report: Report) -> Table | None:
    """A row for each prompt of a task, with the models that use it.

    None if no task has prompts.
    """
    from emb_tool.formatting import short_names

    rows: dict[tuple[str, str, str], list[str]] = {}
    models = report.facts["prompts"]
    names = short_names(models)
    for model, task, texts, prompt in _by_prompt(models):
        rows.setdefault((task, texts, prompt), []).append(names[model])
    columns = ["task", "texts", "prompt"]
    if len(models) < 2:
        return Table("prompts", columns, [list(row) for row in rows]) if rows else None
    body = [
        [*row, "all" if len(whose) == len(models) else ", ".join(whose)]
        for row, whose in rows.items()
    ]
    return Table("prompts", [*columns, "models"], body) if rows else None


def _by_prompt(
    models: Mapping[str, Mapping[str, Mapping[str, str]]],
) -> Iterator[tuple[str, str, str, str]]:
    """Yield model, task, the kinds of text with one prompt, and that prompt as displayed."""
    for model, tasks in models.items():
        for task, prompts in tasks.items():
            for prompt in dict.fromkeys(prompts.values()):
                texts = ", ".join(what for what, text in prompts.items() if text == prompt)
                yield model, task, texts, format_prompt(prompt)


def warn_truncated(report: Report, pair: ModelPair) -> None:
    """Warn about texts that the encoders of a pair truncated, by kind of text."""
    for side in {id(side): side for side in (pair.query, pair.document)}.values():
        for what, (truncated, texts) in side.cut.items():
            report.facts.setdefault("truncated", {}).setdefault(side.label, {})[what] = truncated
            if truncated:
                report.warn(
                    f"{side.label}: {truncated:,} of {texts:,} {what} are longer than the "
                    f"{side.encoder.max_length:,} tokens that it reads; their rest was not read"
                )
