"""Spherical interpolation of two models, or of their task vectors."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from emb_tool.merge.sphere import slerp_coefficients
from emb_tool.merge.spherical import SphericalAveraging


class Slerp(SphericalAveraging):
    """Shoemake: [sin((1 - t) a) v_1 + sin(t a) v_2] / sin a, a the angle between v_1 and v_2."""

    name: ClassVar[str] = "slerp"
    paper: ClassVar[str] = "doi:10.1145/325334.325242"
    symmetric: ClassVar[bool] = False
    max_models: ClassVar[int | None] = 2
    min_models: ClassVar[int] = 2

    t: Annotated[
        float,
        Field(
            ge=0, le=1, description="interpolation parameter: 0 is the first model, 1 the second"
        ),
    ] = 0.5

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """See `emb_tool.merge.sphere.slerp_coefficients`."""
        if self.t in (0, 1):
            return np.array([1.0 - self.t, self.t])
        return slerp_coefficients(gram, self.t)
