"""Matryoshka truncation: the first dimensions of every vector, of any model."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field

from emb_tool.compress.step import CompressStep
from emb_tool.editing import CheckpointEditor, project_vectors
from emb_tool.errors import InvalidInput


class Truncate(CompressStep):
    """Keep the first dimensions, baked into the weights.

    y = Norm(x[:k]) with k rows of the last weights, Norm where the model had it.
    sentence-transformers' own `truncate_dim` is applied after all modules, so that its vectors have
    no unit norm and other servers return the full width; these weights have k dimensions anywhere.
    """

    name: ClassVar[str] = "truncate"
    paper: ClassVar[str] = "arXiv:2205.13147"
    stage: ClassVar[str] = "vectors"

    dim: Annotated[int, Field(ge=1, description="dimensions to keep")]

    def plan(self, draft: CheckpointEditor) -> None:
        """Refuse a width that is not below the model's."""
        width = draft.layout.dim
        if width is None:
            raise InvalidInput(
                f"{draft.checkpoint.name}: its width cannot be made out",
                "check the folder with: embtool inspect",
            )
        if self.dim > width:
            raise InvalidInput(
                f"truncate: dim={self.dim}, but the vectors have {width} dimensions",
                f"at most {width}",
            )
        project_vectors(draft, self.dim, lambda matrix: matrix[: self.dim])
        draft.layout = replace(draft.layout, truncate_dim=None)
        if draft.config:  # vLLM and SGLang cut further only where they are told that they may
            draft.config["is_matryoshka"] = True
        draft.notes.append(f"truncate: {width} dimensions become {self.dim}")
