"""Model Stock: from the base towards the average, as far as the angle of the models says."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from emb_tool.merge.spherical import SphericalAveraging


class ModelStock(SphericalAveraging):
    """Jang et al., equation 2: t mean(theta_i) + (1 - t) theta_0, t = N c / (1 + (N - 1) c).

    c is the mean cosine of every two task vectors, never below 0.
    """

    name: ClassVar[str] = "model-stock"
    paper: ClassVar[str] = "arXiv:2403.19522"
    needs_base: ClassVar[bool] = True
    least: ClassVar[int] = 2

    def shares(self, found: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Of each model, t / N."""
        count = len(found)
        norms = np.sqrt(np.diag(found))
        cosines = found / np.maximum(np.outer(norms, norms), 1e-300)
        c = max(0.0, float(cosines[np.triu_indices(count, 1)].mean()))
        return np.full(count, c / (1 + (count - 1) * c))
