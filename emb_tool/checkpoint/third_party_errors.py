"""What a checkpoint's model raises while it runs, as a refusal of the checkpoint.

Its values may be of the right types and sizes and yet make a forward pass fail: heads that do not
share their keys evenly, more experts asked for than there are, a position beyond the table. The
libraries raise anything over these, from a `KeyError` to a panic of `tokenizers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from emb_tool.errors import EmbToolError, InvalidInput

PACKED = "emb_tool.packed"
"""Ours, but what it computes with is what the checkpoint's files hold."""


@contextmanager
def translate_errors(what: str, hint: str) -> Iterator[None]:
    """Refuse a checkpoint over what its own modules raise.

    Left as they are: errors of ours, memory that ran out, a device that failed, interruptions, and
    what a line of this package raises, which is a bug.

    Args:
        what: What has failed, and of which folder.
        hint: What to do next.

    Raises:
        InvalidInput: Tells what the libraries say; their error is its cause.
    """
    try:
        yield
    except BaseException as error:
        from emb_tool.runtime.device import (
            Runtime,  # what is described from its headers needs no torch
        )

        if isinstance(error, EmbToolError) or not is_library_error(error):
            raise
        if Runtime.is_out_of_memory(error) or Runtime.is_device_error(error) or _is_a_bug(error):
            raise
        raise InvalidInput(f"{what}: {format_error(error)}", hint) from error


def is_library_error(error: BaseException) -> bool:
    """Whether an error may be of a library: a panic of `tokenizers` is no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def format_error(error: BaseException) -> str:
    """An error's class, and the first line of what it says (two, where that is a title)."""
    name, lines = type(error).__name__, [line.strip() for line in str(error).strip().splitlines()]
    first = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{name}: {first[:300]}" if first else name


def _is_a_bug(error: BaseException) -> bool:
    """Whether the line that raised it is of this package."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__")) if trace is not None else ""
    return module.startswith("emb_tool.") and not module.startswith(PACKED)
