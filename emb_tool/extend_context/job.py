"""The settings of an extension that are not its method's."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.config import Job
from emb_tool.method import Method


class ExtendJob(Job):
    """`embtool extend-context`."""

    verb: ClassVar[str] = "extend-context"

    model: Annotated[str, Field(description="folder or hub id")]
    to: Annotated[int, Field(ge=2, description="tokens that the result reads of a text")]
    method: Annotated[
        Method | None,
        Field(description="how [rp for learned positions, ntk for rotary ones]"),
    ] = None
    original_length: Annotated[
        int | None,
        Field(
            ge=2, description="tokens that the model was trained at [the config, where it tells]"
        ),
    ] = None
    preserve_short: Annotated[
        bool,
        Field(
            description="inputs up to the original length keep their vectors to the bit; rotary "
            "methods are then carried by longrope, which transformers alone reads"
        ),
    ] = False
    eval: Annotated[
        tuple[str, ...],
        Field(description="task measured on the result and the input, as passkey or retrieval:DIR"),
    ] = ()
    output: Annotated[str, Field(description="folder to write")]
