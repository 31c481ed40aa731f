"""Weights of models: the same everywhere, or other ones for some layers or some names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from pydantic import RootModel, model_validator

from emb_tool.errors import InvalidInput

ALL = "*"

_LAYERS = re.compile(r"(\d+)(?:-(\d+))?")


class Weights(RootModel[dict[str, tuple[float, ...]]]):
    """Selector to a weight for each model; of several that fit a tensor the last counts.

    A selector is a layer (`3`), a range of layers (`0-5`), or a pattern for tensor names
    (`*pooler*`, `2_Dense/*`); `*` is every tensor.
    """

    model_config = {"frozen": True}

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """`.5,.5;0-5:.7,.3` as typed in a shell; a list or a mapping in a recipe."""
        if isinstance(value, str):
            rules: dict[str, Any] = {}
            for part in value.split(";"):
                selector, _, numbers = part.rpartition(":")
                rules[selector.strip() or ALL] = numbers
            value = rules
        elif isinstance(value, int | float | list | tuple):
            value = {ALL: value}
        if isinstance(value, Mapping):
            return {str(key): _numbers(numbers) for key, numbers in value.items()}
        return value

    def check(self, count: int, shares: bool) -> None:
        """Refuse another number of weights than of models, and averages of sum 0.

        Args:
            count: Models.
            shares: Whether they are divided by their sum.
        """
        for selector, numbers in self.root.items():
            said = "weights=" + ("" if selector == ALL else f"{selector}:")
            said += ",".join(f"{number:g}" for number in numbers)
            if len(numbers) != count:
                raise InvalidInput(
                    f"{said}: {len(numbers)} weights for {count} models", "give one for each model"
                )
            if not np.isfinite(numbers).all():
                raise InvalidInput(f"{said}: not a finite number", "give one for each model")
            if shares and abs(sum(numbers)) < 1e-6:
                raise InvalidInput(f"{said}: they sum to zero", "shares of an average sum to one")

    def sums(self) -> dict[str, float]:
        """What the weights of each selector sum to."""
        return {selector: float(sum(numbers)) for selector, numbers in self.root.items()}

    def of(self, name: str, layer: int | None) -> np.ndarray | None:
        """The weights of one tensor; None if no selector fits.

        Args:
            name: Its canonical name.
            layer: Number of its layer, if it is in one.
        """
        found = None
        for selector, numbers in self.root.items():
            if fits(selector, name, layer):
                found = np.array(numbers, np.float64)
        return found


def fits(selector: str, name: str, layer: int | None) -> bool:
    """Whether a selector means a tensor."""
    layers = _LAYERS.fullmatch(selector)
    if layers:
        first = int(layers[1])
        return layer is not None and first <= layer <= int(layers[2] or first)
    return fnmatchcase(name, selector)


def _numbers(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value
