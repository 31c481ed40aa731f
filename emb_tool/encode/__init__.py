"""`embtool encode`: encode texts into a file of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from emb_tool.fields import USED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emb_tool.api import StrPath
    from emb_tool.encode.kwargs import EncodeKwargs
    from emb_tool.report import Report

PANEL = USED
SUMMARY = "encode texts into vectors, npy or parquet"
HELP = "Encode texts into vectors, one row per record in order, streamed to .npy or .parquet."
EXAMPLE = "embtool encode small texts.jsonl -o vectors.npy"

JOB = ("emb_tool.encode.job", "EncodeJob")
RUNNER = ("emb_tool.encode.runner", "EncodeRunner")

LISTS = ()
"""No flag takes several values: in `--calibrate A B`, B is the model."""

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
        EmbToolError: A setting or an input is invalid, or the run failed: see docs/api.md.
    """
    from emb_tool.api import run_verb

    return run_verb("encode", {"model": model, "texts": texts, **settings})
