"""Validation of the specs of packed modules in `config.json`.

Specs may come from untrusted files. They are validated when they are read
(`emb_tool.packed.empty`), so other code need not check them. The stored arrays are checked against
them when they are loaded.
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

MAX_COLUMNS = 1 << 20
"""Maximum columns of a matrix, since whole rows are decoded."""


class Spec(BaseModel):
    """Keys of all kinds; further keys record how a module was made.

    Attributes:
        kind: Name of the kind.
        shape: (rows, columns).
        role: The module that is replaced, see `Packed`.
        bias: Whether a linear layer has a bias.
        tensor: Name of the unpacked tensor, if the name of the module does not determine it.
        shared_with: The module whose codebooks are used.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: Name
    shape: Annotated[list[Size], Field(min_length=2, max_length=2)]
    role: Literal["table", "linear", "bag"] = "table"
    bias: Switch = False
    tensor: Name = ""
    shared_with: Name | None = None

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        rows, columns = self.shape
        if columns > MAX_COLUMNS:
            raise ValueError(f"{columns:,} columns, above {MAX_COLUMNS:,}")
        if fault := self.fault(rows, columns):
            raise ValueError(fault)
        return self

    def fault(self, rows: int, columns: int) -> str | None:
        """Why the settings do not fit the shape; None if they do."""
        return None
