"""`--help`: options under headings, what is required first, an example last.

Written by hand onto Typer's plain formatter: rich would double the time that help takes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from typer.core import TyperCommand, TyperGroup

from emb_tool.fields import PANELS, REQUIRED, RUNNING

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Of Typer's contexts; longer lines are hard to read."""


def _room(width: int) -> int:
    """Characters for the names of options; longer ones stand on a line of their own."""
    return 20 if width < 72 else 24


OWN = {
    "help": "print this help",
    "install_completion": "let the current shell complete commands, options and names",
    "show_completion": "print what --install-completion would add to the shell",
}
"""What is said of the options that Typer adds."""


class Command(TyperCommand):
    """A command whose help has headings."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`MODEL -o PATH [OPTIONS]`: what is required, in the order of the help."""
        pieces = []
        for heading, params in _by_heading(self.get_params(ctx)).items():
            for param in params:
                name, required = _shown(param), heading == REQUIRED
                if param.param_type_name == "argument":
                    pieces.append(name if required else f"[{name}]")
                elif required:
                    pieces.append(f"{min(param.opts, key=len)} {name}")
        return [*pieces, "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """A section a heading."""
        rows = {
            heading: [_row(param, ctx) for param in params]
            for heading, params in _by_heading(self.get_params(ctx)).items()
        }
        _write({heading: rows[heading] for heading in sorted(rows, key=PANELS.index)}, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The example, on several lines where one is too short."""
        if self.epilog:
            with formatter.section("Example"):
                for line in wrap_command(self.epilog, formatter.width - 2):
                    formatter.write(f"  {line}\n")


class Group(TyperGroup):
    """The commands under headings; the options of `embtool` alone come last."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What comes after `embtool`."""
        return ["COMMAND [OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Commands, then options."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            panels.setdefault(command.rich_help_panel, []).append((name, command.short_help))
        _write(panels, formatter)
        _write({"Options": [_row(param, ctx) for param in self.get_params(ctx)]}, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Where to read on."""
        formatter.write_paragraph()
        formatter.write_text("embtool COMMAND --help has an example of each.")


def _by_heading(params: Sequence[Any]) -> dict[str, list[Any]]:
    """Parameters by heading; `--help`, which has none, is about the run."""
    found: dict[str, list[Any]] = {}
    for param in params:
        found.setdefault(getattr(param, "rich_help_panel", None) or RUNNING, []).append(param)
    return found


def _shown(param: Any) -> str:
    """The metavar of an argument, which Typer would put in brackets, or of an option."""
    return str(param.metavar or param.name.upper())


def _row(param: Any, ctx: Any) -> tuple[str, str]:
    if param.param_type_name == "argument":
        return _shown(param), param.help or ""
    names: str = param.get_help_record(ctx)[0]
    return names, OWN.get(param.name) or param.help or ""


def _write(sections: Mapping[str, Sequence[tuple[str, str]]], formatter: Any) -> None:
    """Names and what they are, side by side in one column; flags keep together at their hyphens."""
    room = _room(formatter.width)
    names = [name for rows in sections.values() for name, _ in rows]
    column = max(len(name) for name in names if len(name) <= room) + 2
    for heading, rows in sections.items():
        with formatter.section(heading):
            for name, text in rows:
                lines = wrap(text, formatter.width - column - 2, break_on_hyphens=False) or [""]
                if len(name) > room:
                    formatter.write(f"  {name}\n")
                    name = ""
                for first, line in zip((name, *[""] * len(lines)), lines, strict=False):
                    formatter.write(f"  {first:{column}}{line}".rstrip() + "\n")


def wrap_command(line: str, width: int) -> list[str]:
    r"""A command line in lines that a shell takes as one: broken before options, with `\`."""
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
