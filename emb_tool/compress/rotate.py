"""Turning the space: the same cosines at full width, better ones in a prefix or as bits."""

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
    """Turn the space so that its first dimensions hold the most (PCA), or bits fit (ITQ).

    y = V x with an orthogonal V, found on the vectors of the calibration texts. `pca`: the rows of
    V are the eigenvectors of E[x xᵀ] (uncentred), the largest first: of all subspaces of k
    dimensions that of the first k rows loses the least. `random`: a seeded orthogonal
    matrix, which evens out the variance of the dimensions for binary codes. `itq`: V minimises
    |sign(V x) - V x|², found by turns of signs and Procrustes (doi:10.1109/TPAMI.2012.193).
    """

    name: ClassVar[str] = "rotate"
    paper: ClassVar[str] = "doi:10.1109/TPAMI.2012.193"
    stage: ClassVar[str] = "vectors"
    calibrated: ClassVar[bool] = True

    basis: Annotated[
        Literal["pca", "random", "itq"],
        Field(description="pca before truncate; random or itq (after it) for binary codes"),
    ] = "pca"
    center: Annotated[
        bool, Field(description="take the mean off before pca; this changes cosines")
    ] = False

    def plan(self, draft: CheckpointEditor) -> None:
        """Announce V; it is multiplied into the weights when they are written."""
        width = draft.layout.dim
        if width is None:
            raise InvalidInput(
                f"{draft.checkpoint.name}: its width cannot be made out",
                "check the folder with: embtool inspect",
            )
        if self.center and self.basis != "pca":
            raise InvalidInput(f"rotate: center=true belongs to basis=pca, not {self.basis}", None)
        rotation = Rotation()
        draft.rotations.append(rotation)

        def matrix() -> Tensor:
            assert rotation.matrix is not None, "written before it was found"
            return rotation.matrix

        def shift() -> Tensor:
            assert rotation.mean is not None
            return -matrix() @ rotation.mean

        if self.center:
            append_dense(draft, matrix, shift, width)
        else:
            project_vectors(draft, width, lambda weight: matrix() @ weight)

    def apply(
        self, draft: CheckpointEditor, before: CheckpointEditor, work: CalibrationContext
    ) -> None:
        """Find V."""
        import torch

        from emb_tool.compress import rotation

        width, announced = draft.layout.dim, draft.rotations[-1]
        assert width is not None
        if self.basis == "random":
            found = rotation.random(width, work.seed)
        else:
            vectors = torch.from_numpy(work.vectors(before))
            if self.center:
                announced.mean = vectors.double().mean(0).float()
                vectors = vectors - announced.mean
            if self.basis == "itq":
                found = rotation.itq(vectors, work.seed)
            else:
                found, share = rotation.pca(vectors)
                if len(vectors) < 4 * width:
                    work.progress.warn(
                        f"rotate: {len(vectors):,} texts for {width} dimensions are few: give more "
                        "--texts, best those that will be searched"
                    )
                told = ", ".join(
                    f"{k} {share[k - 1]:.1%}" for k in (32, 64, 96, 128, 256, 512) if k < width
                )
                draft.notes.append(f"rotate: share of E|x|² in the first dimensions: {told}")
        announced.matrix = found.float()
