"""What `config.json` says of a packed module, held against what its kind can be.

A stranger wrote it, so it is looked at once, where it is read (`emb_tool.packed.empty`); what a
kind makes of it then need not mind. Its bytes are held against it where they are read.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Size = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
Bits = Annotated[int, Field(strict=True, ge=1, le=8)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
Switch = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(strict=True)]

WIDEST = 1 << 20
"""Columns of a matrix: its rows are made whole, whatever few bytes they are made of."""


class Spec(BaseModel):
    """What every kind states; further keys are of the making and are kept.

    Attributes:
        kind: Which.
        shape: (rows, columns).
        role: What the module stands for, see `Packed`.
        bias: Whether a linear layer has one.
        tensor: Name of the plain tensor, where the module's does not tell.
        shared_with: The module that lends its codebooks.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: Name
    shape: Annotated[list[Size], Field(min_length=2, max_length=2)]
    role: Literal["table", "linear", "bag"] = "table"
    bias: Switch = False
    tensor: Name = ""
    shared_with: Name | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        rows, columns = self.shape
        if columns > WIDEST:
            raise ValueError(f"{columns:,} columns; {WIDEST:,} is the most")
        if fault := self.fault(rows, columns):
            raise ValueError(fault)
        return self

    def fault(self, rows: int, columns: int) -> str | None:
        """What of the settings does not go with the shape."""
        return None
