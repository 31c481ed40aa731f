"""Rows computed by a network from hashes of their ids: deep hash embedding (arXiv:2010.10784)."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import cos, isqrt, pi
from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from emb_tool.errors import InvalidInput
from emb_tool.ops.rows import device_of, fit_progress, iterate_chunks, row_weights, take_rows
from emb_tool.packed.base import Packed, Part, byte_budget
from emb_tool.packed.hashing import PRIME, universal_codes
from emb_tool.packed.spec import Seed, Size, Spec

LEVELS = 1_000_000
"""Distinct values of a hash before it is scaled to [-1, 1]."""


class DheSpec(Spec):
    """See `Dhe`."""

    hashes: Size
    hidden: Size
    layers: Annotated[int, Field(strict=True, ge=1, le=1000)]
    seed: Seed


class Dhe(Packed):
    """w_i = MLP(√3 x(i)), x_k(i) in [-1, 1] the k-th hash of i; weights in float16.

    A hidden layer is mish(norm(A x + b)), the norm a layer norm without parameters: unlike the
    paper's batch norm it needs no statistics of the data, so that a row doesn't depend on the
    others of its batch and training and use agree. √3 gives the inputs unit variance.

    2 (hashes · h + (layers - 1) h² + h · columns + layers · h + columns) bytes for the width h.

    Settings: `hashes`; `hidden`, the width h; `layers`, hidden ones; `seed` of the hashes; `epochs`
    and `lr` of the fit.
    """

    kind: ClassVar[str] = "dhe"
    stored: ClassVar[type[Spec]] = DheSpec

    @classmethod
    def resolve_spec(
        cls,
        shape: tuple[int, int],
        budget: float | None = None,
        *,
        hashes: int = 1024,
        hidden: int | None = None,
        layers: int = 3,
        seed: int = 0,
        epochs: float = 5,
        lr: float = 1e-3,
        **rest: Any,
    ) -> dict[str, Any]:
        """See `Packed.settle`; the widest hidden layers that the budget allows."""
        columns = shape[1]
        if hidden is None:
            # a h² + b h + columns = allowed / 2
            a, b = layers - 1, hashes + columns + layers
            free = max(0, byte_budget(shape, budget, "hidden") // 2 - columns)
            hidden = free // b if a == 0 else (isqrt(b * b + 4 * a * free) - b) // (2 * a)
            hidden = max(1, hidden)
        if min(hashes, hidden, layers) < 1 or shape[0] > PRIME:
            raise InvalidInput(
                f"dhe: {hashes} hashes, {layers} layers of {hidden} for {shape[0]:,} rows",
                f"1 or more each, at most {PRIME:,} rows",
            )
        return cls.check_budget(
            {
                "kind": cls.kind, "shape": [*shape], "hashes": hashes, "hidden": hidden,
                "layers": layers, "seed": seed, "epochs": epochs, "lr": lr, **rest,
            },
            budget,
        )  # fmt: skip

    @classmethod
    def parts(cls, spec: Mapping[str, Any]) -> dict[str, Part]:
        """`matrix0` (hidden, hashes), `offset0` (hidden,), and so on to the output layer."""
        widths = [spec["hashes"], *[spec["hidden"]] * spec["layers"], spec["shape"][1]]
        parts = {}
        for k, (fan_in, fan_out) in enumerate(pairwise(widths)):
            parts[f"matrix{k}"] = Part((fan_out, fan_in), torch.float16)
            parts[f"offset{k}"] = Part((fan_out,), torch.float16)
        return parts

    @classmethod
    def fit(
        cls,
        table: Tensor,
        frequencies: Tensor | None = None,
        budget: float | None = None,
        *,
        seed: int = 0,
        **settings: Any,
    ) -> Self:
        """Regression on the rows by AdamW: mean squared error, rows weighted by √frequency.

        The rate falls along a half cosine. The output is the table's mean at first, and the rate of
        its layer is scaled by the table's spread.
        """
        spec = cls.resolve_spec((table.shape[0], table.shape[1]), budget, seed=seed, **settings)
        packed = cls(spec).reset(seed).to(device_of(table))
        mean, scale = _moments(table)
        last = spec["layers"]
        packed.put(f"matrix{last}", torch.zeros_like(packed.value(f"matrix{last}")))
        packed.put(f"offset{last}", mean.to(device_of(table)))
        packed._regress(
            table, row_weights(frequencies), scale, seed=seed,
            epochs=spec["epochs"], peak=spec["lr"],
        )  # fmt: skip
        return packed.cpu()

    def _regress(
        self,
        table: Tensor,
        weights: Tensor | None,
        size: float,
        *,
        seed: int,
        epochs: float,
        peak: float,
        batch: int = 256,
    ) -> None:
        parameters = self.unlock()
        last = [id(getattr(self, f"{name}{self.spec['layers']}")) for name in ("matrix", "offset")]
        groups = [
            {"params": [p for p in parameters if id(p) not in last], "scale": 1.0},
            {"params": [p for p in parameters if id(p) in last], "scale": size},
        ]
        optimizer = torch.optim.AdamW(groups, lr=peak, weight_decay=0.0)
        generator = torch.Generator().manual_seed(seed)
        steps = max(1, round(epochs * -(-len(table) // batch)))
        order: Tensor = torch.empty(0, dtype=torch.int64)
        with fit_progress("dhe", steps, "steps") as advance:
            for step in range(steps):
                if not len(order):
                    order = torch.randperm(len(table), generator=generator)
                ids, order = order[:batch].sort().values, order[batch:]
                for group in optimizer.param_groups:
                    group["lr"] = peak * group["scale"] * (1 + cos(pi * step / steps)) / 2
                target = take_rows(table, ids)
                loss = (self.rows(ids.to(target.device)) - target).square().mean(dim=1)
                if weights is not None:
                    loss = loss * weights[ids].to(loss)
                optimizer.zero_grad()
                (loss.mean() / size**2).backward()
                optimizer.step()
                advance(1)
        self.lock()

    def rows(self, ids: Tensor) -> Tensor:
        """See `Packed.rows`."""
        hashes, last = self.spec["hashes"], self.spec["layers"]
        x = universal_codes(ids, hashes, LEVELS, self.spec["seed"]) * 3**0.5
        for k in range(last + 1):
            x = functional.linear(
                x, self.value(f"matrix{k}").float(), self.value(f"offset{k}").float()
            )
            if k < last:
                x = functional.mish(functional.layer_norm(x, x.shape[1:]))
        return x

    def init_std(self, name: str) -> float:
        """See `Packed.spread`; mish of N(0, 1) has a mean square of 0.43 or so."""
        if name.startswith("offset"):
            return 0.0
        fan_in = self._parts[name].shape[1]
        return float((fan_in if name == "matrix0" else 0.43 * fan_in) ** -0.5)


def _moments(table: Tensor) -> tuple[Tensor, float]:
    """The mean row, (columns,), and the root of the entries' mean square about it."""
    total = torch.zeros(table.shape[1], dtype=torch.float64)
    square = 0.0
    for _, piece in iterate_chunks(table, "mean"):
        total += piece.sum(dim=0).cpu().double()
        square += float(piece.square().sum())
    mean = total / len(table)
    return mean.float(), max(square / table.numel() - float(mean.square().mean()), 1e-12) ** 0.5
