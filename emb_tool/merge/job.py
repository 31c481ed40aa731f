"""The settings of a merge that are not its method's."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from emb_tool.config import MethodJob
from emb_tool.data.options import Delimiter, Header, TextField

Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]
"""Several names, or one."""


class MergeJob(MethodJob):
    """`embtool merge`."""

    verb: ClassVar[str] = "merge"
    default_method: ClassVar[str | None] = "linear"

    models: Annotated[
        Names,
        Field(
            min_length=1,
            description="models of one family: folders, hub ids, LoRA adapters of the base, or "
            "bare .safetensors files",
        ),
    ]
    base: Annotated[
        str | None, Field(description="model that the others were trained from: task vectors")
    ] = None
    take: Annotated[
        tuple[str, ...],
        Field(
            description="where models differ, whose to take, counted from 0: pooling=1, "
            "prompts=0, config=0"
        ),
    ] = ()
    out_dtype: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Field(description="of the weights written; auto is the widest that is read"),
    ] = "auto"
    shard_mb: Annotated[
        int, Field(ge=1, description="MB of weights in one file at most; resumed file by file")
    ] = 5000
    eval: Annotated[
        tuple[str, ...],
        Field(description="task measured on the result and the inputs: sts:FILE, retrieval:DIR"),
    ] = ()
    dev: Annotated[
        tuple[str, ...],
        Field(description="task that weights are chosen by: sts:FILE, retrieval:DIR"),
    ] = ()
    pairs: Annotated[
        tuple[str, ...],
        Field(description="jsonl of queries, positives and negatives that losses are taken on"),
    ] = ()
    texts: Annotated[
        tuple[str, ...],
        Field(description="texts for statistics, or to come near to the vectors of --teacher on"),
    ] = ()
    text_field: TextField = None
    delimiter: Delimiter = None
    header: Header = None
    limit: Annotated[int | None, Field(ge=1, description="read this many texts at most")] = None
    teacher: Annotated[
        str | None, Field(description="model whose vectors of --texts are the goal")
    ] = None
    store: Annotated[
        str | None, Field(description="folder of the teacher's vectors [user's cache folder]")
    ] = None
    max_length: Annotated[
        int | None,
        Field(ge=2, description="tokens read of a text while data is looked at [the models']"),
    ] = None
    inspect: Annotated[
        bool,
        Field(description="merge nothing: print how the models differ, in weights and configs"),
    ] = False
    output: Annotated[str | None, Field(description="folder to write")] = None

    @property
    def max_shard(self) -> int:
        """Bytes of one file at most."""
        return self.shard_mb * 10**6

    @model_validator(mode="after")
    def _whole(self) -> MergeJob:
        if self.output is None and not self.inspect:
            raise ValueError("output is missing: give -o FOLDER, or --inspect")
        return self
