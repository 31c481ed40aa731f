"""8-bit floats for linear layers and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from emb_tool.compress.matrix_method import MatrixMethod

if TYPE_CHECKING:
    from emb_tool.ops.matrices import Matrix


class Float8(MatrixMethod):
    """float8 e4m3 with a scale for each row; computed in the model's own dtype.

    For weights of very different sizes in one row; `int` with 8 bits is closer where they are
    alike, as in most models.
    """

    name: ClassVar[str] = "float8"
    paper: ClassVar[str] = "arXiv:2209.05433"
    kind: ClassVar[str] = "float8"

    tables: Annotated[bool, Field(description="pack tables too")] = True

    def settings(self, matrix: Matrix) -> dict[str, Any] | None:
        """None of its own."""
        return None if matrix.role != "linear" and not self.tables else {}
