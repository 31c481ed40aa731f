"""Weights saved from a wrapper around a model, whose prefix every tensor's name begins with.

transformers knows no such name, initializes the model's own weights at random and only warns. Where
exactly one known wrapper is around all names they are read without it; stock loaders get a copy
(`emb_tool.checkpoint.unwrapped_copy`).
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from emb_tool.checkpoint.architectures import ARCHITECTURES
from emb_tool.checkpoint.writer import rename_tensors

WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel or DistributedDataParallel",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "0.auto_model.": "a SentenceTransformer's state_dict",
    "0.model.": "a SentenceTransformer's state_dict",
    "auto_model.": "a sentence-transformers module's state_dict",
    "base_model.model.": "peft",
}
"""Prefix to what puts it there; no class of transformers has one of these as its own."""

_OUTER = {"model.": "a class that holds the model as .model"}
"""Also the own prefix of many classes: a wrapper only where the architecture has another one."""

_STATIC = {"0.": "a SentenceTransformer's state_dict"}


def known_wrappers(config: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Prefixes that a part's own tensors never have: prefix to what puts it there.

    Args:
        config: The main `config.json`.
        kind: Of the part's module.
    """
    if kind == "StaticEmbedding":
        return WRAPPERS | _STATIC
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    outer = kind == "Transformer" and architecture is not None and architecture.base != "model"
    return WRAPPERS | (_OUTER if outer else {})


def wrapper_of(names: Collection[str], config: Mapping[str, Any], kind: str) -> str:
    """The one known wrapper's prefix that all names begin with, or ""."""
    known = known_wrappers(config, kind)
    return next((p for p in known if names and all(n.startswith(p) for n in names)), "")


def warning(name: str, wrapper: str) -> str:
    """The warning to users of a wrapped checkpoint."""
    made = (WRAPPERS | _OUTER | _STATIC)[wrapper]
    return (
        f"{name}: all tensor names begin with {wrapper!r} ({made}); they are read without it, but"
        " transformers and sentence-transformers would initialize the model at random: save the"
        " inner model with save_pretrained"
    )


def copy_unwrapped(source: Path, target: Path, wrapper: str) -> None:
    """Copy a safetensors file without the wrapper's prefix, if there is one, in its names."""
    shutil.copyfile(source, target)
    if wrapper:
        rename_tensors(target, lambda name: name.removeprefix(wrapper))
