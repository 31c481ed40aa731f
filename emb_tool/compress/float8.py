"""8-bit floats for linear layers and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from emb_tool.compress.matrix_method import MatrixMethod

if TYPE_CHECKING:
    from emb_tool.ops.matrices import Matrix


class Float8(MatrixMethod):
    """float8 e4m3 with a scale per row; computation is in the dtype of the model.

    For rows whose weights differ by orders of magnitude. Otherwise, as in most models, `int` with 8
    bits has a smaller error.
    """

    name: ClassVar[str] = "float8"
    paper: ClassVar[str] = "arXiv:2209.05433"
    kind: ClassVar[str] = "float8"

    tables: Annotated[bool, Field(description="also pack tables")] = True

    def settings(self, matrix: Matrix) -> dict[str, Any] | None:
        """See `MatrixMethod.settings`."""
        return None if matrix.role != "linear" and not self.tables else {}
