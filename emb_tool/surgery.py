"""A step of surgery: what it says before the work, and what it needs texts for."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from emb_tool.draft import Draft
from emb_tool.method import Method

if TYPE_CHECKING:
    from emb_tool.calibration import Work

STAGES = ("depth", "vocabulary", "vectors", "weights")
"""The order of a chain that makes sense: each looks at what those before it have left."""


class Surgery(Method):
    """A method that turns tensors into tensors: a step of a chain.

    Attributes:
        stage: Its place in a chain, one of `STAGES`.
        calibrated: Whether it looks at texts.
    """

    stage: ClassVar[str]
    calibrated: ClassVar[bool] = False

    def plan(self, draft: Draft) -> None:
        """Say what the step will do: names, shapes, dtypes, config; refuse what does not fit.

        What needs no texts is complete after this, since tensors are computed when written.
        """
        raise NotImplementedError

    def apply(self, draft: Draft, before: Draft, work: Work) -> None:
        """What needs texts: fill in what `plan` announced.

        Args:
            draft: After `plan`.
            before: As the earlier steps left it; `work.encoder(before)` runs it.
            work: `emb_tool.calibration.Work`: texts, vectors, token frequencies.
        """
