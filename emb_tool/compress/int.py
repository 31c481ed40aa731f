"""Whole numbers of 2 to 8 bits for linear layers and tables."""

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
    """w = s c + m with a scale and a minimum for each group, the range searched for least error.

    Linear layers and tables of the main part; norms, biases and further modules stay. Group sizes
    of 64 and less pay off below 6 bits: they take 32 / group bits a weight.
    """

    name: ClassVar[str] = "int"
    paper: ClassVar[str] = "arXiv:1911.02079"
    kind: ClassVar[str] = "int"

    tensor: Annotated[
        TextList,
        Field(description="names or patterns of tensors to pack, as for tables [all]"),
        FlagInfo(metavar="NAME"),
    ] = ()
    budget: Annotated[
        float | None,
        Field(
            gt=0, le=1,
            description="share of each matrix's float32 bytes that may be used: bits and group are "
            "chosen, the most bits first",
        ),
    ] = None  # fmt: skip
    bits: Annotated[
        int | None,
        Field(ge=2, le=8, description="bits of the linear layers [8, or what the budget allows]"),
    ] = None
    tables: Annotated[
        int | None,
        Field(ge=0, le=8, description="bits of the tables; 0 leaves them as they are [as bits]"),
    ] = None
    group_size: Annotated[
        int | None,
        Field(
            ge=0,
            multiple_of=8,
            description="weights that share a scale; row or 0 is a row [64 below 6 bits, else row]",
        ),
        BeforeValidator(_group),
    ] = None

    integer_zero_point: Annotated[
        bool, Field(description="whole zero points, which the compressed-tensors format needs")
    ] = False

    def settings(self, matrix: Matrix) -> dict[str, Any] | None:
        """Bits and group."""
        is_table = matrix.role != "linear" and self.tables is not None
        bits = self.tables if is_table else self.bits
        if is_table and not bits:
            return None
        group_size = self.group_size or None
        if self.budget is None:
            bits = bits or 8
            group_size = 64 if self.group_size is None and bits < 6 else group_size
        rest = {"integer_zero_point": True} if self.integer_zero_point else {}
        return {"bits": bits, "group_size": group_size, **rest}

    @property
    def share(self) -> float | None:
        """See `MatrixMethod.share`."""
        return self.budget

    @property
    def wanted(self) -> TextList:
        """See `MatrixMethod.wanted`."""
        return (*self.only, *self.tensor)
