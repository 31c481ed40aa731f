"""Rotation of the vectors: equal cosines at full width, better truncation or binary codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from emb_tool.compress.step import CompressStep
from emb_tool.editing import CheckpointEditor, Rotation, append_dense, project_vectors
from emb_tool.errors import InvalidInput

if TYPE_CHECKING:
    from torch import Tensor

    from emb_tool.compress.calibration import CalibrationContext


class Rotate(CompressStep):
    """Rotate the vectors by PCA, for truncation, or by ITQ, for binary codes.

    y = V x with an orthogonal V, computed from the vectors of the calibration texts. `pca`: the
    rows of V are the eigenvectors of E[x xᵀ] (uncentered), largest eigenvalue first, so the first k
    rows span the k-dimensional subspace with the least reconstruction error. `random`: a seeded
    orthogonal matrix, which equalizes the variance of the dimensions for binary codes. `itq`: V
    minimizes |sign(V x) - V x|², by alternating signs and Procrustes
    (doi:10.1109/TPAMI.2012.193).
    """

    name: ClassVar[str] = "rotate"
    paper: ClassVar[str] = "doi:10.1109/TPAMI.2012.193"
    stage: ClassVar[str] = "vectors"
    calibrated: ClassVar[bool] = True

    basis: Annotated[
        Literal["pca", "random", "itq"],
        Field(
            description="pca: for a truncate step after it; random or itq: for binary codes, after"
            " truncate"
        ),
    ] = "pca"
    center: Annotated[
        bool, Field(description="subtract the mean before pca; this changes cosines")
    ] = False

    def plan(self, draft: CheckpointEditor) -> None:
        """Plan the multiplication of V into the weights, which happens when they are written."""
        width = draft.layout.dim
        if width is None:
            raise InvalidInput(
                f"{draft.checkpoint.name}: the dimension of its vectors is unknown",
                "check the folder with: embtool inspect",
            )
        if self.center and self.basis != "pca":
            raise InvalidInput(f"rotate: center=true needs basis=pca, not {self.basis}", None)
        rotation = Rotation()
        draft.rotations.append(rotation)

        def matrix() -> Tensor:
            assert rotation.matrix is not None, "plan's tensors are read after apply"
            return rotation.matrix

        def shift() -> Tensor:
            assert rotation.mean is not None
            return -matrix() @ rotation.mean

        if self.center:
            append_dense(draft, matrix, shift, width)
        else:
            project_vectors(draft, width, lambda weight: matrix() @ weight)

    def apply(
        self, draft: CheckpointEditor, before: CheckpointEditor, context: CalibrationContext
    ) -> None:
        """Compute V."""
        import torch

        from emb_tool.compress import rotation

        width, announced = draft.layout.dim, draft.rotations[-1]
        assert width is not None
        if self.basis == "random":
            matrix = rotation.random(width, context.seed)
        else:
            vectors = torch.from_numpy(context.vectors(before))
            if self.center:
                announced.mean = vectors.double().mean(0).float()
                vectors = vectors - announced.mean
            if self.basis == "itq":
                matrix = rotation.itq(vectors, context.seed)
            else:
                matrix, share = rotation.pca(vectors)
                if len(vectors) < 4 * width:
                    context.progress.warn(
                        f"rotate: {len(vectors):,} texts for {width} dimensions are few: give more "
                        "--texts, ideally those that will be searched"
                    )
                shares = ", ".join(
                    f"{k} {share[k - 1]:.1%}" for k in (32, 64, 96, 128, 256, 512) if k < width
                )
                draft.notes.append(f"rotate: share of E|x|² in the first dimensions: {shares}")
        announced.matrix = matrix.float()
