"""What every task of `embtool eval` shares: its spelling, its score, its retention."""

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
    """What one pair of encoders reaches in one task.

    Args:
        figures: Figure by name.
        statistic: Maps (resamples, items) counts to the main figure of each resample; None where
            the figure is not one to be kept a share of.
        items: Number of items that are resampled.
    """

    figures: dict[str, float | int]
    statistic: Statistic | None = None
    items: int = 0


PROMPTED = {"queries": "query_prompt", "documents": "document_prompt"}
"""What is searched with and in, to the setting that names its prompt."""

QueryPrompt = Annotated[str, Field(description="prompt of the queries"), FlagInfo(metavar="NAME")]
DocumentPrompt = Annotated[
    str, Field(description="prompt of the documents"), FlagInfo(metavar="NAME")
]


class Task(method.Measure):
    """One thing to measure: its settings, `check` before the work, and `score`.

    Attributes:
        main: The figure by which the task is summed up; None if there is no single one.
        retains: Whether that figure is kept a share of the reference's.
        needs_reference: Whether it compares with the reference and means nothing without.
        chooses: Whether more of that figure is better, so that `--dev` may choose by it.
        units: Unit of a figure by name, where it is not a plain fraction.
        prompted: What its texts are, to the setting that names their prompt.
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
        """The task as one would type it: `name:PATH,key=value`, defaults left out."""
        first, *others = type(self).model_fields
        changed = [
            f"{key}={_typed(getattr(self, key))}"
            for key in (first, *others)
            if getattr(self, key) != type(self).model_fields[key].default
        ]
        if changed and changed[0].startswith("path="):
            changed[0] = changed[0].removeprefix("path=")
        return self.name + (":" + ",".join(changed) if changed else "")

    @property
    def shown(self) -> str:
        """The figure that stands in the summary."""
        return self.main or ""

    @property
    def label(self) -> str:
        """The short name in tables: `name:` and the file's or folder's own name."""
        if self._label:
            return self._label
        path = getattr(self, "path", None)
        return f"{self.name}:{stem(path)}" if path else self.name

    def prompts(self) -> dict[str, str | None]:
        """What its texts are, to the name of the prompt that is put before them."""
        return {what: getattr(self, setting) for what, setting in self.prompted.items()}

    def check(self) -> list[str]:
        """Read the task's files and refuse what is wrong with them, before any model is loaded.

        Returns:
            What the user should know about the data, each a sentence.
        """
        return []

    def note(self, source: str, field: str) -> None:
        """Keep for `check` where the text stands that is not in a field `text`."""
        self._notes.append(field_sentence(source, field))

    def files(self) -> list[Path]:
        """The local files that make it what it is: two tasks that share one are not independent."""
        path = getattr(self, "path", "")
        root = Path(path).expanduser()
        if not path or not is_local(path):
            return []
        return sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]

    def items(self) -> list[str]:
        """What is judged, an item a string: the same of tasks on the same data, however stored."""
        return []

    def score(self, pair: ModelPair, reference: ModelPair | None = None) -> Score:
        """Measure one pair of encoders."""
        raise NotImplementedError

    def run(self, pair: ModelPair, reference: ModelPair | None = None) -> list[Measure]:
        """Measure a pair, and what share of the reference's main figure it keeps.

        Args:
            pair: Who is measured.
            reference: What it is held against; its own score is worked out once and remembered.

        Returns:
            The figures, then with a reference `retention`, `retention low` and `retention high`
            (95 % interval), in %.
        """
        score = self.score(pair, reference) if self.needs_reference else self._remembered(pair)
        measures = self._measures(score, pair)
        if self.retains and reference is not None:
            measures += self._retention(score, pair, reference)
        return measures

    def against(self, pair: ModelPair, root: ModelPair) -> list[Measure]:
        """The main figure of a root, and what share of it a pair keeps.

        Args:
            pair: Who is measured; what was scored before is not scored again.
            root: What the pair goes back to.
        """
        base = self._remembered(root)
        kept = self._retention(self._remembered(pair), pair, root)
        assert self.main is not None
        return [
            Measure(self.main, base.figures[self.main], of=self.label, model=root.label),
            *(replace(measure, against=root.label) for measure in kept),
        ]

    def _remembered(self, pair: ModelPair) -> Score:
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
        """Retention of the main figure; `kind` is put behind the name."""
        from emb_tool.evaluate.bootstrap import RESAMPLES, retention

        base = self._remembered(reference)
        assert score.statistic is not None
        assert base.statistic is not None
        kept = retention(score.statistic, base.statistic, score.items)
        name = f"retention{kind}"
        measure = Measure(name, None, "%", of=self.label, model=pair.label)
        if kept is None:
            return [replace(measure, note=f"the reference's {self.main} is not above 0")]
        low, high = 100 * kept.low, 100 * kept.high
        note = f"95 % interval {low:.1f} to {high:.1f}, {RESAMPLES} paired resamples"
        return [
            replace(measure, value=100 * kept.value, note=note),
            replace(measure, name=f"{name} low", value=low),
            replace(measure, name=f"{name} high", value=high),
        ]


def parse_task(text: str, **defaults: Any) -> Task:
    """`name:PATH,key=value` to a task.

    The path is the task's first setting and may be left out where that has a default. A comma
    starts a new setting only before `key=`.

    Args:
        text: What was typed.
        defaults: Settings for tasks that have them, where the text says nothing else; None is no
            setting.

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
        raise InvalidInput(f"task {text!r} names no file", f"write {name}:PATH")
    for key, value in defaults.items():
        if value is not None and key in cls.model_fields:
            values.setdefault(key, value)
    task: Task = registry.build(cls, values, f"task {text!r}")
    return task


def parse_tasks(texts: Sequence[str], **defaults: Any) -> list[Task]:
    """Several tasks, each once; those that would be called alike get longer labels."""
    tasks = list({task.spec: task for task in (parse_task(t, **defaults) for t in texts)}.values())
    alike: dict[str, list[Task]] = {}
    for task in tasks:
        alike.setdefault(task.label, []).append(task)
    for several in alike.values():
        if len(several) > 1:
            _tell_apart(several)
    return tasks


def _tell_apart(tasks: Sequence[Task]) -> None:
    """Label tasks of one label by as many folders of their paths as it takes, else by settings."""
    paths = [str(getattr(task, "path", "")) for task in tasks]
    tails = short_names(dict.fromkeys(paths))
    apart = len(tails) == len(tasks) and all(paths)
    for task, path in zip(tasks, paths, strict=True):
        tail = tails[path] if path and "://" not in path else path
        task._label = f"{task.name}:{tail}" if apart else task.spec.replace(path, tail, 1)


def run_tasks(
    tasks: Sequence[Task],
    pair: ModelPair,
    reference: ModelPair | None = None,
    *,
    clock: Callable[[Task, float], None] | None = None,
    watch: Callable[[Task], AbstractContextManager[object]] = lambda task: nullcontext(),
) -> list[Measure]:
    """Every task on one pair of encoders: for `embtool eval`, and for a run on its own student.

    Cheap to call again and again: a task reads its files once, and a reference keeps its vectors
    and its scores, so that a call costs the encoding of the tasks' texts by `pair` alone. Its
    vectors are kept too, for as long as it lives; for a model whose weights change, make it anew:

        teacher = Pair.of(teacher_encoder, "teacher")
        for ...:  # every N steps
            measures = run_tasks(tasks, Pair.of(student, "student"), teacher)

    Where the reference's vectors are already known, hand them over with
    `teacher.document.remember(texts, prompt_name, vectors)`.

    Args:
        tasks: What to measure. Tasks that need a reference are passed over without one.
        pair: Who is measured.
        reference: What retention and agreement refer to.
        clock: Called with each task and its seconds.
        watch: Gives what a task is run within, e.g. a line that shows it.
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
    """A file's name without its endings, a folder's own name."""
    name = Path(path).expanduser().absolute().name if ":" not in path else path
    return re.sub(r"(\.(csv|tsv|jsonl|json|txt|parquet|gz))+$", "", name)


def _typed(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)
