"""Models built from a `config.json` on the meta device, without weights and remote code."""

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
"""Maximum ratio of a model's parameters to stored ones, since files may lack a decoder or a
head."""


def check_extent(config: Mapping[str, Any], tensors: Iterable[TensorSpec], name: str) -> None:
    """Refuse a `config.json` that describes far more weights than the files have.

    transformers would allocate and initialize all of them before it reports different shapes.

    Args:
        config: The `config.json`.
        tensors: Tensors of the files, packed ones with their unpacked shapes. Each bit of other
            integers counts as a weight, since some formats pack several weights into one integer.
        name: Name of the checkpoint.

    Raises:
        InvalidInput: There are too many weights, or transformers cannot build the model.
    """
    stored = sum(
        8 * spec.nbytes if spec.dtype.startswith(("I", "U")) else spec.numel for spec in tensors
    )
    try:
        described = sum(parameter.numel() for parameter in model_on_meta(config).parameters())
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error.message}", error.hint) from error.__cause__
    if described > MAX_EXTENT * stored:
        raise InvalidInput(
            f"{name}: config.json describes a model with {described:,} weights, but the files have"
            f" {stored:,}",
            "config.json does not belong to these weights: restore the original file",
        )


def transformers_config(raw: Mapping[str, Any]) -> Any:
    """The config of transformers for a `config.json`; remote code is not run."""
    from transformers import CONFIG_MAPPING

    kind = str(raw.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise InvalidInput(
            f"transformers does not know the model type {kind!r}, and remote code of a checkpoint"
            " is not run",
            "update transformers, or use a model of a type that it knows",
        )
    with transformers_error():
        return CONFIG_MAPPING[kind].from_dict(dict(raw))


@contextmanager
def transformers_error() -> Iterator[None]:
    """Translate any error that transformers raises for an invalid config to `InvalidInput`."""
    with translate_errors(
        "transformers cannot build a model from this config.json", "restore the original file"
    ):
        yield


def model_on_meta(config: Mapping[str, Any]) -> nn.Module:
    """Build the model of a `config.json` on the meta device.

    Raises:
        InvalidInput: transformers does not know the model type, or cannot use the values.
    """
    import torch
    from transformers import AutoModel

    model_config = transformers_config(
        {k: v for k, v in config.items() if k != "quantization_config"}
    )
    with torch.device("meta"), transformers_error():
        model: nn.Module = AutoModel.from_config(model_config)
    return model


def meta_kwargs() -> dict[str, Any]:
    """Arguments of `from_pretrained` where only names and shapes matter, not the data.

    Without accelerate transformers cannot load to `meta`: the model is loaded into memory.
    """
    return {"device_map": {"": "meta"}} if find_spec("accelerate") else {}
