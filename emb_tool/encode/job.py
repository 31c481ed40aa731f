"""The settings of `embtool encode`."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from emb_tool.config import Job

SUFFIXES = (".npy", ".parquet")


def _sources(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _vector_file(value: str) -> str:
    if PurePath(value).suffix not in SUFFIXES:
        raise ValueError(f"name a file that ends in {' or '.join(SUFFIXES)}")
    return value


class EncodeJob(Job):
    """`embtool encode`."""

    verb: ClassVar[str] = "encode"

    model: Annotated[str, Field(description="folder or hub id")]
    texts: Annotated[
        tuple[str, ...],
        BeforeValidator(_sources),
        Field(
            min_length=1,
            description="texts: jsonl, csv, tsv, parquet, txt (.gz), folders, hub:NAME, -",
        ),
    ]
    output: Annotated[
        str,
        AfterValidator(_vector_file),
        Field(description="file to write: .npy, float32; or .parquet, columns text, embedding"),
    ]
    text_field: Annotated[str | None, Field(description="field of the texts [text]")] = None
    prompt_name: Annotated[
        str, Field(description="prompt of the texts: document, query, none or one of the model's")
    ] = "document"
    max_length: Annotated[
        int | None, Field(ge=2, description="tokens read of a text [the model's own limit]")
    ] = None
    batch_tokens: Annotated[
        int, Field(ge=1, description="tokens of one batch, padding included")
    ] = 8192
    limit: Annotated[int | None, Field(ge=1, description="read this many texts at most")] = None
