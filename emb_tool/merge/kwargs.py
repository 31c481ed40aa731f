"""The settings of `merge` as keyword arguments; `make docs` writes this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from emb_tool.api import MethodSpec, RunKwargs, StrPath


class MergeKwargs(RunKwargs, total=False):
    """See `embtool merge --help`."""

    device: str
    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    seed: int
    method: MethodSpec
    base: StrPath | None
    copy_from: Sequence[str]
    out_dtype: Literal["auto", "fp32", "bf16", "fp16"]
    shard_mb: int
    eval: Sequence[str]
    dev: Sequence[str]
    pairs: Sequence[StrPath]
    texts: Sequence[StrPath]
    text_field: str | None
    delimiter: Literal["tab", "comma", "semicolon", "bar"] | None
    header: bool | None
    limit: int | None
    teacher: StrPath | None
    store: StrPath | None
    max_length: int | None
    inspect: bool
    output: StrPath | None
    weights: Sequence[float] | Mapping[str, Sequence[float]] | str | None
