"""Errors for users.

The command line catches `EmbToolError` and its subclasses and prints their message; any other
exception is a bug and keeps its traceback.
"""

from __future__ import annotations


class EmbToolError(Exception):
    """An error that a user can resolve.

    Args:
        message: The problem (name, value) and its origin (flag, file and line, `--set`).
        hint: What to do next, one sentence; printed after the message, also in tracebacks.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(hint)


class InvalidInput(EmbToolError):
    """An invalid flag, recipe, checkpoint or data file (exit code 2)."""

    exit_code = 2


class RunFailed(EmbToolError):
    """The run failed: disk full, out of memory, endpoint not reachable (exit code 1)."""

    exit_code = 1


def resumable_failure(error: InvalidInput) -> RunFailed:
    """Convert an input error during a run to a failure, so that the partial output is kept.

    An `InvalidInput` removes the partial output, a `RunFailed` does not.
    """
    hint = f"{error.hint}; then continue with --resume" if error.hint else "continue with --resume"
    return RunFailed(error.message, hint)


class PeerFailed(EmbToolError):
    """Another process of the same run failed and reported why; this one exits silently.

    Args:
        exit_code: Exit code of the other process.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


class Interrupted(EmbToolError):
    """Ctrl-C (130) or SIGTERM (143); the job can be resumed.

    Args:
        signal_number: 2 or 15; the exit code is 128 plus this number.
    """

    def __init__(self, signal_number: int, hint: str | None = None) -> None:
        super().__init__("interrupted", hint)
        self.exit_code = 128 + signal_number
