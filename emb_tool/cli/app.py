"""The `embtool` application: its commands, and the conversion of errors to messages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import typer

from emb_tool import registry
from emb_tool.cli import completion, output
from emb_tool.cli.help import SETTINGS, Command, Group
from emb_tool.errors import EmbToolError, Interrupted, PeerFailed
from emb_tool.fields import HEADINGS, KNOWN, MADE, USED
from emb_tool.version import __version__

COMMANDS: dict[str, tuple[str, str]] = {
    "run": (MADE, "run the jobs of a recipe"),
    "report": (USED, "compare outputs by their reports"),
    "expand": (USED, "convert a packed checkpoint to a plain one"),
    "inspect": (KNOWN, "show the contents of a checkpoint from its headers"),
    "methods": (KNOWN, "list the methods of each command and their settings"),
    "store": (KNOWN, "list or prune the stored teacher vectors"),
    "doctor": (KNOWN, "check the installation and the machine"),
}
"""Heading and summary of each command that is not a verb.

Its module in `emb_tool.cli` has a `command` function and `EXAMPLE`, a valid command line; its
docstring is the help text. Verbs are in `emb_tool.registry`.
"""


def commands() -> dict[str, tuple[str, str]]:
    """Heading and summary of every command, verbs first under each heading."""
    packages = {verb: registry.package(verb) for verb in registry.VERBS}
    every = {verb: (package.PANEL, package.SUMMARY) for verb, package in packages.items()}
    every |= COMMANDS
    return {name: every[name] for name in sorted(every, key=lambda n: HEADINGS.index(every[n][0]))}


def build(wanted: str | None) -> tuple[typer.Typer, set[str]]:
    """Build the application; only the wanted command gets its options, for a fast `--help`.

    Returns:
        The application, and the options of the wanted command that take several values.
    """
    app = typer.Typer(
        help="Smaller, faster, longer-reading embedding models, and what each step cost.",
        add_completion=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=SETTINGS,
        cls=Group,
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
            is_eager=True,  # before the command is parsed
            callback=print_version,
            help="print the version",
        ),
    ) -> None:
        pass

    lists: set[str] = set()
    for name, (panel, summary) in commands().items():
        function, text, example = _placeholder, summary, None
        if name == wanted and name in COMMANDS:
            module = import_module(f"emb_tool.cli.{name}")
            function, text, example = module.command, module.__doc__ or summary, module.EXAMPLE
        elif name == wanted:
            from emb_tool.cli.jobs import job_command, list_options

            package = registry.package(name)
            function, text, example = job_command(name), package.HELP, package.EXAMPLE
            lists = list_options(name)
        app.command(
            name,
            cls=Command,
            help=text.strip(),
            short_help=summary,
            epilog=example,
            rich_help_panel=panel,
        )(function)
    return app, lists


def _placeholder() -> None:
    """Placeholder of the commands that are not wanted."""


def wanted_command(argv: Sequence[str]) -> str | None:
    """The first word that names a command."""
    return next((word for word in argv if not word.startswith("-")), None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    as_json = "--json" in words
    typed = completion.words_so_far()  # set during shell completion
    wanted = wanted_command(words if typed is None else typed)
    try:
        known = commands()
        if typed is not None and wanted not in known:
            wanted = None
        elif wanted and wanted not in known:
            from emb_tool.cli import guess

            raise guess.command(wanted, known)
        app, lists = build(wanted)
        from emb_tool.cli.options import spread_lists

        completing: AbstractContextManager[None] = nullcontext()
        if typed is not None:
            completing = completion.complete_with_typer(spread_lists(typed, lists))
        with completing:
            code = app(args=spread_lists(words, lists), prog_name="embtool", standalone_mode=False)
        return int(code or 0)
    except PeerFailed as error:
        return error.exit_code
    except EmbToolError as error:
        output.fail(error, as_json)
        return error.exit_code
    except KeyboardInterrupt:
        output.fail(Interrupted(2), as_json)
        return 130
    except Exception as error:
        usage = _usage_error(error, wanted)
        if usage is None:
            raise
        output.fail(usage, as_json)
        return 2


def _usage_error(error: Exception, wanted: str | None) -> EmbToolError | None:
    """Convert Typer's usage errors (unknown option, missing value); None for a bug."""
    message: Callable[[], str] | None = getattr(error, "format_message", None)
    if message is None or getattr(error, "exit_code", None) is None:
        return None
    from emb_tool.cli import guess
    from emb_tool.errors import InvalidInput

    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context is not None else f"embtool {wanted or ''}".rstrip()
    hint = f"see {path} --help"
    kind = type(error).__name__  # compared by name, because Typer has its own copies of the classes
    if kind == "NoSuchOption" and context is not None:
        option = str(getattr(error, "option_name", ""))
        if wanted and context.parent is None:
            hint = f"options of a command come after it: embtool {wanted} ... {option}"
        else:
            hint = guess.option(option, context.command) or hint
        return InvalidInput(f"{path} has no option {option}", hint)
    if kind == "MissingParameter":
        param: Any = getattr(error, "param", None)
        flags = "/".join(sorted(param.opts, key=len))
        missing = param.metavar if param.param_type_name == "argument" else flags
        return InvalidInput(f"{missing} is missing", hint)
    return InvalidInput(message().rstrip("."), hint)
