"""What a report comes to: the figures that its model card, its page and a comparison all show.

Everything is read from the report as plain data, so that one of another machine or of an older
version is read alike; what it does not tell is None. Names are made public (`emb_tool.formatting`):
what is made of this may be published.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from emb_tool import config, registry
from emb_tool.errors import InvalidInput
from emb_tool.formatting import format_value, percent, public_name, redact
from emb_tool.report import Report, Table

ENDS = ("", " low", " high")
"""Of the names of a share and its 95 % interval."""

POSITIONAL = ("model", "models")
"""Fields of jobs that are typed without a name."""


class Quality(NamedTuple):
    """The main figure of one task, of a model and of what it is compared with; shares in %.

    Args:
        of: The task.
        figure: Name of its main figure.
        before: Of the other model; of a merge the best input's.
        after: Of what was written.
        kept: Share of `before`.
        low: Lower bound of the 95 % interval of `kept`.
        high: Upper bound.
        against: What to call the other model.
    """

    of: str
    figure: str
    before: float | None
    after: float | None
    kept: float | None
    low: float | None
    high: float | None
    against: str


class Ancestor(NamedTuple):
    """A model that an output comes from.

    Args:
        name: As measures have it.
        key: By which it is known again: the digest of its files, else the name.
        bytes: Of its weights.
        suffix: Put after what it is called, where another is called the same.
    """

    name: str
    key: str
    bytes: int | None
    suffix: str = ""

    @property
    def shown(self) -> str:
        """Its name, a path cut to the last part."""
        return public_name(self.name) + self.suffix


@dataclass(frozen=True)
class Summary:
    """One output in figures.

    Args:
        name: The folder's own name.
        verb: The command.
        methods: The chain, as one would type it.
        before: Bytes of the weights that went in (of the teacher, for a student).
        after: Bytes of the weights written.
        resident: Bytes of the weights in memory.
        dimensions: Of a vector.
        input: What it was made from; None where that is several models, or not known.
        root: What that goes back to, the input itself where it goes no further; of a merge, what
            its base goes back to.
        broken: Why it is not followed further, though the root was made of something, too.
        quality: A row a task, against the input.
        root_quality: A row a task against a root that is not the input, where it was measured.
        neighbours: Share of the ten nearest neighbours kept on held-out texts, of the input's.
        root_neighbours: Of those of a root that is not the input.
        cosine: Mean cosine to the vectors before, on held-out texts.
        seconds: Wall time of the command.
        check_seconds: What measuring the written files took of it.
        resumed: Whether an earlier run had done a part.
        gate: Why it is below the gate.
    """

    name: str
    verb: str
    methods: tuple[str, ...]
    before: int | None
    after: int | None
    resident: int | None
    dimensions: int | None
    input: Ancestor | None
    root: Ancestor | None
    broken: str | None
    quality: tuple[Quality, ...]
    root_quality: tuple[Quality, ...]
    neighbours: float | None
    root_neighbours: float | None
    cosine: float | None
    seconds: float | None
    check_seconds: float
    resumed: bool
    gate: str | None

    @classmethod
    def of(cls, report: Report) -> Summary:
        """Read a report of a verb that writes a model."""
        out = report.output or ""
        made_from, root, broken = _ancestors(report)
        if root and made_from and root != made_from and root.shown == made_from.shown:
            root = root._replace(suffix=" (root)")
        far = root if root != made_from else None
        texts = "held-out texts"

        def whole(name: str, model: str = "") -> int | None:
            value = report.value(name, model=model)
            return None if value is None else int(value)

        return cls(
            name=public_name(out),
            verb=report.verb,
            methods=methods(report.job),
            before=whole("weights before") or _reference_size(report, out),
            after=whole("weights", out),
            resident=whole("resident"),
            dimensions=whole("dimensions", out),
            input=made_from,
            root=root,
            broken=broken,
            quality=tuple(_quality(report, out, made_from, far)),
            root_quality=tuple(_root_quality(report, out, far)) if far else (),
            neighbours=report.value("neighbour overlap", of=texts),
            root_neighbours=far and report.value("neighbour overlap", texts, out, far.name),
            cosine=report.value("cosine mean", of=texts),
            seconds=report.timings.get("total_seconds"),
            check_seconds=report.timings.get("check_seconds", 0.0),
            resumed=report.facts.get("resumed") is True,
            gate=report.gate,
        )

    @property
    def share(self) -> float | None:
        """Bytes of the weights over those before."""
        return self.after / self.before if self.after and self.before else None

    @property
    def rows(self) -> list[Quality]:
        """Every task's row against the input, then that against the root."""
        both = (*self.quality, *self.root_quality)
        order = list(dict.fromkeys(q.of for q in both))
        return sorted(both, key=lambda q: order.index(q.of))


def lowest_retention(quality: Iterable[Quality]) -> float | None:
    """The lowest share that is kept in any task, as a fraction; None where none is known."""
    return min((q.kept / 100 for q in quality if q.kept is not None), default=None)


def _ancestors(report: Report) -> tuple[Ancestor | None, Ancestor | None, str | None]:
    """Input, root, and why it is not followed further; by the job where the report does not say."""
    told = report.facts.get("lineage")
    if isinstance(told, Mapping):
        found = [_ancestor(told.get(key)) for key in ("input", "root")]
        broken = told.get("broken")
        return found[0], found[1], broken if isinstance(broken, str) else None
    name = parent_name(report.verb, report.job)
    if name is None:
        return None, None, None
    size = report.value("weights before")
    parent = Ancestor(name, name, None if size is None else int(size))
    return parent, parent, None


def parent_name(verb: str, job: Mapping[str, Any]) -> str | None:
    """The model that an output was made from, as the user named it.

    Args:
        verb: The command.
        job: The resolved job as plain data.
    """
    setting = config.job_class(verb).parent if verb in registry.VERBS else None
    name = job.get(setting) if setting else None
    return name if isinstance(name, str) else None


def _ancestor(told: Any) -> Ancestor | None:
    if not isinstance(told, Mapping) or not isinstance(told.get("name"), str):
        return None
    name, key, size = told["name"], told.get("digest"), told.get("bytes")
    known = isinstance(key, str)
    return Ancestor(name, str(key) if known else name, size if type(size) is int else None)


def _reference_size(report: Report, out: str) -> int | None:
    """Weights of the one other model that was measured."""
    others = {m.model: m.value for m in report.measures if m.name == "weights" and m.model != out}
    found = list(others.values())
    return int(found[0]) if len(found) == 1 and found[0] is not None and out else None


def _quality(
    report: Report, out: str, made_from: Ancestor | None, far: Ancestor | None
) -> Iterable[Quality]:
    """Rows against the input; of several inputs, against the best."""
    models = report.job.get("models") or ()
    besides = {out, far.name} if far and far.name not in models else {out}
    for of, main in _tasks(report):
        figures = [m for m in report.measures if m.of == of and m.name == main]
        after = next((m.value for m in figures if m.model == out), None)
        others = [m.value for m in figures if m.model not in besides and m.value is not None]
        if after is not None:
            kept, low, high = (report.value(f"retention{end}", of, out) for end in ENDS)
            name = made_from.shown if made_from else "the best input"
            yield Quality(of, main, max(others, default=None), after, kept, low, high, name)


def _root_quality(report: Report, out: str, root: Ancestor) -> Iterable[Quality]:
    """Rows against the root, of the tasks whose share of it was measured."""
    for of, main in _tasks(report):
        kept, low, high = (report.value(f"retention{end}", of, out, root.name) for end in ENDS)
        if kept is not None:
            before, after = (report.value(main, of, model) for model in (root.name, out))
            yield Quality(of, main, before, after, kept, low, high, root.shown)


def _tasks(report: Report) -> Iterable[tuple[str, str]]:
    """Tasks with the name of their main figure."""
    for of in dict.fromkeys(m.of for m in report.measures if m.of):
        if main := _main(of):
            yield of, main


def _main(of: str) -> str | None:
    """The figure by which a task is summed up; None for what is no task."""
    name = of.partition(":")[0]
    if name not in registry.methods("eval"):
        return None
    return getattr(registry.load("eval", name), "main", None)


def cost(report: Report, summary: Summary) -> Table:
    """What an output is beside what it was made of."""
    table = Table("", ["", "before", "after", "share"])

    def row(name: str, before: str, after: str, share: str = "") -> None:
        table.rows.append([name, before, after, share])

    share = percent(summary.share) if summary.share else ""
    if summary.after is not None:
        row("weights", format_value(summary.before, "B"), format_value(summary.after, "B"), share)
    if summary.resident is not None:
        row("weights in memory", "", format_value(summary.resident, "B"))
    if summary.dimensions is not None:
        row("dimensions", "", f"{summary.dimensions:,}")
    for q in summary.rows:
        kept = "" if q.kept is None else f"{q.kept:.1f} %"
        if q.low is not None and q.high is not None:
            kept += f" ({q.low:.1f} to {q.high:.1f})"
        kept += f" of {q.against}" if kept else ""
        row(f"{redact(q.of)}, {q.figure}", format_value(q.before), format_value(q.after), kept)
    neighbours = "ten nearest neighbours kept, held-out texts"
    for ancestor, overlap in (
        (summary.input, summary.neighbours),
        (summary.root, summary.root_neighbours),
    ):
        if overlap is not None:
            whose = f" of {ancestor.shown}" if ancestor else ""
            row(neighbours, "", "", percent(overlap) + whose)
    if summary.cosine is not None:
        row("cosine, held-out texts", "", format_value(summary.cosine))
    return table


# -- what was typed --------------------------------------------------------------------------------


def methods(job: Mapping[str, Any]) -> tuple[str, ...]:
    """The chain of a job, each method as `-m` takes it, defaults left out."""
    verb, chain = str(job.get("verb", "")), job.get("method") or []
    steps = [chain] if isinstance(chain, Mapping) else chain
    return tuple(_spelled(verb, step) for step in steps if isinstance(step, Mapping))


def _spelled(verb: str, step: Mapping[str, Any]) -> str:
    name = str(step.get("name", ""))
    try:
        known = registry.load(verb, name).model_fields
    except InvalidInput:  # of a version that has more methods
        known = {}
    changed = {
        key: value
        for key, value in step.items()
        if key != "name" and (key not in known or _plain(known[key].default) != value)
    }
    settings = ",".join(f"{key}={_typed(redact(value))}" for key, value in changed.items())
    return f"{name}:{settings}" if settings else name


def command(job: Mapping[str, Any]) -> str:
    """The command line that gives a job, defaults left out."""
    verb = str(job.get("verb", ""))
    try:
        known: Mapping[str, Any] = config.job_class(verb).model_fields
    except InvalidInput:
        known = {}
    words = ["embtool", verb]
    for key in sorted(job, key=lambda key: key not in POSITIONAL):
        value, field = redact(job[key]), known.get(config.field_name(key))
        if key in ("verb", "method") or (field is not None and _plain(field.default) == job[key]):
            continue
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
            continue
        numbers = isinstance(value, list) and all(isinstance(x, int | float) for x in value)
        several = isinstance(value, list) and not numbers  # keep=0,2,5 is one word
        values = [_typed(item) for item in value] if several else [_typed(value)]
        words += values if key in POSITIONAL else [flag, *values]
    for step in methods(job):
        words += ["-m", step]
    return shlex.join(words)


def _typed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
