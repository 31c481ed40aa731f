"""The settings of `embtool encode`."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from emb_tool.config import BatchTokens, Job
from emb_tool.data.text_options import Delimiter, Header, TextField
from emb_tool.errors import InvalidInput
from emb_tool.fields import DATA, MODEL, OUTPUT, REQUIRED, FlagInfo
from emb_tool.ops.precisions import CALIBRATED, Precision

SUFFIXES = (".npy", ".parquet")


def _sources(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _vector_file(value: str) -> str:
    if PurePath(value).suffix not in SUFFIXES:
        raise ValueError(f"give a file that ends in {' or '.join(SUFFIXES)}")
    return value


class EncodeJob(Job):
    """`embtool encode`."""

    verb: ClassVar[str] = "encode"
    positional: ClassVar[tuple[str, ...]] = ("model", "texts")

    model: Annotated[str, Field(description="folder or hub id"), FlagInfo(REQUIRED, MODEL)]
    texts: Annotated[
        tuple[str, ...],
        BeforeValidator(_sources),
        Field(
            min_length=1,
            description="texts: jsonl, csv, tsv, parquet, txt (.gz), folders, hub:NAME, -",
        ),
        FlagInfo(REQUIRED, "TEXTS"),
    ]
    output: Annotated[
        str,
        AfterValidator(_vector_file),
        Field(description="file to write: .npy, or .parquet with columns text and embedding"),
        FlagInfo(REQUIRED, "PATH"),
    ]
    text_field: TextField = None
    delimiter: Delimiter = None
    header: Header = None
    prompt_name: Annotated[
        str,
        Field(
            description="prompt of the texts: document, query, default, none or one of the model's"
        ),
        FlagInfo(DATA, "NAME"),
    ] = "document"
    max_length: Annotated[
        int | None,
        Field(ge=2, description="maximum tokens per text [the model's own limit]"),
        FlagInfo(DATA),
    ] = None
    batch_tokens: BatchTokens = None
    limit: Annotated[
        int | None, Field(ge=1, description="maximum number of texts to read"), FlagInfo(DATA)
    ] = None
    precision: Annotated[
        Precision,
        Field(
            description="format of the vectors: float32, float16, int8, uint8, binary, ubinary "
            "or rabitq (docs/precision.md)"
        ),
        FlagInfo(OUTPUT, "PRECISION"),
    ] = "float32"
    calibrate: Annotated[
        tuple[str, ...],
        BeforeValidator(_sources),
        Field(description="texts whose vectors determine the ranges of int8, uint8 and rabitq"),
        FlagInfo(OUTPUT, "PATH"),
    ] = ()
    ranges: Annotated[
        str | None,
        Field(
            description="file with the ranges: embtool/embedding_ranges.json of a model, or "
            "the .codes.json of earlier codes [the model's own]"
        ),
        FlagInfo(OUTPUT, "PATH"),
    ] = None

    @model_validator(mode="after")
    def _check_ranges(self) -> EncodeJob:
        for name in ("calibrate", "ranges"):
            if getattr(self, name) and self.precision not in CALIBRATED:
                raise InvalidInput(
                    f"--{name}: {self.precision} needs no ranges",
                    f"leave it out, or choose --precision {', '.join(CALIBRATED)}",
                )
        if self.calibrate and self.ranges:
            raise InvalidInput("--calibrate and --ranges both give ranges", "leave one of them out")
        if "-" in self.calibrate and "-" in self.texts:
            raise InvalidInput("stdin cannot be both texts and calibration texts", "give a file")
        return self
