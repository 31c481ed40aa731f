"""What transformers makes of a `config.json`, without weights and without the checkpoint's code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from emb_tool.checkpoint.third_party_errors import translate_errors
from emb_tool.errors import InvalidInput
from emb_tool.plan import TensorSpec

if TYPE_CHECKING:
    from torch import nn


MAX_EXTENT = 8
"""Times the weights of a file that its model may have: some files hold no decoder or no pooler."""


def check_extent(config: Mapping[str, Any], tensors: Iterable[TensorSpec], name: str) -> None:
    """Refuse a `config.json` that describes far more weights than there are.

    Transformers would make room for all of them, and fill them with random numbers, before it tells
    that the shapes differ.

    Args:
        config: The `config.json`.
        tensors: Those of the files, packed ones in their plain shapes; of other whole numbers each
            bit counts, since some formats put several weights into one.
        name: The checkpoint's.

    Raises:
        InvalidInput: It does, or is one that transformers can make no model of.
    """
    there = sum(
        8 * spec.nbytes if spec.dtype.startswith(("I", "U")) else spec.numel for spec in tensors
    )
    try:
        wanted = sum(parameter.numel() for parameter in model_on_meta(config).parameters())
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error.message}", error.hint) from error.__cause__
    if wanted > MAX_EXTENT * there:
        raise InvalidInput(
            f"{name}: config.json describes a model of {wanted:,} weights, the files hold"
            f" {there:,}",
            "config.json is not that of these weights: restore the original file",
        )


def transformers_config(raw: Mapping[str, Any]) -> Any:
    """Transformers' own config class for a `config.json`; never code of the checkpoint's."""
    from transformers import CONFIG_MAPPING

    kind = str(raw.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise InvalidInput(
            f"transformers does not know the model type {kind!r}, and the checkpoint's own code"
            " is not run",
            "update transformers, or take a model of a type that it knows",
        )
    with transformers_error():
        return CONFIG_MAPPING[kind].from_dict(dict(raw))


@contextmanager
def transformers_error() -> Iterator[None]:
    """What transformers raises over a config that it can make nothing of, as a refusal.

    It checks little: anything from a `ZeroDivisionError` to an error class of its own may come.
    """
    with translate_errors(
        "transformers can make no model of this config.json", "restore the original file"
    ):
        yield


def model_on_meta(config: Mapping[str, Any]) -> nn.Module:
    """The model of a `config.json`, without memory.

    Raises:
        InvalidInput: A model type that transformers does not know, or values that it cannot use.
    """
    import torch
    from transformers import AutoModel

    made = transformers_config({k: v for k, v in config.items() if k != "quantization_config"})
    with torch.device("meta"), transformers_error():
        model: nn.Module = AutoModel.from_config(made)
    return model


def meta_kwargs() -> dict[str, Any]:
    """Arguments of `from_pretrained` where only names and shapes matter, not the data.

    Without accelerate transformers cannot load to `meta`: the model is loaded into memory.
    """
    return {"device_map": {"": "meta"}} if find_spec("accelerate") else {}
