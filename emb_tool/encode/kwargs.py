"""The settings of `encode` as keyword arguments; `make docs` writes this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Required

from emb_tool.api import RunKwargs, StrPath


class EncodeKwargs(RunKwargs, total=False):
    """See `embtool encode --help`."""

    device: str
    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    seed: int
    output: Required[StrPath]
    text_field: str | None
    delimiter: Literal["tab", "comma", "semicolon", "bar"] | None
    header: bool | None
    prompt_name: str
    max_length: int | None
    batch_tokens: int | None
    limit: int | None
    precision: Literal["float32", "float16", "int8", "uint8", "binary", "ubinary", "rabitq"]
    calibrate: Sequence[StrPath] | StrPath
    ranges: StrPath | None
