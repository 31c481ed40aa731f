"""`--help`: options by heading, required ones first, and an example last.

It uses Typer's plain formatter; rich would double the time of `--help`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from typer.core import TyperCommand, TyperGroup

from emb_tool.fields import PANELS, REQUIRED, RUNNING

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Context settings of Typer; the width limits line length."""


def _name_width(width: int) -> int:
    """Characters for the names of options; longer names get their own line."""
    return 20 if width < 72 else 24


OWN = {
    "help": "print this help",
    "install_completion": "install completion for the current shell",
    "show_completion": "print the completion script of the current shell",
}
"""Help texts of the options that Typer adds."""


class Command(TyperCommand):
    """A command with headings in its help."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line, `MODEL -o PATH [OPTIONS]`, with required parameters in help order."""
        pieces = []
        for heading, params in _by_heading(self.get_params(ctx)).items():
            for param in params:
                name, required = _metavar(param), heading == REQUIRED
                if param.param_type_name == "argument":
                    pieces.append(name if required else f"[{name}]")
                elif required:
                    pieces.append(f"{min(param.opts, key=len)} {name}")
        return [*pieces, "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section per heading."""
        rows = {
            heading: [_row(param, ctx) for param in params]
            for heading, params in _by_heading(self.get_params(ctx)).items()
        }
        _write({heading: rows[heading] for heading in sorted(rows, key=PANELS.index)}, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the example, wrapped to the width."""
        if self.epilog:
            with formatter.section("Example"):
                for line in wrap_command(self.epilog, formatter.width - 2):
                    formatter.write(f"  {line}\n")


class Group(TyperGroup):
    """The commands by heading, followed by the global options."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line after `embtool`."""
        return ["COMMAND [OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panels.setdefault(command.rich_help_panel, []).append((name, command.short_help))
        _write(panels, formatter)
        _write({"Options": [_row(param, ctx) for param in self.get_params(ctx)]}, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write where further help is."""
        formatter.write_paragraph()
        formatter.write_text("embtool COMMAND --help has an example of each.")


def _by_heading(params: Sequence[Any]) -> dict[str, list[Any]]:
    """Parameters by heading; `--help` has none and is listed under `RUNNING`."""
    groups: dict[str, list[Any]] = {}
    for param in params:
        groups.setdefault(getattr(param, "rich_help_panel", None) or RUNNING, []).append(param)
    return groups


def _metavar(param: Any) -> str:
    """The metavar of an argument (Typer would add brackets) or of an option."""
    return str(param.metavar or param.name.upper())


def _row(param: Any, ctx: Any) -> tuple[str, str]:
    if param.param_type_name == "argument":
        return _metavar(param), param.help or ""
    names: str = param.get_help_record(ctx)[0]
    return names, OWN.get(param.name) or param.help or ""


def _write(sections: Mapping[str, Sequence[tuple[str, str]]], formatter: Any) -> None:
    """Write names and descriptions in two columns, without breaks at hyphens."""
    limit = _name_width(formatter.width)
    names = [name for rows in sections.values() for name, _ in rows]
    column = max(len(name) for name in names if len(name) <= limit) + 2
    for heading, rows in sections.items():
        with formatter.section(heading):
            for name, text in rows:
                lines = wrap(text, formatter.width - column - 2, break_on_hyphens=False) or [""]
                if len(name) > limit:
                    formatter.write(f"  {name}\n")
                    name = ""
                for first, line in zip((name, *[""] * len(lines)), lines, strict=False):
                    formatter.write(f"  {first:{column}}{line}".rstrip() + "\n")


def wrap_command(line: str, width: int) -> list[str]:
    r"""Wrap a command line before options, with `\` at the line ends."""
    lines = [""]
    groups: list[str] = []
    for word in shlex.split(line):
        if groups and not word.startswith("-") and groups[-1].startswith("-"):
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    for group in groups:
        if lines[-1] and len(lines[-1]) + len(group) + 3 > width:
            lines.append("  ")
        lines[-1] += group if not lines[-1].strip() else f" {group}"
    return [f"{part} \\" for part in lines[:-1]] + lines[-1:]
