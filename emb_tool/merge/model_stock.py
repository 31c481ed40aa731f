"""Model Stock: interpolation from the base to the average, by the angle between the models."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from emb_tool.merge.spherical import SphericalAveraging


class ModelStock(SphericalAveraging):
    """Jang et al., equation 2: t mean(theta_i) + (1 - t) theta_0, t = N c / (1 + (N - 1) c).

    c is the mean cosine over pairs of task vectors, clamped at 0.
    """

    name: ClassVar[str] = "model-stock"
    paper: ClassVar[str] = "arXiv:2403.19522"
    needs_base: ClassVar[bool] = True
    min_models: ClassVar[int] = 2

    def coefficients(self, gram: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """T / N for each model."""
        count = len(gram)
        norms = np.sqrt(np.diag(gram))
        cosines = gram / np.maximum(np.outer(norms, norms), 1e-300)
        c = max(0.0, float(cosines[np.triu_indices(count, 1)].mean()))
        return np.full(count, c / (1 + (count - 1) * c))
