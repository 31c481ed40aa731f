"""What a report comes to: the figures that its model card, its page and a comparison all show.

Everything is read from the report as plain data, so that one of another machine or of an older
version is read alike; what it does not tell is None. Local paths are cut to their last part and
addresses lose user, password and query: what is made of this may be published.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from emb_tool import config, registry
from emb_tool.errors import Refused
from emb_tool.report import Report, Table

POSITIONAL = ("model", "models")
"""Fields of jobs that are typed without a name."""


class Quality(NamedTuple):
    """The main figure of one task, before and after; shares and bounds in %.

    Args:
        of: The task.
        figure: Name of its main figure.
        before: Of the reference; of a merge the best input's.
        after: Of what was written.
        kept: Share of `before`.
        low: Lower bound of the 95 % interval of `kept`.
        high: Upper bound.
    """

    of: str
    figure: str
    before: float | None
    after: float | None
    kept: float | None
    low: float | None
    high: float | None


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
        quality: A row a task.
        neighbours: Share of the ten nearest neighbours kept on held-out texts.
        cosine: Mean cosine to the vectors before, on held-out texts.
        seconds: Of the work.
        check_seconds: Of measuring the written files.
        gate: Why it is below the gate.
    """

    name: str
    verb: str
    methods: tuple[str, ...]
    before: int | None
    after: int | None
    resident: int | None
    dimensions: int | None
    quality: tuple[Quality, ...]
    neighbours: float | None
    cosine: float | None
    seconds: float
    check_seconds: float
    gate: str | None

    @classmethod
    def of(cls, report: Report) -> Summary:
        """Read a report of a verb that writes a model."""
        out = report.output or ""
        timings = {k: v for k, v in report.timings.items() if k != "total_seconds"}
        check = timings.pop("check_seconds", 0.0)

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
            quality=tuple(_quality(report, out)),
            neighbours=report.value("neighbour overlap", of="held-out texts"),
            cosine=report.value("cosine mean", of="held-out texts"),
            seconds=sum(timings.values()),
            check_seconds=check,
            gate=report.gate,
        )

    @property
    def share(self) -> float | None:
        """Bytes of the weights over those before."""
        return self.after / self.before if self.after and self.before else None

    @property
    def kept(self) -> float | None:
        """What was kept at least, as a fraction: of the tasks, else of the nearest neighbours."""
        shares = [q.kept / 100 for q in self.quality if q.kept is not None]
        return min(shares, default=self.neighbours)


def _reference_size(report: Report, out: str) -> int | None:
    """Weights of the one other model that was measured."""
    others = {m.model: m.value for m in report.measures if m.name == "weights" and m.model != out}
    found = list(others.values())
    return int(found[0]) if len(found) == 1 and found[0] is not None and out else None


def _quality(report: Report, out: str) -> Iterable[Quality]:
    for of in dict.fromkeys(m.of for m in report.measures if m.of):
        main = _main(of)
        figures = [m for m in report.measures if m.of == of and m.name == main]
        after = next((m.value for m in figures if m.model == out), None)
        others = [m.value for m in figures if m.model != out and m.value is not None]
        if main and after is not None:
            shares = [report.value(f"retention{end}", of, out) for end in ("", " low", " high")]
            yield Quality(of, main, max(others, default=None), after, *shares)


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
        row("weights", shown(summary.before, "B"), shown(summary.after, "B"), share)
    if summary.resident is not None:
        row("weights in memory", "", shown(summary.resident, "B"))
    if summary.dimensions is not None:
        row("dimensions", "", f"{summary.dimensions:,}")
    for q in summary.quality:
        kept = "" if q.kept is None else f"{q.kept:.1f} %"
        if q.low is not None and q.high is not None:
            kept += f" ({q.low:.1f} to {q.high:.1f})"
        row(f"{public(q.of)}, {q.figure}", shown(q.before), shown(q.after), kept)
    if summary.neighbours is not None:
        row("ten nearest neighbours kept, held-out texts", "", "", percent(summary.neighbours))
    if summary.cosine is not None:
        row("cosine, held-out texts", "", shown(summary.cosine))
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
    except Refused:  # of a version that has more methods
        known = {}
    changed = {
        key: value
        for key, value in step.items()
        if key != "name" and (key not in known or _plain(known[key].default) != value)
    }
    settings = ",".join(f"{key}={_typed(public(value))}" for key, value in changed.items())
    return f"{name}:{settings}" if settings else name


def command(job: Mapping[str, Any]) -> str:
    """The command line that gives a job, defaults left out."""
    verb = str(job.get("verb", ""))
    try:
        known: Mapping[str, Any] = config.job_class(verb).model_fields
    except Refused:
        known = {}
    words = ["embtool", verb]
    for key in sorted(job, key=lambda key: key not in POSITIONAL):
        value, field = public(job[key]), known.get(config.field_name(key))
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


# -- names that may be published -------------------------------------------------------------------


def is_hub_id(name: str) -> bool:
    """Whether a model is named as on the hub, and no folder here is called so."""
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name)) and not Path(name).exists()


def public_name(name: str) -> str:
    """A hub id as it is, of a path the last part."""
    return name if is_hub_id(name) else Path(name).name


def public(value: Any) -> Any:
    """Plain data with local paths cut to their last part and addresses freed of secrets."""
    if isinstance(value, Mapping):
        return {key: public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if not isinstance(value, str):
        return value
    if "://" in value and not re.search(r"\s", value):
        return _without_secrets(value)
    return _PATH.sub(r"\1", value)


_PATH = re.compile(r"""(?<![\w./])(?:~|\.\.?)?/(?!/)(?:[^\s,;:'"()/]+/)*([^\s,;:'"()/]+)/?""")
"""A local path within a text, `sts:/data/file.tsv` too, but no part of an address."""


def _without_secrets(address: str) -> str:
    try:
        parts = urlsplit(address)
    except ValueError:
        return address.partition("://")[0] + "://..."
    return urlunsplit(
        (parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", parts.fragment)
    )


def shown(value: float | int | None, unit: str = "") -> str:
    """A figure for a person: bytes as MB, seconds and shares with few digits."""
    if value is None:
        return "-"
    if unit == "B":
        return f"{value / 1e6:,.2f} MB"
    if isinstance(value, int):
        text = f"{value:,}"
    elif not unit and 0.001 <= abs(value) < 10:
        text = f"{value:.4f}"
    else:
        text = f"{value:,.6g}" if unit else f"{value:,.4g}"
    return f"{text} {unit}".rstrip()


def percent(share: float | None) -> str:
    """A fraction for a person."""
    return "-" if share is None else f"{100 * share:.1f} %"
