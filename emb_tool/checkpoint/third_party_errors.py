"""Translation of errors that libraries raise for invalid checkpoints.

A config may have values of valid types and sizes with which a forward pass fails: a number of heads
that is no multiple of the key-value heads, too few experts, a position beyond the table. Libraries
raise any error for these, from a `KeyError` to a panic of `tokenizers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from emb_tool.errors import EmbToolError, InvalidInput

PACKED = "emb_tool.packed"
"""Modules of this package whose computations depend on the content of a checkpoint."""


@contextmanager
def translate_errors(what: str, hint: str) -> Iterator[None]:
    """Translate errors of libraries to `InvalidInput`.

    Not translated are `EmbToolError`, out-of-memory and device errors, interruptions, and errors
    that this package raises, which are bugs.

    Args:
        what: Start of the error message.
        hint: Hint of the error message.

    Raises:
        InvalidInput: With the message of the library, whose error is the cause.
    """
    try:
        yield
    except BaseException as error:
        from emb_tool.runtime.device import (
            Runtime,  # imported here because reading headers does not need torch
        )

        if isinstance(error, EmbToolError) or not is_library_error(error):
            raise
        if Runtime.is_out_of_memory(error) or Runtime.is_device_error(error) or _is_a_bug(error):
            raise
        raise InvalidInput(f"{what}: {format_error(error)}", hint) from error


def is_library_error(error: BaseException) -> bool:
    """Whether an error may come from a library: a panic of `tokenizers` is not an `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def format_error(error: BaseException) -> str:
    """The class of an error and the first line of its message (two if the first ends with `:`)."""
    name, lines = type(error).__name__, [line.strip() for line in str(error).strip().splitlines()]
    first = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{name}: {first[:300]}" if first else name


def _is_a_bug(error: BaseException) -> bool:
    """Whether an error was raised by a line of this package."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__")) if trace is not None else ""
    return module.startswith("emb_tool.") and not module.startswith(PACKED)
