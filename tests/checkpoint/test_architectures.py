"""What is stated of architectures, against transformers' own classes."""

from __future__ import annotations

import re

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel

from emb_tool.checkpoint.architectures import ARCHITECTURES
from emb_tool.checkpoint.modules import LAYER_COUNTS

LAYERS = 4


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_row_says_what_the_class_has(model_type: str) -> None:
    stated = ARCHITECTURES[model_type]
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    config = CONFIG_MAPPING[model_type]()
    for key in LAYER_COUNTS:
        if hasattr(config, key):
            setattr(config, key, LAYERS)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(config)
    assert model.base_model_prefix == stated.base
    names = {name: value.shape for name, value in model.state_dict().items()}
    if stated.stack is None:
        assert not any(re.search(r"\.layer\.\d+\.", name) for name in names)
        return
    layers: dict[int, dict[str, torch.Size]] = {}
    for name, shape in names.items():
        found = re.match(rf"{re.escape(stated.stack)}\.(\d+)\.(.+)", name)
        if found:
            layers.setdefault(int(found[1]), {})[found[2]] = shape
    assert sorted(layers) == [*range(LAYERS)]
    if stated.uniform:
        assert all(layer == layers[0] for layer in layers.values())
