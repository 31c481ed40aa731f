"""The Karcher mean: the direction that minimizes the weighted sum of squared angles."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from emb_tool.merge.base import Averaging
from emb_tool.merge.sphere import mean_coefficients
from emb_tool.merge.spherical import SphericalAveraging, refuse_negative


class Karcher(SphericalAveraging, Averaging):
    """Karcher mean of directions, scaled to the mean length; of task vectors with a base."""

    name: ClassVar[str] = "karcher"
    paper: ClassVar[str] = "doi:10.1145/502122.502124"

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """See `emb_tool.merge.sphere.mean_coefficients`."""
        refuse_negative(self.name, weights)
        return mean_coefficients(gram, weights)
