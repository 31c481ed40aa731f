"""Integers of 2 to 8 bits for linear layers and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from emb_tool.compress.matrix_method import MatrixMethod
from emb_tool.fields import FlagInfo
from emb_tool.method import TextList

if TYPE_CHECKING:
    from emb_tool.ops.matrices import Matrix


def _group(value: Any) -> Any:
    return 0 if value == "row" else value


class Int(MatrixMethod):
    """w = s c + m with a scale and a minimum per group, the range searched for the least error.

    Packs linear layers and tables of the transformer; norms, biases and further modules are not
    changed. Groups cost 32 / group_size bits per weight, so sizes up to 64 pay off below 6 bits.
    """

    name: ClassVar[str] = "int"
    paper: ClassVar[str] = "arXiv:1911.02079"
    kind: ClassVar[str] = "int"

    tensor: Annotated[
        TextList,
        Field(description="names or patterns of the tensors to pack [all]"),
        FlagInfo(metavar="NAME"),
    ] = ()
    budget: Annotated[
        float | None,
        Field(
            gt=0, le=1,
            description="maximum bytes of each matrix as a share of its float32 bytes; selects the "
            "most bits that fit, and group_size",
        ),
    ] = None  # fmt: skip
    bits: Annotated[
        int | None,
        Field(ge=2, le=8, description="bits per weight of linear layers [8, or by the budget]"),
    ] = None
    tables: Annotated[
        int | None,
        Field(
            ge=0, le=8, description="bits per entry of tables; 0: tables are not packed [as bits]"
        ),
    ] = None
    group_size: Annotated[
        int | None,
        Field(
            ge=0,
            multiple_of=8,
            description="weights that share a scale; row or 0: a whole row [64 below 6 bits, else"
            " row]",
        ),
        BeforeValidator(_group),
    ] = None

    integer_zero_point: Annotated[
        bool, Field(description="integer zero points, as --format compressed-tensors requires")
    ] = False

    def settings(self, matrix: Matrix) -> dict[str, Any] | None:
        """See `MatrixMethod.settings`."""
        is_table = matrix.role != "linear" and self.tables is not None
        bits = self.tables if is_table else self.bits
        if is_table and not bits:
            return None
        group_size = self.group_size or None
        if self.budget is None:
            bits = bits or 8
            group_size = 64 if self.group_size is None and bits < 6 else group_size
        extra = {"integer_zero_point": True} if self.integer_zero_point else {}
        return {"bits": bits, "group_size": group_size, **extra}

    @property
    def share(self) -> float | None:
        """See `MatrixMethod.share`."""
        return self.budget

    @property
    def patterns(self) -> TextList:
        """See `MatrixMethod.patterns`."""
        return (*self.only, *self.tensor)
