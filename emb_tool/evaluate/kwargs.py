"""The settings of `eval` as keyword arguments; `make docs` writes this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Required

from emb_tool.api import RunKwargs, StrPath


class EvaluateKwargs(RunKwargs, total=False):
    """See `embtool eval --help`."""

    device: str
    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    seed: int
    task: Required[Sequence[str] | str]
    reference: StrPath | None
    query_model: StrPath | None
    prompt_name: str | None
    min_retention: float | None
    plot: StrPath | None
    max_length: int | None
    batch_tokens: int | None
    text_field: str | None
    precision: Sequence[str] | str
    rescore: Sequence[int] | str
