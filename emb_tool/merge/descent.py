"""Gradient descent of Self Positioning: minimizes a probe's loss over task vector coefficients."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from emb_tool.merge.mixture import Mixture
from emb_tool.merge.positions import direction, uniform_position
from emb_tool.merge.probe import Probe, batches

EVALUATION_BATCHES = 8
"""Batches on which the loss is reported before and after."""


class Position(NamedTuple):
    """Result of the descent.

    Args:
        coefficients: (N,) float64, factors of the task vectors.
        ratios: (N,) a, their mean 1.
        scale: λ.
        before: The probe's loss at the plain average, on the first batches.
        after: The loss at the end, on the same batches.
    """

    coefficients: np.ndarray
    ratios: np.ndarray
    scale: float
    before: float
    after: float


def descend(
    mixture: Mixture,
    probe: Probe,
    *,
    steps: int,
    batch: int,
    lr: float,
    penalty: float,
    seed: int,
    progress: Callable[[int], None] = lambda steps: None,
) -> Position:
    """Min over a, λ of E[L(θ₀ + λ U(a))] + μ λ, by Adam on log a and log λ.

    U is the iterative slerp of the task vectors (`positions.direction`). The loss depends on a
    and λ only through N coefficients c = λ u(a), so a step is one backward pass and
    ∂L/∂c_i = <∇_θ L, V_i>. The start is the plain average; the learning rate has a cosine schedule
    to zero, and the result is the mean of the last quarter of the steps, which reduces the noise
    of the batches.

    Args:
        mixture: The models, with a base.
        probe: The loss.
        steps: Number of steps.
        batch: Examples per step.
        lr: Initial learning rate, in natural logarithms of a and λ.
        penalty: μ.
        seed: Seed of the batches.
        progress: Called with 1 after each step.

    Paper:
        Self Positioning, arXiv:2410.15035 (SGD on a and λ; here Adam on their logarithms, which
        keeps them positive and needs no learning rate tuned to each loss).
    """
    gram = torch.from_numpy(mixture.gram())
    ratios, scale = uniform_position(gram)
    log_parameters = torch.cat([ratios.log(), torch.tensor([scale], dtype=torch.float64).log()])
    log_parameters.requires_grad_()
    optimizer = torch.optim.Adam([log_parameters], lr=lr, betas=(0.9, 0.95))
    order = batches(len(probe), batch, steps, np.random.default_rng(seed))
    tail = []

    def evaluate(coefficients: Tensor) -> float:
        mixture.set(coefficients.numpy())
        with torch.no_grad():
            return float(
                np.mean([float(probe.loss(batch)) for batch in order[:EVALUATION_BATCHES]])
            )

    before = evaluate(log_to_coefficients(gram, log_parameters.detach()))
    for step, indices in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + cos(pi * step / steps))
        coefficients = log_to_coefficients(gram, log_parameters)
        mixture.set(coefficients.detach().numpy())
        mixture.encoder.model.zero_grad(set_to_none=True)
        loss = probe.loss(indices)
        loss.backward()
        optimizer.zero_grad()
        regularizer = penalty * log_parameters[-1].exp()
        torch.autograd.backward(
            [coefficients, regularizer],
            [torch.from_numpy(mixture.coefficient_gradients()), torch.ones_like(regularizer)],
        )
        optimizer.step()
        if step >= steps - max(1, steps // 4):
            tail.append(log_parameters.detach().clone())
        progress(1)
    mean = torch.stack(tail).mean(0)
    ratios = mean[:-1].exp()
    coefficients = log_to_coefficients(gram, mean)
    return Position(
        coefficients.numpy(),
        (ratios / ratios.mean()).numpy(),
        float(mean[-1].exp()),
        before,
        evaluate(coefficients),
    )


def log_to_coefficients(gram: Tensor, log_parameters: Tensor) -> Tensor:
    """(N,) coefficients λ u(a) from the (N + 1,) logarithms of a and λ."""
    return log_parameters[-1].exp() * direction(gram, log_parameters[:-1].exp())
