"""The settings of `compress` as keyword arguments; `make docs` writes this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Required

from emb_tool.api import MethodSpec, RunKwargs, StrPath


class CompressKwargs(RunKwargs, total=False):
    """See `embtool compress --help`."""

    device: str
    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    seed: int
    method: MethodSpec | Sequence[MethodSpec]
    texts: Sequence[StrPath]
    text_field: str | None
    delimiter: Literal["tab", "comma", "semicolon", "bar"] | None
    header: bool | None
    prompt_name: str
    limit: int | None
    holdout: int
    partner: StrPath | None
    dev: Sequence[str]
    eval: Sequence[str]
    min_retention: float | None
    max_bytes: int | str | None
    target: int | str | None
    target_retention: float | None
    tune: Sequence[StrPath]
    epochs: float
    lr: float
    batch_tokens: int
    format: Literal["embtool", "compressed-tensors"]
    plot: StrPath | None
    output: Required[StrPath]
    tensor: Sequence[str] | str
    budget: float | None
    weighted: bool
    frequencies: StrPath | None
    scale: float | None
    allow_lossy: bool
