"""Layer pruning: keep a subset of the layers."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from emb_tool.compress.step import CompressStep
from emb_tool.editing import CheckpointEditor
from emb_tool.method import IntList


class Layers(CompressStep):
    """x_{j+1} = L_{keep[j]}(x_j): the selected layers, one after another.

    Layers are residual, so removing some of them changes the output moderately; distillation
    recovers part of the loss.
    """

    name: ClassVar[str] = "layers"
    paper: ClassVar[str] = "arXiv:2004.03844"
    stage: ClassVar[str] = "depth"

    keep: Annotated[
        IntList,
        Field(description="layers to keep, counted from 0, in order of application: 0,2,5"),
    ] = ()
    count: Annotated[
        int | None,
        Field(ge=1, description="number of layers to keep, evenly spaced, including the last"),
    ] = None

    @model_validator(mode="after")
    def _check_settings(self) -> Layers:
        if bool(self.keep) == (self.count is not None):
            raise ValueError("give either keep (which layers) or count (how many)")
        return self

    def plan(self, draft: CheckpointEditor) -> None:
        """Rename the tensors of the selected layers and update config.json."""
        draft.keep_layers(self.keep or self.count or 0)
