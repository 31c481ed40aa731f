"""The carrier: any scheme for inputs beyond the original length, none for those within it."""

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
    """Up to the original length θ^(-2j/d), beyond it another scheme's f_j.

    LongRoPE's two sets of factors, the short ones all 1; attention is not scaled (its factor would
    reach short inputs, too). The longest text of a batch, padding counted, decides for all of it.
    """

    name: ClassVar[str] = "longrope"
    paper: ClassVar[str] = "arXiv:2402.13753"
    kinds: ClassVar[tuple[Kind, ...]] = ("rotary",)
    keeps_short: ClassVar[tuple[Kind, ...]] = ("rotary",)

    scheme: Annotated[
        Literal["pi", "ntk", "yarn"], Field(description="what long inputs get")
    ] = "ntk"  # fmt: skip

    def extend(
        self, draft: CheckpointEditor, context: ExtensionContext
    ) -> RotaryFrequencies | None:
        """Write the scheme's frequencies as long factors."""
        scheme = registry.load("extend-context", self.scheme)()
        assert isinstance(scheme, RotaryPositions)
        return scheme.carried(draft, context)
