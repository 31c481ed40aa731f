"""Weights saved from a wrapper around a model, with its prefix in all tensor names.

transformers does not match such names: it initializes the weights of the model at random and only
warns. If all names have the prefix of exactly one known wrapper, they are read without it, and
stock loaders get a copy (`emb_tool.checkpoint.unwrapped_copy`).
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
"""Source of each prefix; no class in transformers has one of these prefixes."""

_OUTER = {"model.": "a class that holds the model as .model"}
"""Also the prefix of many classes: a wrapper only if the architecture has another prefix."""

_STATIC = {"0.": "a SentenceTransformer's state_dict"}


def known_wrappers(config: Mapping[str, Any], kind: str) -> dict[str, str]:
    """Prefixes of wrappers that cannot occur in tensor names of a module itself.

    Args:
        config: The main `config.json`.
        kind: Kind of the module.

    Returns:
        Source of each prefix.
    """
    if kind == "StaticEmbedding":
        return WRAPPERS | _STATIC
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    outer = kind == "Transformer" and architecture is not None and architecture.base != "model"
    return WRAPPERS | (_OUTER if outer else {})


def find_wrapper(names: Collection[str], config: Mapping[str, Any], kind: str) -> str:
    """The prefix of a known wrapper that all names have, or ""."""
    known = known_wrappers(config, kind)
    return next((p for p in known if names and all(n.startswith(p) for n in names)), "")


def wrapper_warning(name: str, wrapper: str) -> str:
    """Warning about a wrapped checkpoint."""
    source = (WRAPPERS | _OUTER | _STATIC)[wrapper]
    return (
        f"{name}: all tensor names begin with {wrapper!r} ({source}); they are read without it, but"
        " transformers and sentence-transformers would initialize the model at random: save the"
        " inner model with save_pretrained"
    )


def copy_unwrapped(source: Path, target: Path, wrapper: str) -> None:
    """Copy a safetensors file, removing the prefix of a wrapper from tensor names."""
    shutil.copyfile(source, target)
    if wrapper:
        rename_tensors(target, lambda name: name.removeprefix(wrapper))
