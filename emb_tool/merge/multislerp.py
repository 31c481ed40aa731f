"""One step towards the spherical mean in the tangent space at the weighted mean direction."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from emb_tool.merge.base import Averaging
from emb_tool.merge.sphere import mean_coefficients
from emb_tool.merge.spherical import SphericalAveraging, refuse_negative


class Multislerp(SphericalAveraging, Averaging):
    """exp_m(sum w_i log_m u_i), scaled to the mean length; m is the weighted mean direction."""

    name: ClassVar[str] = "multislerp"
    paper: ClassVar[str] = "arXiv:2602.05787"

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """See `emb_tool.merge.sphere.mean_coefficients`, with one step."""
        refuse_negative(self.name, weights)
        return mean_coefficients(gram, weights, steps=1)
