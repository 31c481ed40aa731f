"""The settings of a merge job, without those of the method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from emb_tool.config import MethodJob
from emb_tool.data.text_options import Delimiter, Header, TextField
from emb_tool.fields import DATA, EVALUATION, METHOD, MODEL, OUTPUT, REQUIRED, RUNNING, FlagInfo

Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]
"""A sequence of names; a single name is also accepted."""


class MergeJob(MethodJob):
    """`embtool merge`."""

    verb: ClassVar[str] = "merge"
    parent: ClassVar[str | None] = "base"
    positional: ClassVar[tuple[str, ...]] = ("models",)
    default_method: ClassVar[str | None] = "linear"

    models: Annotated[
        Names,
        Field(
            min_length=1,
            description="models of one family: folders, hub ids, LoRA adapters of the base, or "
            "bare .safetensors files",
        ),
        FlagInfo(REQUIRED, MODEL),
    ]
    base: Annotated[
        str | None,
        Field(description="model that the others were trained from; enables task vectors"),
        FlagInfo(DATA, MODEL),
    ] = None
    copy_from: Annotated[
        tuple[str, ...],
        Field(
            description="model (counted from 0) to copy a part from where models differ: "
            "pooling=1, prompts=0, config=0"
        ),
        FlagInfo(METHOD, "PART=NUMBER"),
    ] = ()
    out_dtype: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Field(description="dtype of the weights written; auto: the widest dtype of the inputs"),
        FlagInfo(OUTPUT),
    ] = "auto"
    shard_mb: Annotated[
        int,
        Field(
            ge=1,
            description="maximum size of a weight file in MB; --resume keeps finished files",
        ),
        FlagInfo(OUTPUT),
    ] = 5000
    eval: Annotated[
        tuple[str, ...],
        Field(
            description="task reported for the result and the inputs, not used to choose weights:"
            " sts:FILE, retrieval:DIR"
        ),
        FlagInfo(EVALUATION, "TASK"),
    ] = ()
    dev: Annotated[
        tuple[str, ...],
        Field(description="task used to choose weights: sts:FILE, retrieval:DIR"),
        FlagInfo(METHOD, "TASK"),
    ] = ()
    pairs: Annotated[
        tuple[str, ...],
        Field(description="jsonl of queries, positives and negatives for losses"),
        FlagInfo(DATA, "PATH"),
    ] = ()
    texts: Annotated[
        tuple[str, ...],
        Field(description="texts for statistics, or for the distance to the vectors of --teacher"),
        FlagInfo(DATA, "PATH"),
    ] = ()
    text_field: TextField = None
    delimiter: Delimiter = None
    header: Header = None
    limit: Annotated[
        int | None, Field(ge=1, description="maximum number of texts to read"), FlagInfo(DATA)
    ] = None
    teacher: Annotated[
        str | None,
        Field(description="model whose vectors of --texts are the target"),
        FlagInfo(DATA, MODEL),
    ] = None
    store: Annotated[
        str | None,
        Field(description="folder where teacher vectors are cached [user's cache folder]"),
        FlagInfo(DATA, "PATH"),
    ] = None
    max_length: Annotated[
        int | None,
        Field(ge=2, description="maximum tokens per text when models run on data [the models']"),
        FlagInfo(DATA),
    ] = None
    inspect: Annotated[
        bool,
        Field(description="print how the models differ in weights and configs, without merging"),
        FlagInfo(RUNNING),
    ] = False
    output: Annotated[
        str | None, Field(description="folder to write"), FlagInfo(REQUIRED, "PATH")
    ] = None

    def map_models(self, change: Callable[[str], str]) -> Self:
        """Also in `pooling=org/name`."""
        job = super().map_models(change)
        models = dict(zip(self.models, job.models, strict=True))
        parts = [text.partition("=") for text in self.copy_from]
        copy_from = tuple(f"{key}{sep}{models.get(name.strip(), name)}" for key, sep, name in parts)
        return job.model_copy(update={"copy_from": copy_from})

    @property
    def max_shard(self) -> int:
        """Maximum bytes of a weight file."""
        return self.shard_mb * 10**6

    @model_validator(mode="after")
    def _check_output(self) -> MergeJob:
        if self.output is None and not self.inspect:
            raise ValueError("-o/--output is missing: give it, or --inspect")
        return self
