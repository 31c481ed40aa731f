"""The methods of each command; with a method's name, its settings, limits and paper."""

from __future__ import annotations

from typing import Annotated

import typer

from emb_tool import config, registry
from emb_tool.cli import completion, output
from emb_tool.cli.fields import describe, kind
from emb_tool.report import Report, Table


def command(
    verb: Annotated[
        str | None, typer.Argument(help="a command, e.g. distill", autocompletion=completion.verbs)
    ] = None,
    method: Annotated[
        str | None, typer.Argument(help="one of its methods", autocompletion=completion.methods_of)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Print the tables; nothing heavy is imported."""
    report = Report(verb="methods")
    if verb:
        registry.choose(verb, registry.VERBS, "command")
    if verb and method:
        _settings(report, verb, method)
    else:
        verbs = [verb] if verb else [v for v in registry.VERBS if registry.methods(v)]
        report.facts["methods"] = {v: {} for v in verbs}
        for each in verbs:
            table = Table(f"embtool {each}", ["method", "what it does"])
            for row in registry.methods(each).values():
                table.rows.append([row.name, row.summary])
                report.facts["methods"][each][row.name] = row.summary
            if not table.rows:
                table.rows.append(["-", f"embtool {each} has no methods to choose from"])
            report.tables.append(table)
    output.show([report], json)


def _settings(report: Report, verb: str, method: str) -> None:
    cls = registry.load(verb, method)
    row = registry.methods(verb)[method]
    table = Table(f"{verb} -m {method}: {row.summary}", ["setting", "value", "what it is"])
    report.facts["settings"] = {}
    for name, field in cls.model_fields.items():
        what, metavar = kind(field)
        values = "true|false" if what == "flag" else metavar
        shown = (
            values if len(values) <= output.SHORT else values.replace("|", " | ")
        )  # can be folded
        table.rows.append([name, shown, describe(field)])
        report.facts["settings"][name] = {"values": values, "description": describe(field)}
    report.facts["paper"] = cls.paper
    report.facts["default"] = config.job_class(verb).default_method == method
    report.tables.append(table)
    for name, settings in getattr(cls, "presets", {}).items():
        shown = ", ".join(f"{key}={value}" for key, value in settings.items()) or "the defaults"
        report.tables.append(Table(f"--preset {name}: {shown}", []))
    if cls.paper:
        report.tables.append(Table(f"paper: {cls.paper}", []))
