"""`CompressStep`, one step of a chain, and how a chain of steps is planned and applied."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.method import Method

if TYPE_CHECKING:
    from emb_tool.compress.calibration import CalibrationContext

STAGES = ("depth", "vocabulary", "vectors", "weights")
"""The stages of a chain in order; each works on the result of the previous ones."""


class CompressStep(Method):
    """A method that transforms the tensors of a checkpoint: one step of a chain.

    Attributes:
        stage: One of `STAGES`.
        calibrated: Whether the step uses texts.
        packs: Whether the step stores weights as codes.
    """

    stage: ClassVar[str]
    calibrated: ClassVar[bool] = False
    packs: ClassVar[bool] = False

    def plan(self, draft: CheckpointEditor) -> None:
        """Change names, shapes, dtypes and the config, and refuse unsupported input.

        A step without calibration is complete after this, since tensors are computed when written.
        """
        raise NotImplementedError

    def apply(
        self, draft: CheckpointEditor, before: CheckpointEditor, context: CalibrationContext
    ) -> None:
        """Compute the planned tensors from texts.

        Args:
            draft: The draft after `plan`.
            before: The draft before this step; `context.encoder(before)` runs it.
            context: Texts, their vectors, token frequencies.
        """


def plan_step(step: CompressStep, draft: CheckpointEditor) -> None:
    """Plan one step of a chain; error messages begin with its name."""
    try:
        step.plan(draft)
    except InvalidInput as error:
        message = error.message
        message = message if message.startswith(step.name) else f"{step.name}: {message}"
        raise InvalidInput(message, error.hint) from None
    draft.history.append(step.name)
    draft.chain.append(f"{step.name} {step.model_dump_json()}")


def run_steps(
    steps: Iterable[CompressStep], draft: CheckpointEditor, context: CalibrationContext
) -> CheckpointEditor:
    """The draft after planning and applying steps in order.

    `Setup.plan` has planned each step once already. Here a step is planned again after the steps
    before it have been applied, because its plan depends on their results: for example, the number
    of ids that `vocab` keeps.
    """
    for step in steps:
        before, draft = draft, draft.copy()
        plan_step(step, draft)
        with context.progress.task(step.name):
            step.apply(draft, before, context)
    return draft
