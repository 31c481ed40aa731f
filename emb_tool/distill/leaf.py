"""LEAF: the student's vectors are regressed onto the teacher's, in the teacher's own space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from emb_tool.method import IntList, Training

if TYPE_CHECKING:
    from torch import Tensor


class Leaf(Training):
    """Regress the student's vectors onto the teacher's, with the head inside the student.

    y = Norm(W_out · Pool(student(x))), Norm only if the teacher normalises, and for each text

        L = ‖y − t‖² + Σ_m ‖Norm(y[:m]) − Norm(t[:m])‖² + cosine · (1 − cos(y, t)) + gor · G

    with the sum over `dims` and G the spread-out term. For vectors of norm 1 the first term is
    2 (1 − cos(y, t)).
    """

    name: ClassVar[str] = "leaf"
    paper: ClassVar[str] = "arXiv:2509.12539"
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "leaf": {"epochs": 10, "cycles": 3, "lr": 1e-4},
        "quick": {},
    }

    head: Annotated[
        Literal["auto", "none", "linear", "mlp"],
        Field(description="map to the teacher's width; auto: none if the widths are equal"),
    ] = "auto"
    bias: Annotated[bool, Field(description="whether the head has a bias")] = True
    dims: Annotated[
        IntList, Field(description="Matryoshka prefixes that are trained too, as 256,128,64")
    ] = ()
    cosine: Annotated[float, Field(ge=0, description="weight of an added 1 - cosine")] = 0.0
    gor: Annotated[
        float, Field(ge=0, description="weight of the spread-out term, which helps binary codes")
    ] = 0.0

    def loss(self, vectors: Tensor, targets: Tensor) -> Tensor:
        """Loss of each text.

        Args:
            vectors: (batch, dim) of the student.
            targets: (batch, dim) of the teacher.

        Returns:
            (batch,), not averaged; the spread-out term is the same for each text.
        """
        from torch.nn.functional import cosine_similarity, normalize

        losses = (vectors - targets).square().sum(-1)
        for dim in self.dims:
            if dim < vectors.shape[-1]:
                prefix = normalize(vectors[:, :dim], dim=-1) - normalize(targets[:, :dim], dim=-1)
                losses = losses + prefix.square().sum(-1)
        if self.cosine:
            losses = losses + self.cosine * (1 - cosine_similarity(vectors, targets, dim=-1))
        if self.gor and len(vectors) > 1:
            losses = losses + self.gor * spread_out(vectors)
        return losses


def spread_out(vectors: Tensor) -> Tensor:
    """Mean squared cosine of all pairs of a batch, G = 1/(B(B−1)) Σ_{i≠j} (x_i · x_j)².

    Args:
        vectors: (B, dim); they are normalised first.

    Paper:
        Global orthogonal regularisation, arXiv:1708.06320, eq. 6 (second moment), as used by
        EmbeddingGemma, arXiv:2509.20354.
    """
    from torch.nn.functional import normalize

    unit = normalize(vectors, dim=-1)
    gram = (unit @ unit.T).square()
    count = len(vectors)
    return (gram.sum() - gram.diagonal().sum()) / (count * (count - 1))
