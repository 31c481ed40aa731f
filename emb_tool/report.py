"""What a job did and what it cost: one document, printed as tables or as JSON.

A `Report` holds only what was measured. Every figure carries its unit, so that the JSON can be
read without this code; `schema` is raised when a key changes its meaning.
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
        against: Of what a share is one, where that is not what the model was made from.
    """

    name: str
    value: float | int | None
    unit: str = ""
    of: str = ""
    model: str = ""
    note: str = ""
    against: str = ""

    def to_json(self) -> dict[str, Any]:
        """Its fields; those left empty stay out."""
        return {k: v for k, v in vars(self).items() if v != ""}


@dataclass
class Table:
    """Rows for a person: the same figures as the measures, laid out."""

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
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
        tables: How the figures are shown to a person.
        timings: Seconds by phase.
        warnings: What the user should know, each a sentence.
        gate: Why the result is below the gate that the user set; `None` when it passed.
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
        """0 done, 3 done but below the gate."""
        return 3 if self.gate else 0

    def warn(self, sentence: str) -> None:
        """Record a warning once."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def value(
        self, name: str, of: str = "", model: str = "", against: str = ""
    ) -> float | int | None:
        """The figure of that name (and of that task and model, where given); None if absent.

        What is a share of a root's figure is found only where `against` names it.
        """
        for m in self.measures:
            named = m.name == name and m.against == against
            if named and (not of or m.of == of) and (not model or m.model == model):
                return m.value
        return None

    def to_json(self) -> dict[str, Any]:
        """The one JSON document (tables are a view of it and stay out)."""
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
        """What stands in `report.json`: the document with the tables."""
        return self.to_json() | {"tables": [table.to_json() for table in self.tables]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Take up what `to_json` or `to_file` gave.

        Raises:
            InvalidInput: It is no report, or one of a newer schema.
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
    """Whether a table's cell is to stand right: a number, its unit, or nothing."""
    return not cell or cell == "-" or cell.lstrip("+-.~<>").split(" ")[0][:1].isdigit()
