"""Tasks for model selection (`--dev`), kept separate from the tasks reported (`--eval`).

The best of several candidates on some data has an optimistic score on that data (selection bias).
So tasks of `--eval` are never used for selection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from emb_tool.checkpoint.files import sha256
from emb_tool.errors import InvalidInput
from emb_tool.evaluate.task import Task, parse_tasks

if TYPE_CHECKING:
    from emb_tool.evaluate.model_pair import ModelPair

MIN_ITEMS = 100
"""With fewer judged items the standard error of a mean figure is several points."""


class Tasks:
    """The tasks of a job that selects a model; tasks of equal file names get distinct labels.

    Args:
        dev: Values of `--dev`.
        reported: Values of `--eval`.
        parse: Parses task specifications.

    Attributes:
        dev: The tasks used for selection.
        reported: The tasks that are reported.
        both: All tasks, without duplicates.
    """

    def __init__(
        self,
        dev: Sequence[str],
        reported: Sequence[str],
        parse: Callable[[Sequence[str]], list[Task]] = parse_tasks,
    ) -> None:
        self.both = parse([*dev, *reported])
        self.dev, self.reported = (
            [task for task in self.both if task.spec in {other.spec for other in parse(texts)}]
            for texts in (dev, reported)
        )

    def check(
        self,
        warn: Callable[[str], None],
        *,
        reference: bool = False,
        retained: bool = False,
    ) -> None:
        """Read the tasks' files; reject unusable `--dev` tasks and data shared with `--eval`.

        Args:
            warn: Called with each warning.
            reference: Whether the tasks of `--dev` have a reference model to compare with.
            retained: Whether retention of the reference's figures is the selection criterion.

        Raises:
            InvalidInput: As the tasks' own `check`; a task of `--dev` without a selection metric;
                the same file, or the same judged items, under `--dev` and `--eval`.
        """
        for task in self.dev:
            if not task.chooses or (retained and not task.retains):
                raise InvalidInput(
                    f"--dev {task.spec}: has no metric for selection",
                    "tasks that have one: sts:FILE, retrieval:DIR",
                )
            if task.needs_reference and not reference:
                raise InvalidInput(
                    f"--dev {task.spec}: compares with a reference model, and this job has none",
                    "select by sts:FILE or retrieval:DIR",
                )
        for task in self.both:
            for sentence in task.check():
                warn(sentence)
        # hash each file once, not once per pair of tasks
        sums = {
            task.spec: {file: sha256(file) for file in task.files()}
            for task in (self.both if self.dev and self.reported else ())
        }
        for task in self.dev:
            count = len(task.items())
            if count < MIN_ITEMS:
                warn(
                    f"--dev {task.spec}: only {count} judged items for selection; differences of"
                    " a few points are not significant"
                )
            for other in self.reported:
                _reject_shared(task, other, sums, warn)


def _reject_shared(
    task: Task,
    other: Task,
    sums: Mapping[str, Mapping[Path, str]],
    warn: Callable[[str], None],
) -> None:
    """Reject identical data in two tasks; warn about partial overlap.

    Args:
        task: A task of `--dev`.
        other: A task of `--eval`.
        sums: The sha256 of each file of a task, by task specification.
        warn: Called with each warning.
    """
    hint = "use other data for --dev, or omit --dev to select by held-out texts, if there are any"
    dev_files = {digest: file for file, digest in sums[task.spec].items()}
    for file, digest in sums[other.spec].items():
        if (duplicate := dev_files.get(digest)) is not None:
            alias = "" if duplicate == file else f", the same as {duplicate},"
            raise InvalidInput(f"{file}{alias} is under --dev and --eval", hint)
    dev_items, eval_items = {*task.items()}, {*other.items()}
    shared = dev_items & eval_items
    if shared and len(shared) == min(len(dev_items), len(eval_items)):
        raise InvalidInput(
            f"--dev {task.spec} and --eval {other.spec} judge the same {len(shared):,} items", hint
        )
    if shared:
        warn(
            f"{len(shared):,} of the {len(eval_items):,} items of --eval {other.spec} are also in"
            f" --dev {task.spec}: the reported figures are slightly optimistic"
        )


def mean_figure(
    tasks: Sequence[Task], pair: ModelPair, reference: ModelPair | None = None
) -> tuple[float, dict[str, float]]:
    """The mean of the tasks' main figures (NaN counts as 0), and each by `label figure`.

    Args:
        tasks: The tasks.
        pair: The model under evaluation.
        reference: The model that tasks which need a reference compare with.
    """
    figures: dict[str, float] = {}
    for task in tasks:
        value = float(task.score(pair, reference).figures[task.main or ""])
        figures[f"{task.label} {task.main}"] = value if isfinite(value) else 0.0
    return sum(figures.values()) / max(len(figures), 1), figures


def rule(tasks: Sequence[Task]) -> str:
    """The selection criterion, as text."""
    names = ", ".join(f"{task.label} {task.main}" for task in tasks)
    return f"{names} (--dev)" if len(tasks) == 1 else f"the mean of {names} (--dev)"


def digests(tasks: Sequence[Task]) -> dict[str, dict[str, str]]:
    """sha256 of the files of each task, by file name, by task specification."""
    return {task.spec: {file.name: sha256(file) for file in task.files()} for task in tasks}
