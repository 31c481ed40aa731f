"""`embtool`: the commands, and the one place where errors become sentences."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import typer

from emb_tool import __version__
from emb_tool.cli import completion, output
from emb_tool.errors import EmbToolError, Followed, Interrupted

COMMANDS: dict[str, tuple[str, str]] = {
    "distill": ("emb_tool.cli.distill", "train a small student in the teacher's vector space"),
    "compress": ("emb_tool.cli.compress", "fewer dimensions, layers, tokens and bits"),
    "merge": ("emb_tool.cli.merge", "one model of several: soups, task vectors, ties"),
    "extend-context": ("emb_tool.cli.extend_context", "let a model read longer texts"),
    "eval": ("emb_tool.cli.eval", "measure models: sts, retrieval, agreement, speed"),
    "doctor": ("emb_tool.cli.doctor", "what this installation and this machine can do"),
    "encode": ("emb_tool.cli.encode", "texts to vectors, npy or parquet"),
    "expand": ("emb_tool.cli.expand", "a packed checkpoint as a plain one"),
    "inspect": ("emb_tool.cli.inspect", "what a checkpoint holds, from its headers"),
    "methods": ("emb_tool.cli.methods", "the methods of each command, and their settings"),
    "report": ("emb_tool.cli.report", "outputs side by side, from their own reports"),
    "run": ("emb_tool.cli.run", "carry out the jobs of a recipe"),
    "store": ("emb_tool.cli.store", "list or prune the stored teacher vectors"),
}
"""Command to module (with a `command` function, and `LISTS`, its options of several values)."""


def build(wanted: str | None) -> tuple[typer.Typer, set[str]]:
    """The application; only the wanted command gets its options, so that help is quick."""
    from importlib import import_module

    app = typer.Typer(
        help="Smaller, faster, longer-reading embedding models, and what each step cost.",
        no_args_is_help=True,
        add_completion=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def print_version(wanted: bool) -> None:
        if wanted:
            print(f"embtool {__version__}")
            raise typer.Exit

    @app.callback()
    def top(
        version: bool = typer.Option(
            False,
            "--version",
            is_eager=True,  # before a command is asked for
            callback=print_version,
            help="print the version and stop",
        ),
    ) -> None:
        pass

    lists: set[str] = set()
    for name, (module, summary) in COMMANDS.items():
        if name == wanted:
            loaded = import_module(module)
            function = loaded.command
            lists = getattr(loaded, "LISTS", set())
            text = (loaded.__doc__ or summary).strip()
        else:
            function, text = _placeholder, summary
        app.command(name, help=text, short_help=summary)(function)
    return app, lists


def _placeholder() -> None:
    """Stands for the commands that were not asked for."""


def wanted_command(argv: Sequence[str]) -> str | None:
    """The first word that names a command."""
    return next((word for word in argv if not word.startswith("-")), None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in words
    typed = completion.words()  # a shell asks what may come next
    wanted = wanted_command(words if typed is None else typed)
    try:
        if typed is not None and wanted not in COMMANDS:
            wanted = None
        elif wanted and wanted not in COMMANDS:
            from emb_tool import registry

            registry.choose(wanted, COMMANDS, "command")
        app, lists = build(wanted)
        from emb_tool.cli.options import spread_lists

        asked: AbstractContextManager[None] = nullcontext()
        if typed is not None:
            asked = completion.handed(spread_lists(typed, lists))
        with asked:
            code = app(args=spread_lists(words, lists), prog_name="embtool", standalone_mode=False)
        return int(code or 0)
    except Followed as error:
        return error.exit_code
    except EmbToolError as error:
        output.fail(error, as_json)
        return error.exit_code
    except KeyboardInterrupt:
        output.fail(Interrupted(2), as_json)
        return 130
    except Exception as error:
        usage = _usage_error(error)
        if usage is None:
            raise
        output.fail(usage, as_json)
        return 2


def _usage_error(error: Exception) -> EmbToolError | None:
    """Typer's own refusals (unknown option, missing value) in our words; None for a bug."""
    message: Callable[[], str] | None = getattr(error, "format_message", None)
    if message is None or getattr(error, "exit_code", None) is None:
        return None
    from emb_tool.errors import Refused

    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "embtool"
    return Refused(message().rstrip("."), f"see {path} --help")
