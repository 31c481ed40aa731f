"""Models' names as tables show them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePath


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Each model's last path components, as many as tell it from the others."""
    models = list(models)

    def tail(model: str, parts: int) -> str:
        return " > ".join(
            "/".join(PurePath(side).parts[-parts:]) or side for side in model.split(" > ")
        )

    names = {}
    for model in models:
        parts = 1
        while parts < 6 and sum(tail(model, parts) == tail(other, parts) for other in models) > 1:
            parts += 1
        names[model] = tail(model, parts)
    return names
