"""Leaving layers out: a model of some of the layers, the others untouched."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from emb_tool.compress.step import CompressStep
from emb_tool.editing import CheckpointEditor
from emb_tool.method import IntList


class Layers(CompressStep):
    """x_{j+1} = L_{keep[j]}(x_j): the kept layers, one after another.

    Each layer adds to what comes in, so that those left out are missed less than they look; their
    neighbours were trained with them all the same: measure, and distil to win back what is lost.
    """

    name: ClassVar[str] = "layers"
    paper: ClassVar[str] = "arXiv:2004.03844"
    stage: ClassVar[str] = "depth"

    keep: Annotated[
        IntList, Field(description="layers to keep, from 0, in order of application: 0,2,5")
    ] = ()
    count: Annotated[
        int | None,
        Field(ge=1, description="how many to keep, spread evenly up to the last"),
    ] = None

    @model_validator(mode="after")
    def _one(self) -> Layers:
        if bool(self.keep) == (self.count is not None):
            raise ValueError("say either keep (which layers) or count (how many)")
        return self

    def plan(self, draft: CheckpointEditor) -> None:
        """Rename the tensors of the layers that stay, and tell config.json."""
        draft.keep_layers(self.keep or self.count or 0)
