"""What a report says of the inputs of its figures: prompts before them, and what was cut off."""

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
"""The text put before inputs, by model, task and what the inputs are."""


def read_prompts(
    tasks: Sequence[Task], models: Mapping[str, Checkpoint], job: EvalJob
) -> tuple[Prompts, list[str]]:
    """The prompts of a job, and warnings of those that models have and that are not used.

    Args:
        tasks: What is measured.
        models: The models by name, reference and query model among them.
        job: Which of them are which.

    Raises:
        InvalidInput: A prompt that a model does not have.
    """
    unused: dict[str, list[str]] = {}
    prompts: Prompts = {}
    for model, checkpoint in models.items():
        layout = checkpoint.layout
        for task in tasks:
            for what, name in task.prompts().items():
                if not _reads(model, what, job):
                    continue
                text = prompt_text(layout, name, checkpoint.name)
                prompts.setdefault(model, {}).setdefault(task.label, {})[what] = text
                if (setting := task.prompted.get(what)) and (other := unused_prompt(layout, name)):
                    again = f"{task.spec},{setting}={other[0]}"
                    unused.setdefault(f"{other[1]}; to use it: {again}", []).append(model)
    return prompts, [f"{', '.join(whose)}: {sentence}" for sentence, whose in unused.items()]


def _reads(model: str, what: str, job: EvalJob) -> bool:
    """Whether a model encodes such texts: a query model those alone that stand for queries."""
    if job.query_model is None or model == job.reference:
        return True
    asks = what in ("queries", "first sentences")
    return (asks and model == job.query_model) or (not asks and model in job.models)


def table_of_prompts(report: Report) -> Table | None:
    """A row for each prompt of a task, with the models that it was put before the texts of.

    None where no task takes prompts.
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
    """Model, task, the texts of one prompt and that prompt, as they are shown."""
    for model, tasks in models.items():
        for task, prompts in tasks.items():
            for prompt in dict.fromkeys(prompts.values()):
                texts = ", ".join(what for what, text in prompts.items() if text == prompt)
                yield model, task, texts, format_prompt(prompt)


def warn_truncated(report: Report, pair: ModelPair) -> None:
    """Warn of texts that a pair was measured on and did not read to their end, by task."""
    for side in {id(side): side for side in (pair.query, pair.document)}.values():
        for what, (cut, texts) in side.cut.items():
            report.facts.setdefault("truncated", {}).setdefault(side.label, {})[what] = cut
            if cut:
                report.warn(
                    f"{side.label}: {cut:,} of {texts:,} {what} are longer than the "
                    f"{side.encoder.max_length:,} tokens that it reads; their rest was not read"
                )
