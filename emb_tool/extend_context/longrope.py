"""LongRoPE: another scheme beyond the original length, unchanged up to it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from emb_tool import registry
from emb_tool.editing import CheckpointEditor
from emb_tool.evaluate.extended_check import RotaryFrequencies
from emb_tool.extend_context.base import Extension, ExtensionContext
from emb_tool.extend_context.family import Kind
from emb_tool.extend_context.rotary import RotaryPositions


class Longrope(Extension):
    """θ^(-2j/d) up to the original length, another scheme's f_j beyond it.

    Uses LongRoPE's two sets of factors, with short factors of 1; attention is not scaled, since its
    factor would also apply to short inputs. The padded length of a batch selects the factors.
    """

    name: ClassVar[str] = "longrope"
    paper: ClassVar[str] = "arXiv:2402.13753"
    kinds: ClassVar[tuple[Kind, ...]] = ("rotary",)
    preserves_short: ClassVar[tuple[Kind, ...]] = ("rotary",)

    scheme: Annotated[
        Literal["pi", "ntk", "yarn"], Field(description="scheme beyond the original length")
    ] = "ntk"  # fmt: skip

    def extend(
        self, draft: CheckpointEditor, context: ExtensionContext
    ) -> RotaryFrequencies | None:
        """Write the scheme's frequencies as long factors."""
        scheme = registry.load("extend-context", self.scheme)()
        assert isinstance(scheme, RotaryPositions)
        return scheme.extend_preserving_short(draft, context)
