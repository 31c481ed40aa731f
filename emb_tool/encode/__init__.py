"""`embtool encode`: texts to a file of vectors, row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from emb_tool.fields import USED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emb_tool.api import StrPath
    from emb_tool.encode.kwargs import EncodeKwargs
    from emb_tool.report import Report

PANEL = USED
SUMMARY = "texts to vectors, npy or parquet"
HELP = "Turn texts into vectors, in their order: one row a record, streamed to .npy or .parquet."
EXAMPLE = "embtool encode small texts.jsonl -o vectors.npy"

JOB = ("emb_tool.encode.job", "EncodeJob")
RUNNER = ("emb_tool.encode.runner", "EncodeRunner")

LISTS = ()
"""Of `--calibrate A B`, B is the model."""

METHODS = ()


def encode(
    model: StrPath, texts: StrPath | Sequence[StrPath], **settings: Unpack[EncodeKwargs]
) -> Report:
    """Encode texts into a file of vectors.

    Args:
        model: Folder or hub id.
        texts: Files, folders or `hub:NAME`.
        **settings: The options of `embtool encode`, as `output="vectors.npy"`, and `RunKwargs`.

    Returns:
        The report.

    Raises:
        EmbToolError: A setting or an input is at fault, or the work failed: see docs/api.md.
    """
    from emb_tool.api import run_verb

    return run_verb("encode", {"model": model, "texts": texts, **settings})
