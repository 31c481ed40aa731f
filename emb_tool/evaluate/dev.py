"""Tasks that choose (`--dev`), and why they are never those that are reported (`--eval`).

The best of several states, chains or mixes on some data is, on that data, better than it really is:
it was taken for what chance gave it there, too. So `--eval` alone never chooses.
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

FEW_ITEMS = 100
"""Below so many judged items the standard error of a mean figure is several points."""


class Tasks:
    """The tasks of a job that chooses; those of one file name are called by what was typed.

    Args:
        dev: What `--dev` names.
        reported: What `--eval` names.
        parse: Makes tasks of what was typed.

    Attributes:
        dev: The tasks that choose.
        reported: The tasks that are reported.
        both: All of them, each once.
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
        """Read the tasks' files; refuse what cannot choose, and what would choose on the report.

        Args:
            warn: Called with what the user should know.
            reference: Whether there is a model that the tasks of `--dev` can compare with.
            retained: Whether it is shares of its figures that choose.

        Raises:
            InvalidInput: As the tasks' own `check`; a task of `--dev` without a figure to choose
                by; the same file, or the same judged items, under `--dev` and `--eval`.
        """
        for task in self.dev:
            if not task.chooses or (retained and not task.retains):
                raise InvalidInput(
                    f"--dev {task.spec}: has no figure to choose by",
                    "tasks that have one: sts:FILE, retrieval:DIR",
                )
            if task.needs_reference and not reference:
                raise InvalidInput(
                    f"--dev {task.spec}: compares with a reference model, and there is none here",
                    "choose by sts:FILE or retrieval:DIR",
                )
        for task in self.both:
            for sentence in task.check():
                warn(sentence)
        # large collections are read once, not once for each pair of tasks
        sums = {
            task.spec: {file: sha256(file) for file in task.files()}
            for task in (self.both if self.dev and self.reported else ())
        }
        for task in self.dev:
            count = len(task.items())
            if count < FEW_ITEMS:
                warn(
                    f"--dev {task.spec}: {count} judged items are few to choose by; differences of"
                    " some points are chance"
                )
            for other in self.reported:
                _refuse_shared(task, other, sums, warn)


def _refuse_shared(
    task: Task,
    other: Task,
    sums: Mapping[str, Mapping[Path, str]],
    warn: Callable[[str], None],
) -> None:
    """Refuse one set of data in two tasks; warn of some items that both have.

    Args:
        task: One that chooses.
        other: One that is reported.
        sums: The sha256 of each file of a task, by the task as it was typed.
        warn: Called with what the user should know.
    """
    hint = "choose by other data, or leave --dev out: held-out texts choose where there are any"
    known = {digest: file for file, digest in sums[task.spec].items()}
    for file, digest in sums[other.spec].items():
        if (twin := known.get(digest)) is not None:
            same = "" if twin == file else f", the same as {twin},"
            raise InvalidInput(f"{file}{same} is under --dev and --eval", hint)
    mine, theirs = {*task.items()}, {*other.items()}
    shared = mine & theirs
    if shared and len(shared) == min(len(mine), len(theirs)):
        raise InvalidInput(
            f"--dev {task.spec} and --eval {other.spec} judge the same {len(shared):,} items", hint
        )
    if shared:
        warn(
            f"{len(shared):,} of the {len(theirs):,} items of --eval {other.spec} are in --dev"
            f" {task.spec}, too: what is reported is a little too good"
        )


def mean_figure(
    tasks: Sequence[Task], pair: ModelPair, reference: ModelPair | None = None
) -> tuple[float, dict[str, float]]:
    """The mean of the tasks' main figures (NaN counts as 0), and each by `label figure`.

    Args:
        tasks: What chooses, or is watched.
        pair: Who is measured.
        reference: What tasks that need one compare with.
    """
    figures: dict[str, float] = {}
    for task in tasks:
        value = float(task.score(pair, reference).figures[task.main or ""])
        figures[f"{task.label} {task.main}"] = value if isfinite(value) else 0.0
    return sum(figures.values()) / max(len(figures), 1), figures


def rule(tasks: Sequence[Task]) -> str:
    """How it is said what chooses."""
    names = ", ".join(f"{task.label} {task.main}" for task in tasks)
    return f"{names} (--dev)" if len(tasks) == 1 else f"the mean of {names} (--dev)"


def digests(tasks: Sequence[Task]) -> dict[str, dict[str, str]]:
    """sha256 of the files that chose, by the task as one would type it."""
    return {task.spec: {file.name: sha256(file) for file in task.files()} for task in tasks}
