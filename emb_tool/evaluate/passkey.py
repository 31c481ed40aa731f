"""Passkey task: a person's five digits hidden in a long document."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from emb_tool.evaluate.long_tasks import Synthetic

if TYPE_CHECKING:
    from emb_tool.data.passkey import NeedleSet


class Passkey(Synthetic):
    """Retrieve the document with a person's passkey, in LongEmbed's filler or in prose."""

    name: ClassVar[str] = "passkey"
    paper: ClassVar[str] = "arXiv:2404.12096"

    def needles(self) -> NeedleSet:
        """Sentences with a name and its passkey."""
        from emb_tool.data.passkey import make_passkeys

        return make_passkeys(self.queries, self.sample_seed)

    def default_haystack(self) -> list[str]:
        """LongEmbed's five filler sentences."""
        from emb_tool.data.passkey import FILLER

        return list(FILLER)
