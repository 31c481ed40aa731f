"""The base class of the tasks of `embtool eval`, and the parser of task specifications."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, PrivateAttr

from emb_tool import method, registry
from emb_tool.data.text_field import field_sentence
from emb_tool.data.texts import is_local
from emb_tool.errors import InvalidInput
from emb_tool.fields import FlagInfo
from emb_tool.formatting import short_names
from emb_tool.report import Measure

if TYPE_CHECKING:
    from emb_tool.evaluate.bootstrap import Statistic
    from emb_tool.evaluate.model_pair import ModelPair


@dataclass(frozen=True)
class Score:
    """The result of one pair of encoders in one task.

    Args:
        figures: Value by figure name.
        statistic: Maps (resamples, items) counts to the main figure of each resample; None if the
            task has no retention.
        items: Number of items that are resampled.
    """

    figures: dict[str, float | int]
    statistic: Statistic | None = None
    items: int = 0


PROMPTED = {"queries": "query_prompt", "documents": "document_prompt"}
"""Kind of text to the setting that names its prompt."""

QueryPrompt = Annotated[str, Field(description="prompt of the queries"), FlagInfo(metavar="NAME")]
DocumentPrompt = Annotated[
    str, Field(description="prompt of the documents"), FlagInfo(metavar="NAME")
]


class Task(method.Measure):
    """An evaluation task: its settings, `check` before any model is loaded, and `score`.

    Attributes:
        main: The figure in the summary; None if there is no single one.
        retains: Whether retention of the reference's main figure is measured.
        needs_reference: Whether the task requires a reference model.
        chooses: Whether a higher main figure is better, so that `--dev` can select by it.
        units: Unit by figure name; figures without a unit are fractions.
        prompted: Kind of text to the setting that names its prompt.
    """

    main: ClassVar[str | None] = None
    retains: ClassVar[bool] = False
    needs_reference: ClassVar[bool] = False
    chooses: ClassVar[bool] = False
    units: ClassVar[Mapping[str, str]] = {}
    prompted: ClassVar[Mapping[str, str]] = {}

    _label: str = PrivateAttr("")
    _notes: list[str] = PrivateAttr(default_factory=list)

    @property
    def spec(self) -> str:
        """The task specification, `name:PATH,key=value`, without defaults."""
        first, *others = type(self).model_fields
        changed = [
            f"{key}={_format_setting(getattr(self, key))}"
            for key in (first, *others)
            if getattr(self, key) != type(self).model_fields[key].default
        ]
        if changed and changed[0].startswith("path="):
            changed[0] = changed[0].removeprefix("path=")
        return self.name + (":" + ",".join(changed) if changed else "")

    @property
    def shown(self) -> str:
        """The figure in the summary."""
        return self.main or ""

    @property
    def label(self) -> str:
        """The short name in tables: `name:` and the base name of the file or folder."""
        if self._label:
            return self._label
        path = getattr(self, "path", None)
        return f"{self.name}:{stem(path)}" if path else self.name

    def prompts(self) -> dict[str, str | None]:
        """Kind of text to the name of its prompt."""
        return {what: getattr(self, setting) for what, setting in self.prompted.items()}

    def check(self) -> list[str]:
        """Read and validate the task's files, before any model is loaded.

        Returns:
            Warnings and notes about the data, one sentence each.
        """
        return []

    def note(self, source: str, field: str) -> None:
        """Record for `check` a source whose text is in another field than `text`."""
        self._notes.append(field_sentence(source, field))

    def files(self) -> list[Path]:
        """The local files that define the task; tasks that share a file are not independent."""
        path = getattr(self, "path", "")
        root = Path(path).expanduser()
        if not path or not is_local(path):
            return []
        return sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]

    def items(self) -> list[str]:
        """The judged items as strings, equal for tasks on the same data in any file format."""
        return []

    def score(self, pair: ModelPair, reference: ModelPair | None = None) -> Score:
        """Measure one pair of encoders."""
        raise NotImplementedError

    def run(self, pair: ModelPair, reference: ModelPair | None = None) -> list[Measure]:
        """Measure a pair, and its retention of the reference's main figure.

        Args:
            pair: The model under evaluation.
            reference: The reference model; its own score is computed once and cached.

        Returns:
            The figures and, with a reference, `retention`, `retention low` and `retention high`
            (95 % interval), in %.
        """
        score = self.score(pair, reference) if self.needs_reference else self._cached_score(pair)
        measures = self._measures(score, pair)
        if self.retains and reference is not None:
            measures += self._retention(score, pair, reference)
        return measures

    def against(self, pair: ModelPair, root: ModelPair) -> list[Measure]:
        """The main figure of a root model, and a pair's retention of it.

        Args:
            pair: The model under evaluation; its cached score is reused.
            root: The root model of the pair.
        """
        base = self._cached_score(root)
        measures = self._retention(self._cached_score(pair), pair, root)
        assert self.main is not None
        return [
            Measure(self.main, base.figures[self.main], of=self.label, model=root.label),
            *(replace(measure, against=root.label) for measure in measures),
        ]

    def _cached_score(self, pair: ModelPair) -> Score:
        if self.spec not in pair.scores:
            pair.scores[self.spec] = self.score(pair)
        score: Score = pair.scores[self.spec]
        return score

    def _measures(self, score: Score, pair: ModelPair) -> list[Measure]:
        return [
            Measure(name, value, self.units.get(name, ""), of=self.label, model=pair.label)
            for name, value in score.figures.items()
        ]

    def _retention(
        self, score: Score, pair: ModelPair, reference: ModelPair, kind: str = ""
    ) -> list[Measure]:
        """Retention of the main figure; `kind` is a suffix of the name."""
        from emb_tool.evaluate.bootstrap import RESAMPLES, retention

        base = self._cached_score(reference)
        assert score.statistic is not None
        assert base.statistic is not None
        interval = retention(score.statistic, base.statistic, score.items)
        name = f"retention{kind}"
        measure = Measure(name, None, "%", of=self.label, model=pair.label)
        if interval is None:
            return [replace(measure, note=f"the reference's {self.main} is not above 0")]
        low, high = 100 * interval.low, 100 * interval.high
        note = f"95 % interval {low:.1f} to {high:.1f}, {RESAMPLES} paired resamples"
        return [
            replace(measure, value=100 * interval.value, note=note),
            replace(measure, name=f"{name} low", value=low),
            replace(measure, name=f"{name} high", value=high),
        ]


def parse_task(text: str, **defaults: Any) -> Task:
    """Parse `name:PATH,key=value` into a task.

    The path is the task's first setting and may be omitted if that has a default. A comma starts a
    new setting only before `key=`.

    Args:
        text: The task specification.
        defaults: Values of settings that the text does not set, for tasks that have them; None is
            ignored.

    Raises:
        InvalidInput: An unknown task or setting (with a did-you-mean), a missing path, a bad value.
    """
    name, _, rest = text.partition(":")
    name = name.strip()
    cls = registry.load("eval", name)
    assert issubclass(cls, Task)
    first = next(iter(cls.model_fields))
    values: dict[str, Any] = {}
    for i, part in enumerate(re.split(r",(?=\s*[A-Za-z_][\w-]*=)", rest) if rest else []):
        key, sep, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if sep and (i or key in cls.model_fields):
            values[key] = value.strip()
        else:
            values[first] = part.strip()
    if first == "path" and not values.get("path"):
        raise InvalidInput(f"task {text!r} has no path", f"write {name}:PATH")
    for key, value in defaults.items():
        if value is not None and key in cls.model_fields:
            values.setdefault(key, value)
    task: Task = registry.build(cls, values, f"task {text!r}")
    return task


def parse_tasks(texts: Sequence[str], **defaults: Any) -> list[Task]:
    """Parse several tasks and drop duplicates; tasks of equal labels get longer labels."""
    tasks = list({task.spec: task for task in (parse_task(t, **defaults) for t in texts)}.values())
    by_label: dict[str, list[Task]] = {}
    for task in tasks:
        by_label.setdefault(task.label, []).append(task)
    for group in by_label.values():
        if len(group) > 1:
            _disambiguate(group)
    return tasks


def _disambiguate(tasks: Sequence[Task]) -> None:
    """Add as many parent folders to equal labels as needed, else the settings."""
    paths = [str(getattr(task, "path", "")) for task in tasks]
    tails = short_names(dict.fromkeys(paths))
    distinct = len(tails) == len(tasks) and all(paths)
    for task, path in zip(tasks, paths, strict=True):
        tail = tails[path] if path and "://" not in path else path
        task._label = f"{task.name}:{tail}" if distinct else task.spec.replace(path, tail, 1)


def run_tasks(
    tasks: Sequence[Task],
    pair: ModelPair,
    reference: ModelPair | None = None,
    *,
    clock: Callable[[Task, float], None] | None = None,
    watch: Callable[[Task], AbstractContextManager[object]] = lambda task: nullcontext(),
) -> list[Measure]:
    """Run every task on one pair of encoders, for `embtool eval` or during training.

    A task reads its files once, and a reference caches its vectors and scores, so a call costs only
    the encoding of the tasks' texts by `pair`. The pair caches its vectors too; for a model whose
    weights change, create a new pair for each call:

        teacher = Pair.of(teacher_encoder, "teacher")
        for ...:  # every N steps
            measures = run_tasks(tasks, Pair.of(student, "student"), teacher)

    If the reference's vectors are already known, cache them with
    `teacher.document.remember(texts, prompt_name, vectors)`.

    Args:
        tasks: The tasks. Without a reference, tasks that need one are skipped.
        pair: The model under evaluation.
        reference: The reference model of retention and agreement.
        clock: Called with each task and its seconds.
        watch: Returns the context manager that a task runs in, e.g. a progress line.
    """
    from time import perf_counter

    measures: list[Measure] = []
    for task in tasks:
        if task.needs_reference and reference is None:
            continue
        start = perf_counter()
        with watch(task):
            measures += task.run(pair, reference)
        if clock:
            clock(task, perf_counter() - start)
    return measures


def stem(path: str) -> str:
    """A file's name without its extensions, or a folder's name."""
    name = Path(path).expanduser().absolute().name if ":" not in path else path
    return re.sub(r"(\.(csv|tsv|jsonl|json|txt|parquet|gz))+$", "", name)


def _format_setting(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
