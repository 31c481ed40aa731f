"""Weights of models, optionally by layer or by tensor name."""

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
    """Selector to one weight per model; the last matching selector applies.

    A selector is a layer (`3`), a range of layers (`0-5`), or a pattern for tensor names
    (`*pooler*`, `2_Dense/*`); `*` is every tensor.
    """

    model_config = {"frozen": True}

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        """Parse `.5,.5;0-5:.7,.3` of a command line, or a list or mapping of a recipe."""
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

    def check(self, count: int, averages: bool) -> None:
        """Check the number of weights, and that weights of an average do not sum to 0.

        Args:
            count: Number of models.
            averages: Whether the weights are divided by their sum.
        """
        for selector, numbers in self.root.items():
            setting = "weights=" + ("" if selector == ALL else f"{selector}:")
            setting += ",".join(f"{number:g}" for number in numbers)
            if len(numbers) != count:
                raise InvalidInput(
                    f"{setting}: {len(numbers)} weights for {count} models",
                    "give one for each model",
                )
            if not np.isfinite(numbers).all():
                raise InvalidInput(f"{setting}: not a finite number", "give one for each model")
            if averages and abs(sum(numbers)) < 1e-6:
                raise InvalidInput(
                    f"{setting}: they sum to zero", "weights of an average must sum to one"
                )

    def sums(self) -> dict[str, float]:
        """Sum of the weights of each selector."""
        return {selector: float(sum(numbers)) for selector, numbers in self.root.items()}

    def for_tensor(self, name: str, layer: int | None) -> np.ndarray | None:
        """The weights for one tensor; None if no selector matches.

        Args:
            name: Its canonical name.
            layer: Index of its layer, if any.
        """
        weights = None
        for selector, numbers in self.root.items():
            if matches(selector, name, layer):
                weights = np.array(numbers, np.float64)
        return weights


def matches(selector: str, name: str, layer: int | None) -> bool:
    """Whether a selector matches a tensor."""
    layers = _LAYERS.fullmatch(selector)
    if layers:
        first = int(layers[1])
        return layer is not None and first <= layer <= int(layers[2] or first)
    return fnmatchcase(name, selector)


def _numbers(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value
