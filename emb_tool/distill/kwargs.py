"""The settings of `distill` as keyword arguments; `make docs` writes this file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Required

from emb_tool.api import MethodSpec, RunKwargs, StrPath


class DistillKwargs(RunKwargs, total=False):
    """See `embtool distill --help`."""

    device: str
    dtype: Literal["auto", "fp32", "bf16", "fp16"]
    seed: int
    method: MethodSpec
    teacher: Required[StrPath]
    student: StrPath | None
    student_layers: int | Sequence[int] | str | None
    from_scratch: bool
    texts: Sequence[StrPath]
    queries: Sequence[StrPath]
    stream: bool
    shuffle_buffer: int
    text_field: str | None
    query_field: str | None
    delimiter: Literal["tab", "comma", "semicolon", "bar"] | None
    header: bool | None
    prompt_name: str
    limit: int | None
    fraction: Sequence[float] | str
    holdout: int
    dev: Sequence[str]
    eval: Sequence[str]
    num_evals: int
    min_retention: float | None
    output: Required[StrPath]
    router: bool
    store: StrPath | None
    store_dtype: Literal["float16", "float32"]
    teacher_dim: int | None
    teacher_column: str | None
    teacher_max_length: int | None
    query_prompt: str | None
    document_prompt: str | None
    api_key_env: str
    concurrency: int
    tensorboard: bool
    fsdp: bool
    allow_pickle: bool
    epochs: float
    cycles: int
    lr: float
    warmup: float
    weight_decay: float
    max_grad_norm: float
    batch_tokens: int
    grad_accumulation: int
    max_length: int | None
    query_share: float | None
    dropout: bool
    compile: bool
    head: Literal["auto", "none", "linear", "mlp"]
    bias: bool
    dims: Sequence[int] | str
    cosine_weight: float
    gor_weight: float
    preset: Literal["leaf", "quick"]
