"""Self Positioning's descent: where among the task vectors a probe's loss is least."""

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

CHECKED = 8
"""Batches on which the loss is told before and after."""


class Position(NamedTuple):
    """Where the descent has ended.

    Args:
        coefficients: (N,) float64 of the task vectors.
        ratios: (N,) a, their mean 1.
        scale: λ.
        before: The probe's loss at the plain average, over the first batches.
        after: That at the end, over the same.
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
    and λ through N coefficients c = λ u(a) alone, so that a step is one backward pass and
    ∂L/∂c_i = <∇_θ L, V_i>. It begins at the plain average; the rate falls to zero along a cosine,
    and what is returned is the mean of the last quarter of the steps, which takes out the noise of
    the batches.

    Args:
        mixture: The models, with a base.
        probe: The loss.
        steps: Number of steps.
        batch: Examples of a step.
        lr: First rate, in natural logarithms of a and λ.
        penalty: μ.
        seed: Of the batches.
        progress: Called with 1 at each step.

    Paper:
        Self Positioning, arXiv:2410.15035 (SGD on a and λ; here on their logarithms, which keeps
        them positive, and by Adam, which needs no rate of its own for each loss).
    """
    gram = torch.from_numpy(mixture.gram())
    ratios, scale = uniform_position(gram)
    free = torch.cat([ratios.log(), torch.tensor([scale], dtype=torch.float64).log()])
    free.requires_grad_()
    optimizer = torch.optim.Adam([free], lr=lr, betas=(0.9, 0.95))
    order = batches(len(probe), batch, steps, np.random.default_rng(seed))
    tail = []

    def check(coefficients: Tensor) -> float:
        mixture.set(coefficients.numpy())
        with torch.no_grad():
            return float(np.mean([float(probe.loss(batch)) for batch in order[:CHECKED]]))

    before = check(coefficients_of(gram, free.detach()))
    for step, indices in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + cos(pi * step / steps))
        coefficients = coefficients_of(gram, free)
        mixture.set(coefficients.detach().numpy())
        mixture.encoder.model.zero_grad(set_to_none=True)
        loss = probe.loss(indices)
        loss.backward()
        optimizer.zero_grad()
        price = penalty * free[-1].exp()
        torch.autograd.backward(
            [coefficients, price], [torch.from_numpy(mixture.slopes()), torch.ones_like(price)]
        )
        optimizer.step()
        if step >= steps - max(1, steps // 4):
            tail.append(free.detach().clone())
        progress(1)
    mean = torch.stack(tail).mean(0)
    found = mean[:-1].exp()
    coefficients = coefficients_of(gram, mean)
    return Position(
        coefficients.numpy(),
        (found / found.mean()).numpy(),
        float(mean[-1].exp()),
        before,
        check(coefficients),
    )


def coefficients_of(gram: Tensor, free: Tensor) -> Tensor:
    """(N,) coefficients λ u(a) of (N + 1,) logarithms of a and λ."""
    return free[-1].exp() * direction(gram, free[:-1].exp())
