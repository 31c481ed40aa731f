"""Matryoshka truncation: keep the first dimensions of all vectors."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.step import CompressStep
from emb_tool.editing import CheckpointEditor, project_vectors
from emb_tool.errors import InvalidInput


class Truncate(CompressStep):
    """Keep the first k dimensions, folded into the weights.

    y = Norm(x[:k]) with k rows of the last weights; Norm only if the model normalizes.
    `truncate_dim` of sentence-transformers is applied after all modules, so its vectors do not have
    unit norm, and other servers return the full dimension. Here the weights themselves have k
    dimensions.
    """

    name: ClassVar[str] = "truncate"
    paper: ClassVar[str] = "arXiv:2205.13147"
    stage: ClassVar[str] = "vectors"

    dim: Annotated[int, Field(ge=1, description="number of dimensions to keep")]

    def plan(self, draft: CheckpointEditor) -> None:
        """Plan the truncation; refuse a `dim` above the dimension of the model."""
        width = draft.layout.dim
        if width is None:
            raise InvalidInput(
                f"{draft.checkpoint.name}: the dimension of its vectors is unknown",
                "check the folder with: embtool inspect",
            )
        if self.dim > width:
            raise InvalidInput(
                f"truncate: dim={self.dim}, but the vectors have {width} dimensions",
                f"use at most {width}",
            )
        project_vectors(draft, self.dim, lambda matrix: matrix[: self.dim])
        draft.layout = replace(draft.layout, truncate_dim=None)
        if draft.config:  # vLLM and SGLang truncate further only with this key
            draft.config["is_matryoshka"] = True
        draft.notes.append(f"truncate: {width} dimensions become {self.dim}")
