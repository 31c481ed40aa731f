"""The true spherical mean: the direction from which the sum of squared angles is least."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from emb_tool.merge.base import Averaging
from emb_tool.merge.sphere import mean_shares
from emb_tool.merge.spherical import SphericalAveraging, refuse_negative


class Karcher(SphericalAveraging, Averaging):
    """Karcher mean of directions, at the mean length; of task vectors where there is a base."""

    name: ClassVar[str] = "karcher"
    paper: ClassVar[str] = "doi:10.1145/502122.502124"

    def shares(self, found: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """See `emb_tool.merge.sphere.mean_shares`."""
        refuse_negative(self.name, weights)
        return mean_shares(found, weights)
