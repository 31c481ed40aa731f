"""The errors that a user is meant to read.

Only `EmbToolError` and what derives from it is caught at the top of the command line and
printed as a sentence; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class EmbToolError(Exception):
    """Something a user can act on: what happened, and what to do next.

    Args:
        message: What (name, value) and where from (flag, file and line, `--set`).
        hint: What to do next, one sentence; printed after the message, also by a traceback.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(hint)


class InvalidInput(EmbToolError):
    """A flag, recipe, checkpoint or data file at fault (exit code 2)."""

    exit_code = 2


class RunFailed(EmbToolError):
    """The work itself failed: disk full, memory out, endpoint gone (exit code 1)."""

    exit_code = 1


def resumable_failure(error: InvalidInput) -> RunFailed:
    """A fault of the data that is met when there is work to keep.

    What is refused takes the partial output with it, what fails does not.
    """
    hint = f"{error.hint}; then go on with --resume" if error.hint else "go on with --resume"
    return RunFailed(error.message, hint)


class PeerFailed(EmbToolError):
    """Another process of the same run has ended, and told why; this one ends alike and is silent.

    Args:
        exit_code: The other's.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


class Interrupted(EmbToolError):
    """Ctrl-C (130) or SIGTERM (143); the job can be resumed.

    Args:
        signal_number: 2 or 15; the exit code is 128 plus it.
    """

    def __init__(self, signal_number: int, hint: str | None = None) -> None:
        super().__init__("interrupted", hint)
        self.exit_code = 128 + signal_number
