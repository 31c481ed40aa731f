"""Needle task: a fact hidden in long prose."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from emb_tool.evaluate.long_tasks import Synthetic

if TYPE_CHECKING:
    from emb_tool.data.passkey import NeedleSet


class Needle(Synthetic):
    """Retrieve the document with a given fact, in your prose or in Python's documentation."""

    name: ClassVar[str] = "needle"
    paper: ClassVar[str] = "arXiv:2404.12096"

    def needles(self) -> NeedleSet:
        """Facts with a person, a thing and a place each."""
        from emb_tool.data.passkey import make_facts

        return make_facts(self.queries, self.sample_seed)

    def default_haystack(self) -> list[str]:
        """Sentences of Python's documentation."""
        from emb_tool.data.builtin_texts import sample_texts

        return sample_texts()
