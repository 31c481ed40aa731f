"""Summary of a report: the figures shown by its model card, its page and comparisons.

Everything is read from the report as plain data, so that reports of other machines and older
versions are supported; missing values are None. Names are redacted (`emb_tool.formatting`), because
model cards and pages may be published.
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

SUFFIXES = ("", " low", " high")
"""Suffixes of the names of a retention and its 95 % interval."""

POSITIONAL = ("model", "models")
"""Positional fields of jobs."""


class Quality(NamedTuple):
    """The main figure of a task for an output and the model it is compared with; shares in %.

    Args:
        of: The task.
        figure: Name of its main figure.
        before: Figure of the other model; for a merge, of the best input.
        after: Figure of the output.
        retention: after / before, in %.
        low: Lower bound of the 95 % interval of `retention`.
        high: Upper bound.
        against: Display name of the other model.
    """

    of: str
    figure: str
    before: float | None
    after: float | None
    retention: float | None
    low: float | None
    high: float | None
    against: str


class Ancestor(NamedTuple):
    """A model that an output was derived from.

    Args:
        name: Name in measures.
        key: Identity of the model: the digest of its files, else the name.
        bytes: Size of its weights.
        suffix: Suffix of the display name, if another model has the same name.
    """

    name: str
    key: str
    bytes: int | None
    suffix: str = ""

    @property
    def shown(self) -> str:
        """The display name; of a path only the last component."""
        return public_name(self.name) + self.suffix


@dataclass(frozen=True)
class Summary:
    """The figures of one output.

    Args:
        name: Name of the output folder.
        verb: The command.
        methods: The chain of methods, in command line syntax.
        before: Bytes of the input's weights (for a student, of the teacher's).
        after: Bytes of the weights written.
        resident: Bytes of the weights in memory.
        dimensions: Dimensions of a vector.
        input: The input model; None if there are several, or it is unknown.
        root: The root of the input, or the input itself; for a merge, the root of its base.
        broken: Why the parent of `root` is unavailable, if it has one.
        quality: One row per task, relative to the input.
        root_quality: One row per task relative to a root other than the input, if measured.
        neighbors: Fraction of the input's ten nearest neighbors retained on held-out texts.
        root_neighbors: The same for a root other than the input.
        cosine: Mean cosine to the input's vectors on held-out texts.
        seconds: Wall time of the command.
        check_seconds: The part of it that checked the written files.
        resumed: Whether the run continued an earlier one.
        gate: The message of a failed gate.
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
    neighbors: float | None
    root_neighbors: float | None
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
        distant_root = root if root != made_from else None
        texts = "held-out texts"

        def integer(name: str, model: str = "") -> int | None:
            value = report.value(name, model=model)
            return None if value is None else int(value)

        return cls(
            name=public_name(out),
            verb=report.verb,
            methods=methods(report.job),
            before=integer("weights before") or _reference_size(report, out),
            after=integer("weights", out),
            resident=integer("resident"),
            dimensions=integer("dimensions", out),
            input=made_from,
            root=root,
            broken=broken,
            quality=tuple(_quality(report, out, made_from, distant_root)),
            root_quality=tuple(_root_quality(report, out, distant_root)) if distant_root else (),
            neighbors=report.value("neighbor overlap", of=texts),
            root_neighbors=distant_root
            and report.value("neighbor overlap", texts, out, distant_root.name),
            cosine=report.value("cosine mean", of=texts),
            seconds=report.timings.get("total_seconds"),
            check_seconds=report.timings.get("check_seconds", 0.0),
            resumed=report.facts.get("resumed") is True,
            gate=report.gate,
        )

    @property
    def share(self) -> float | None:
        """Size of the output's weights as a fraction of the input's."""
        return self.after / self.before if self.after and self.before else None

    @property
    def rows(self) -> list[Quality]:
        """For every task the row relative to the input, then the one relative to the root."""
        both = (*self.quality, *self.root_quality)
        order = list(dict.fromkeys(q.of for q in both))
        return sorted(both, key=lambda q: order.index(q.of))


def lowest_retention(quality: Iterable[Quality]) -> float | None:
    """The lowest retention of any task, as a fraction; None if there is none."""
    return min((q.retention / 100 for q in quality if q.retention is not None), default=None)


def _ancestors(report: Report) -> tuple[Ancestor | None, Ancestor | None, str | None]:
    """Input, root, and why the root's parent is unavailable; without lineage, from the job."""
    lineage = report.facts.get("lineage")
    if isinstance(lineage, Mapping):
        parent, root = (_ancestor(lineage.get(key)) for key in ("input", "root"))
        broken = lineage.get("broken")
        return parent, root, broken if isinstance(broken, str) else None
    name = parent_name(report.verb, report.job)
    if name is None:
        return None, None, None
    size = report.value("weights before")
    parent = Ancestor(name, name, None if size is None else int(size))
    return parent, parent, None


def parent_name(verb: str, job: Mapping[str, Any]) -> str | None:
    """The parent model of an output, as named by the user.

    Args:
        verb: The command.
        job: The resolved job as plain data.
    """
    setting = config.job_class(verb).parent if verb in registry.VERBS else None
    name = job.get(setting) if setting else None
    return name if isinstance(name, str) else None


def _ancestor(entry: Any) -> Ancestor | None:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        return None
    name, key, size = entry["name"], entry.get("digest"), entry.get("bytes")
    return Ancestor(
        name, key if isinstance(key, str) else name, size if type(size) is int else None
    )


def _reference_size(report: Report, out: str) -> int | None:
    """Size of the weights of the only other measured model, if there is exactly one."""
    others = {m.model: m.value for m in report.measures if m.name == "weights" and m.model != out}
    sizes = list(others.values())
    return int(sizes[0]) if len(sizes) == 1 and sizes[0] is not None and out else None


def _quality(
    report: Report, out: str, made_from: Ancestor | None, distant_root: Ancestor | None
) -> Iterable[Quality]:
    """Rows relative to the input, or to the best of several inputs."""
    models = report.job.get("models") or ()
    excluded = (
        {out, distant_root.name} if distant_root and distant_root.name not in models else {out}
    )
    for of, main in _tasks(report):
        figures = [m for m in report.measures if m.of == of and m.name == main]
        after = next((m.value for m in figures if m.model == out), None)
        others = [m.value for m in figures if m.model not in excluded and m.value is not None]
        if after is not None:
            value, low, high = (report.value(f"retention{suffix}", of, out) for suffix in SUFFIXES)
            name = made_from.shown if made_from else "the best input"
            yield Quality(of, main, max(others, default=None), after, value, low, high, name)


def _root_quality(report: Report, out: str, root: Ancestor) -> Iterable[Quality]:
    """Rows relative to the root, for tasks with a measured retention."""
    for of, main in _tasks(report):
        value, low, high = (
            report.value(f"retention{suffix}", of, out, root.name) for suffix in SUFFIXES
        )
        if value is not None:
            before, after = (report.value(main, of, model) for model in (root.name, out))
            yield Quality(of, main, before, after, value, low, high, root.shown)


def _tasks(report: Report) -> Iterable[tuple[str, str]]:
    """Tasks with the name of their main figure."""
    for of in dict.fromkeys(m.of for m in report.measures if m.of):
        if main := _main(of):
            yield of, main


def _main(of: str) -> str | None:
    """The main figure of a task; None for unknown tasks."""
    name = of.partition(":")[0]
    if name not in registry.methods("eval"):
        return None
    return getattr(registry.load("eval", name), "main", None)


def cost(report: Report, summary: Summary) -> Table:
    """Size and quality of an output and of its input."""
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
        retention = "" if q.retention is None else f"{q.retention:.1f} %"
        if q.low is not None and q.high is not None:
            retention += f" ({q.low:.1f} to {q.high:.1f})"
        retention += f" of {q.against}" if retention else ""
        row(f"{redact(q.of)}, {q.figure}", format_value(q.before), format_value(q.after), retention)
    label = "overlap of the ten nearest neighbors, held-out texts"
    for ancestor, overlap in (
        (summary.input, summary.neighbors),
        (summary.root, summary.root_neighbors),
    ):
        if overlap is not None:
            of = f" of {ancestor.shown}" if ancestor else ""
            row(label, "", "", percent(overlap) + of)
    if summary.cosine is not None:
        row("cosine, held-out texts", "", format_value(summary.cosine))
    return table


# -- command lines ---------------------------------------------------------------------------------


def methods(job: Mapping[str, Any]) -> tuple[str, ...]:
    """The methods of a job in the syntax of `-m`, without defaults."""
    verb, chain = str(job.get("verb", "")), job.get("method") or []
    steps = [chain] if isinstance(chain, Mapping) else chain
    return tuple(_format_method(verb, step) for step in steps if isinstance(step, Mapping))


def _format_method(verb: str, step: Mapping[str, Any]) -> str:
    name = str(step.get("name", ""))
    try:
        known = registry.load(verb, name).model_fields
    except InvalidInput:  # from a version with more methods
        known = {}
    changed = {
        key: value
        for key, value in step.items()
        if key != "name" and (key not in known or _as_list(known[key].default) != value)
    }
    settings = ",".join(f"{key}={_format_setting(redact(value))}" for key, value in changed.items())
    return f"{name}:{settings}" if settings else name


def command(job: Mapping[str, Any]) -> str:
    """The command line of a job, without defaults."""
    verb = str(job.get("verb", ""))
    try:
        known: Mapping[str, Any] = config.job_class(verb).model_fields
    except InvalidInput:
        known = {}
    words = ["embtool", verb]
    for key in sorted(job, key=lambda key: key not in POSITIONAL):
        value, field = redact(job[key]), known.get(config.field_name(key))
        if key in ("verb", "method") or (field is not None and _as_list(field.default) == job[key]):
            continue
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
            continue
        is_numeric = isinstance(value, list) and all(isinstance(x, int | float) for x in value)
        is_multiple = isinstance(value, list) and not is_numeric  # keep=0,2,5 is one word
        values = (
            [_format_setting(item) for item in value] if is_multiple else [_format_setting(value)]
        )
        words += values if key in POSITIONAL else [flag, *values]
    for step in methods(job):
        words += ["-m", step]
    return shlex.join(words)


def _format_setting(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
