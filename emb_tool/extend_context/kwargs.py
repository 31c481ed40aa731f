"""The settings of `extend-context` as keyword arguments; `make docs` writes this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Required

from emb_tool.api import MethodSpec, RunKwargs, StrPath


class ExtendContextKwargs(RunKwargs, total=False):
    """See `embtool extend-context --help`."""

    device: str
    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    seed: int
    to: Required[int]
    method: MethodSpec
    original_length: int | None
    preserve_short: bool
    logn: Literal["exact", "constant"] | None
    tune: Sequence[StrPath]
    texts: Sequence[StrPath]
    text_field: str | None
    delimiter: Literal["tab", "comma", "semicolon", "bar"] | None
    header: bool | None
    prompt_name: str
    limit: int | None
    holdout: int
    epochs: float
    lr: float
    batch_tokens: int
    dev: Sequence[str]
    eval: Sequence[str]
    output: Required[StrPath]
