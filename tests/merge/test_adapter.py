"""LoRA adapters against peft's own merge, and what is no W + s B A refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertForMaskedLM

from emb_tool.checkpoint.elements import OpenFiles
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import InvalidInput
from emb_tool.merge import lora
from emb_tool.merge.adapter import LowRank, open_model
from emb_tool.merge.lora import read_lora
from emb_tool.merge.tensor_names import canonical

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}

Run = Callable[..., Any]


def train(model: Any, seed: int = 0) -> Any:
    """Stand in for training: every factor is random."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=random)
    return model


def adapted(base: Path, folder: Path, kind: Any = AutoModel, **settings: Any) -> Path:
    """An adapter of the base as peft saves it."""
    model = get_peft_model(kind.from_pretrained(base), LoraConfig(**settings))
    train(model).save_pretrained(folder)
    return folder


def by_peft(base: Path, adapter: Path, kind: Any = AutoModel) -> dict[str, torch.Tensor]:
    merged = PeftModel.from_pretrained(kind.from_pretrained(base), str(adapter))
    return dict(merged.merge_and_unload().state_dict())


def merged(base: Path, adapter: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """What the merge reads of an adapter by canonical name, and which of it is changed."""
    model = open_model(str(adapter), Checkpoint.open(base))
    files, found, changed = OpenFiles(), {}, []
    for short, stored in canonical(model.tensors).items():
        source = model.source(stored, short, files)  # type: ignore[attr-defined]
        values = source.raw if isinstance(source, LowRank) else source.values
        found[short] = values(0, source.spec.numel).reshape(source.spec.shape)
        changed += [short] if isinstance(source, LowRank) else []
    files.close()
    return found, changed


QUERY_KEY = {"target_modules": ["query", "key"], "r": 4, "lora_alpha": 8}
PATTERNS = {
    **QUERY_KEY,
    # by the end of a name behind a dot: "ey" and "uery" match none; of two that match, the first
    "rank_pattern": {"layer.1.attention.self.query": 2, "query": 6, "ey": 3},
    "alpha_pattern": {
        "^encoder.layer.2.attention.self.key": 3, "uery": 100, "layer.[01].*.key": 5, "key": 7,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        QUERY_KEY,
        {**QUERY_KEY, "use_rslora": True},
        PATTERNS,
        {**PATTERNS, "use_rslora": True},
        {"target_modules": ["word_embeddings", "dense"], "r": 2, "use_rslora": True},
        {**QUERY_KEY, "layers_to_transform": [1], "layers_pattern": "layer", "lora_dropout": 0.1},
        {**QUERY_KEY, "exclude_modules": ["encoder.layer.0.attention.self.key"]},
        *({**QUERY_KEY, "init_lora_weights": x} for x in (False, "gaussian", "orthogonal", "mica")),
    ],
    ids=lambda value: "-".join(key for key in value if key not in QUERY_KEY) or "plain",
)
def test_it_is_what_peft_merges(settings: Any, tiny_bert: Path, tmp_path: Path) -> None:
    adapter = adapted(tiny_bert, tmp_path / "adapter", **settings)
    expected, (found, changed) = by_peft(tiny_bert, adapter), merged(tiny_bert, adapter)
    held = load_file(tiny_bert / "model.safetensors")
    assert changed
    for name, values in found.items():
        theirs = expected[name].numpy()
        assert np.abs(values - theirs).max() <= 1e-6 * np.abs(theirs).max(), name
        assert np.array_equal(theirs, held[name].numpy()) == (name not in changed)


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_patterns_match_names_in_the_class_that_was_trained(
    rank_stabilized: bool, tiny_bert: Path, tmp_path: Path
) -> None:
    """There they begin with `bert.`, as anchored patterns do."""
    alphas = {"^bert.encoder.layer.1.attention.self.query": 2, "^encoder.*": 100}
    adapter = adapted(
        tiny_bert, tmp_path / "adapter", BertForMaskedLM,
        **QUERY_KEY, alpha_pattern=alphas, use_rslora=rank_stabilized,
    )  # fmt: skip
    expected, (found, changed) = (
        by_peft(tiny_bert, adapter, BertForMaskedLM),
        merged(tiny_bert, adapter),
    )
    assert len(changed) == 8
    for name in changed:
        theirs = expected[f"bert.{name}"].numpy()
        assert np.abs(found[name] - theirs).max() <= 1e-6 * np.abs(theirs).max(), name


def test_a_decoders_adapter(tiny_decoder: Path, tmp_path: Path) -> None:
    settings = {"target_modules": "all-linear", "r": 3, "alpha_pattern": {"mlp.*": 1}}
    adapter = adapted(tiny_decoder, tmp_path / "adapter", **settings)
    expected, (found, changed) = by_peft(tiny_decoder, adapter), merged(tiny_decoder, adapter)
    assert len(changed) == 3 * 7
    for name in changed:
        theirs = expected[name].numpy()
        assert np.abs(found[name] - theirs).max() <= 1e-6 * np.abs(theirs).max(), name


def test_what_peft_writes_of_a_pissa_adapter_as_plain_lora(tiny_bert: Path, tmp_path: Path) -> None:
    """The way that the refusal names: the adapter itself is refused, that one is right."""
    config = LoraConfig(**QUERY_KEY, init_lora_weights="pissa")
    model = get_peft_model(AutoModel.from_pretrained(tiny_bert), config)
    model.save_pretrained(tmp_path / "initial")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.01
    model.save_pretrained(tmp_path / "pissa")
    model.save_pretrained(
        tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial")
    )
    with pytest.raises(InvalidInput) as refused:
        open_model(str(tmp_path / "pissa"), Checkpoint.open(tiny_bert))
    assert 'init_lora_weights "pissa"' in refused.value.message
    assert "path_initial_model_for_weight_conversion" in str(refused.value.hint)
    expected = dict(model.merge_and_unload().state_dict())
    found, changed = merged(tiny_bert, tmp_path / "plain")
    assert len(changed) == 8
    for name in changed:
        theirs = expected[name].numpy()  # weights of a singular value decomposition in float32
        assert np.abs(found[name] - theirs).max() <= 3e-6 * np.abs(theirs).max(), name


@pytest.mark.parametrize(
    ("stated", "said", "hint"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, 'init_lora_weights "pissa_niter_4"', "INITIAL"),
        ({"init_lora_weights": "olora"}, 'init_lora_weights "olora"', "INITIAL"),
        ({"init_lora_weights": "corda", "corda_config": {}}, 'weights "corda"', "INITIAL"),
        ({"init_lora_weights": "lora_ga"}, 'init_lora_weights "lora_ga"', "INITIAL"),
        ({"init_lora_weights": "loftq"}, 'init_lora_weights "loftq"', "merge_and_unload"),
        ({"init_lora_weights": "of next year"}, '"of next year"', "merge_and_unload"),
        ({"init_lora_weights": 1}, "init_lora_weights 1", "merge_and_unload"),
        ({"use_dora": True, "bias": "all"}, 'use_dora true, bias "all"', "merge_and_unload"),
        ({"bias": None}, "bias null", "merge_and_unload"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens [5]", "some tokens only"),
        ({"arrow_config": {"top_k": 3}}, 'arrow_config {"top_k": 3}', "some tokens only"),
        ({"peft_type": "LOHA", "alpha": 8}, 'peft_type "LOHA"', "merge_and_unload"),
        ({"new_in_peft": 0}, "new_in_peft 0", "merge_and_unload"),
        ({"new_in_peft": "x"}, 'new_in_peft "x"', "merge_and_unload"),
    ],
    ids=str,
)
def test_whatever_else_is_refused_by_name(stated: Any, said: str, hint: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_lora({**PLAIN, **stated}, "an adapter")
    assert said in refused.value.message
    assert hint in str(refused.value.hint)


def test_keys_that_are_off_are_no_matter() -> None:
    off = {"use_dora": False, "modules_to_save": None, "layer_replication": [], "new_in_peft": {}}
    free = {"eva_config": {"rho": 2}, "peft_version": "9", "target_modules": "all-linear"}
    lora = read_lora({**PLAIN, **off, **free, "init_lora_weights": "eva"}, "an adapter")
    assert lora.scaling_of("x") == 2
    assert read_lora({"peft_type": "LORA"}, "an adapter").scaling_of("x") == 1  # peft's defaults


def test_every_setting_of_the_installed_peft_is_known_or_refused() -> None:
    """A setting that a later peft brings changes nothing here, or is refused by its name."""
    plain = LoraConfig().to_dict()
    read_lora({**plain, "peft_type": "LORA"}, "an adapter")
    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields >= lora._CHECKED_KEYS | lora._IGNORED_KEYS  # none that is misspelled
    for key in fields - lora._CHECKED_KEYS - lora._IGNORED_KEYS:
        with pytest.raises(InvalidInput, match=key):
            read_lora({**PLAIN, key: True}, "an adapter")


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is true"),
        ({"r": "4"}, 'r is "4"'),
        ({"lora_alpha": float("nan")}, "lora_alpha is NaN"),
        ({"lora_alpha": 1e300}, "lora_alpha is 1e"),
        ({"use_rslora": "no"}, 'use_rslora is "no"'),
        ({"rank_pattern": ["query"]}, "rank_pattern is"),
        ({"rank_pattern": {"query": 2.5}}, "rank_pattern is"),
        ({"alpha_pattern": {"query": None}}, "alpha_pattern is"),
        ({"alpha_pattern": {"que(ry": 2}}, r"'que\(ry'.*cannot be used"),
        ({"alpha_pattern": {"(.*)*x": 2}}, "too long"),
        ({"alpha_pattern": {"(.|.)" * 30: 2}}, "too long"),
        ({"alpha_pattern": {".?" * 30: 2}}, "too long"),
        ({"alpha_pattern": {"[^.]*" * 9: 2}}, "too long"),
    ],
    ids=str,
)
def test_values_that_cannot_be_are_refused(stated: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        read_lora({**PLAIN, **stated}, "an adapter")


NAME = "encoder.layer.0.attention.self.query"
A, B = f"base_model.model.{NAME}.lora_A.weight", f"base_model.model.{NAME}.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "stated", "said"),
    [
        ({}, {"r": 3}, r"factors of rank 4 and 4, adapter_config.json\s+states 3"),
        ({}, {"rank_pattern": {"query": 2}}, "states 2"),
        ({B: (32, 5)}, {}, "factors of rank 4 and 5"),
        ({B: None}, {}, "one factor is missing"),
        ({B: (31, 4)}, {}, r"is for a matrix of \[31, 32\]"),
        ({A.replace("A.weight", "A.other.weight"): (4, 32)}, {}, "belong to two adapters"),
        ({A.replace("encoder", "bert.encoder"): (4, 32),
          B.replace("encoder", "bert.encoder"): (32, 4)}, {}, "is changed twice"),
        ({A.replace("encoder", "other.encoder"): (4, 32)}, {}, "not a matrix of"),
        ({A.replace("lora_A.weight", "lora_magnitude_vector"): (1, 32)}, {}, "is not a factor"),
        ({A.replace("lora_A", "base_layer"): (32, 32)}, {}, "is not a factor"),
    ],
    ids=["rank", "rank_pattern", "ranks", "half", "shape", "two adapters", "twice", "prefix",
         "magnitude", "base_layer"],
)  # fmt: skip
def test_files_that_do_not_agree_are_refused(
    change: dict[str, Any], stated: Any, said: str, tiny_bert: Path, tmp_path: Path
) -> None:
    shapes = {A: (4, 32), B: (32, 4), **change}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items() if shape}
    write(tmp_path, tensors, stated)
    with pytest.raises(InvalidInput, match=said):
        open_model(str(tmp_path), Checkpoint.open(tiny_bert))
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(InvalidInput, match=r"without adapter_config\.json"):
        open_model(str(tmp_path), Checkpoint.open(tiny_bert))


def test_square_matrices_of_a_base_that_stores_them_transposed(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """Of Conv1D, as GPT-2 has it, shapes tell: but not where both sides are alike."""
    base = tmp_path / "base"
    shutil.copytree(tiny_bert, base)
    tensors = load_file(base / "model.safetensors")
    for name in [name for name in tensors if name.endswith("intermediate.dense.weight")]:
        tensors[name] = tensors[name].T.contiguous()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "adapter").mkdir()
    write(tmp_path / "adapter", {A: torch.zeros(4, 32), B: torch.zeros(32, 4)})
    with pytest.raises(InvalidInput, match=r"stores matrices as \(in, out\)"):
        open_model(str(tmp_path / "adapter"), Checkpoint.open(base))


def write(folder: Path, tensors: dict[str, torch.Tensor], stated: Any = None) -> None:
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **(stated or {})}))
