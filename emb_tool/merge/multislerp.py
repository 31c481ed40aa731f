"""One step towards the spherical mean, in the tangent space of the weighted mean direction."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from emb_tool.merge.base import Averaging
from emb_tool.merge.sphere import mean_shares
from emb_tool.merge.spherical import SphericalAveraging, refuse_negative


class Multislerp(SphericalAveraging, Averaging):
    """exp_m(sum w_i log_m u_i) at the mean length, m the weighted mean direction."""

    name: ClassVar[str] = "multislerp"
    paper: ClassVar[str] = "arXiv:2602.05787"

    def shares(self, found: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """See `emb_tool.merge.sphere.mean_shares`, one step."""
        refuse_negative(self.name, weights)
        return mean_shares(found, weights, steps=1)
