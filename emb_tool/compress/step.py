"""A step of surgery: what it says before the work, and what it needs texts for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.method import Method

if TYPE_CHECKING:
    from emb_tool.compress.calibration import CalibrationContext

STAGES = ("depth", "vocabulary", "vectors", "weights")
"""The order of a chain that makes sense: each looks at what those before it have left."""


class CompressStep(Method):
    """A method that turns tensors into tensors: a step of a chain.

    Attributes:
        stage: Its place in a chain, one of `STAGES`.
        calibrated: Whether it looks at texts.
        packs: Whether weights are stored as codes afterwards.
    """

    stage: ClassVar[str]
    calibrated: ClassVar[bool] = False
    packs: ClassVar[bool] = False

    def plan(self, draft: CheckpointEditor) -> None:
        """Say what the step will do: names, shapes, dtypes, config; refuse what does not fit.

        What needs no texts is complete after this, since tensors are computed when written.
        """
        raise NotImplementedError

    def apply(
        self, draft: CheckpointEditor, before: CheckpointEditor, work: CalibrationContext
    ) -> None:
        """What needs texts: fill in what `plan` announced.

        Args:
            draft: After `plan`.
            before: As the earlier steps left it; `work.encoder(before)` runs it.
            work: `emb_tool.compress.calibration.CalibrationContext`: texts, vectors, token
                frequencies.
        """


def plan_step(step: CompressStep, draft: CheckpointEditor) -> None:
    """Plan one step of a chain; a refusal begins with its name."""
    try:
        step.plan(draft)
    except InvalidInput as error:
        said = error.message
        said = said if said.startswith(step.name) else f"{step.name}: {said}"
        raise InvalidInput(said, error.hint) from None
    draft.history.append(step.name)
    draft.chain.append(f"{step.name} {step.model_dump_json()}")


def run_steps(
    steps: Iterable[CompressStep], draft: CheckpointEditor, work: CalibrationContext
) -> CheckpointEditor:
    """The draft after some steps; each sees what those before it have made.

    A step is planned when those before it are applied, although `Setup.plan` has planned it before:
    what it announces depends on what they have found, as the ids that are left of a vocabulary.
    """
    for step in steps:
        before, draft = draft, draft.copy()
        plan_step(step, draft)
        with work.progress.task(step.name):
            step.apply(draft, before, work)
    return draft
