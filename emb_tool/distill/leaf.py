"""LEAF: the student's vectors are regressed onto the teacher's, in the teacher's own space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from emb_tool.fields import METHOD, FlagInfo
from emb_tool.method import IntList, Training
from emb_tool.training.orthogonal_regularizer import gor_loss, gor_terms

if TYPE_CHECKING:
    from torch import Tensor


class Leaf(Training):
    """Regress the student's vectors onto the teacher's, with the head inside the student.

    y = Norm(W_out · Pool(student(x))), Norm only if the teacher normalizes, and for each text

        L = ‖y − t‖² + Σ_m ‖Norm(y[:m]) − Norm(t[:m])‖² + cosine_weight · (1 − cos(y, t)) +
        gor_weight · G

    with the sum over `dims` and G the global orthogonal regularization. For vectors of norm 1 the
    first term is 2 (1 − cos(y, t)).
    """

    name: ClassVar[str] = "leaf"
    paper: ClassVar[str] = "arXiv:2509.12539"
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "leaf": {"epochs": 10, "cycles": 3, "lr": 1e-4},
        "quick": {},
    }

    head: Annotated[
        Literal["auto", "none", "linear", "mlp"],
        Field(description="map to the teacher's dimension; auto: none if the dimensions are equal"),
        FlagInfo(METHOD),
    ] = "auto"
    bias: Annotated[bool, Field(description="whether the head has a bias"), FlagInfo(METHOD)] = True
    dims: Annotated[
        IntList,
        Field(description="Matryoshka dimensions to train in addition, as 256,128,64"),
        FlagInfo(METHOD),
    ] = ()
    cosine_weight: Annotated[
        float,
        Field(ge=0, description="weight of an additional loss term 1 - cosine"),
        FlagInfo(METHOD),
    ] = 0.0
    gor_weight: Annotated[
        float,
        Field(
            ge=0,
            description="weight of the global orthogonal regularization, which helps binary codes",
        ),
        FlagInfo(METHOD),
    ] = 0.0

    def loss(
        self,
        vectors: Tensor,
        targets: Tensor,
        moment: Tensor | None = None,
        count: int | None = None,
    ) -> Tensor:
        """Loss of each text.

        Args:
            vectors: (batch, dim), vectors of the student.
            targets: (batch, dim), vectors of the teacher.
            moment: (dim, dim) `second_moment` of all vectors of a step, if these are a part.
            count: Number of all vectors of the step.

        Returns:
            (batch,), not averaged; the mean of the regularization terms over a step is G.
        """
        from torch.nn.functional import cosine_similarity, normalize

        losses = (vectors - targets).square().sum(-1)
        for dim in self.dims:
            if dim < vectors.shape[-1]:
                prefix = normalize(vectors[:, :dim], dim=-1) - normalize(targets[:, :dim], dim=-1)
                losses = losses + prefix.square().sum(-1)
        if self.cosine_weight:
            losses = losses + self.cosine_weight * (1 - cosine_similarity(vectors, targets, dim=-1))
        if self.gor_weight and moment is not None and count is not None and count > 1:
            losses = losses + self.gor_weight * gor_terms(vectors, moment, count)
        elif self.gor_weight and moment is None and len(vectors) > 1:
            losses = losses + self.gor_weight * gor_loss(vectors)
        return losses
