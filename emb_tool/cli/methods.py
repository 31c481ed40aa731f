"""List the methods of each command, or the settings, limits and paper of a method."""

from __future__ import annotations

from typing import Annotated

import typer

from emb_tool import config, registry
from emb_tool.cli import completion, output
from emb_tool.errors import InvalidInput
from emb_tool.fields import SUBJECT, default, kind, limits
from emb_tool.report import Report, Table

EXAMPLE = "embtool methods compress int"


def command(
    verb: Annotated[
        str | None,
        typer.Argument(
            metavar="COMMAND",
            help="a command such as distill, or the name of a method",
            autocompletion=completion.verbs,
            rich_help_panel=SUBJECT,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD",
            help="one of its methods",
            autocompletion=completion.methods_of,
            rich_help_panel=SUBJECT,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Print the tables, without importing heavy packages."""
    report = Report(verb="methods")
    if verb and verb not in registry.VERBS:
        verb, method = _find_method(verb)
    if verb and method:
        _settings(report, verb, method)
    else:
        verbs = [verb] if verb else [v for v in registry.VERBS if registry.methods(v)]
        report.facts["methods"] = {v: {} for v in verbs}
        for name in verbs:
            table = Table(f"embtool {name}", ["method", "what it does"])
            for row in registry.methods(name).values():
                table.rows.append([row.name, row.summary])
                report.facts["methods"][name][row.name] = row.summary
            if not table.rows:
                table.rows.append(["-", f"embtool {name} has no methods"])
            report.tables.append(table)
    output.show([report], json)


def _find_method(name: str) -> tuple[str, str]:
    """Verb and method of a method name.

    Raises:
        InvalidInput: No method, or several methods, have that name.
    """
    verbs = registry.verbs_with(name)
    if len(verbs) == 1:
        return verbs[0], name
    if verbs:
        lines = " or ".join(f"embtool methods {verb} {name}" for verb in verbs)
        raise InvalidInput(f"{name} is a method of {' and '.join(verbs)}", f"write {lines}")
    every = [*registry.VERBS, *(name for verb in registry.VERBS for name in registry.methods(verb))]
    raise InvalidInput(
        f"unknown command or method {name!r:.200}", registry.did_you_mean(name, every)
    )


def _settings(report: Report, verb: str, method: str) -> None:
    cls = registry.load(verb, method)
    row = registry.methods(verb)[method]
    title = f"embtool {verb} ... {registry.option(verb)} {method}: {row.summary}"
    table = Table(title, ["setting", "value", "default", "description"])
    report.facts["settings"] = {}
    for name, field in cls.model_fields.items():
        what, metavar = kind(field)
        values = {"flag": "true|false", "list": metavar.replace("...", ",...")}.get(what, metavar)
        # allows wrapping of long choices
        value = values if len(values) <= output.SHORT else values.replace("|", " | ")
        default_text = "required" if field.is_required() else default(field)
        bounds = limits(field)
        text = field.description or ""
        table.rows.append([name, f"{value} {bounds}".strip(), default_text, text])
        report.facts["settings"][name] = {
            "values": values, "limits": bounds, "default": default_text, "description": text,
        }  # fmt: skip
    report.facts["paper"] = cls.paper
    report.facts["default"] = config.job_class(verb).default_method == method
    if table.rows:
        report.tables.append(table)
    else:
        report.tables.append(Table(f"{title}\nno settings", []))
    for name, settings in getattr(cls, "presets", {}).items():
        preset = ", ".join(f"{key}={value}" for key, value in settings.items()) or "the defaults"
        report.tables.append(Table(f"--preset {name}: {preset}", []))
    if cls.paper:
        report.tables.append(Table(f"paper: {cls.paper}", []))
