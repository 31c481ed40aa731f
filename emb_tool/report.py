"""The report of a job: one document, printed as tables or as JSON.

A `Report` contains only measured values. Every figure has its unit, so that the JSON is
self-contained; `schema` is incremented when the meaning of a key changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from emb_tool.errors import InvalidInput

SCHEMA = 1


@dataclass
class Measure:
    """One figure.

    Args:
        name: What was measured, e.g. `ndcg@10`.
        value: The figure; a fraction for scores, SI base units for the rest.
        unit: `""` for scores, else `%`, `s`, `B`, `texts/s`, ...
        of: What it was measured on, e.g. `retrieval:cranfield`; the row group in the table.
        model: Which model, when a table compares several.
        note: One short remark, e.g. a confidence interval.
        against: The model that a retention refers to, if that is not the input model.
    """

    name: str
    value: float | int | None
    unit: str = ""
    of: str = ""
    model: str = ""
    note: str = ""
    against: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as a mapping, without empty ones."""
        return {k: v for k, v in vars(self).items() if v != ""}


@dataclass
class Table:
    """A table of the measures for display."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The fields as a mapping."""
        return {"title": self.title, "columns": self.columns, "rows": self.rows}


@dataclass
class Report:
    """The result of one job.

    Args:
        verb: The command: `distill`, `eval`, `inspect`, ...
        output: The folder or file written, if any.
        job: The resolved job as plain data.
        facts: Named results that are not measures (counts, names, nested data).
        measures: Every figure.
        tables: The figures as tables.
        timings: Seconds by phase.
        warnings: Warnings, one sentence each.
        gate: Why the result fails the gate that the user set; None if it passed.
    """

    verb: str
    output: str | None = None
    job: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    measures: list[Measure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    gate: str | None = None

    @property
    def exit_code(self) -> int:
        """0 for success, 3 if the result is below the gate."""
        return 3 if self.gate else 0

    def warn(self, sentence: str) -> None:
        """Record a warning once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def value(
        self, name: str, of: str = "", model: str = "", against: str = ""
    ) -> float | int | None:
        """The figure of that name (and of that task and model, where given); None if absent.

        A retention of a root's figure is returned only if `against` names that root.
        """
        for m in self.measures:
            matches = m.name == name and m.against == against
            if matches and (not of or m.of == of) and (not model or m.model == model):
                return m.value
        return None

    def to_json(self) -> dict[str, Any]:
        """The JSON document, without tables."""
        return {
            "schema": SCHEMA,
            "verb": self.verb,
            "output": self.output,
            "job": self.job,
            "facts": self.facts,
            "measures": [m.to_json() for m in self.measures],
            "timings": {k: round(v, 3) for k, v in self.timings.items()},
            "warnings": self.warnings,
            "gate": self.gate,
        }

    def to_file(self) -> dict[str, Any]:
        """The content of `report.json`: the document with tables."""
        return self.to_json() | {"tables": [table.to_json() for table in self.tables]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Create a report from the output of `to_json` or `to_file`.

        Raises:
            InvalidInput: Not a report, or a report of another schema.
        """
        from pydantic import TypeAdapter, ValidationError

        if data.get("schema") != SCHEMA:
            raise InvalidInput(f"not a report of schema {SCHEMA}", None)
        try:
            report = TypeAdapter(cls).validate_python(
                {k: v for k, v in data.items() if k != "schema"}
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InvalidInput(f"not a report: {where}: {first['msg']}", None) from None
        return report


def is_figure(cell: str) -> bool:
    """Whether a table cell is right-aligned: a number with a unit, or an empty cell."""
    return not cell or cell == "-" or cell.lstrip("+-.~<>").split(" ")[0][:1].isdigit()
