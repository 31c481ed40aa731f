"""Detection of paths that are not dense embedding models: other kinds, other formats, no model.

Only names and JSON files are read, before other checks, so that error messages name the kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from emb_tool.checkpoint.files import read_json, read_json_list
from emb_tool.checkpoint.modules import class_name

_ORIGINAL = "give the folder or hub id of the original model, with model.safetensors"


class Kind(NamedTuple):
    """What a path contains.

    Args:
        description: Predicate of an error message whose subject is the path.
        hint: Hint of the error message.
    """

    description: str
    hint: str = "give a dense embedding model, which computes one vector per text"


_CROSS_ENCODER = Kind("is a cross-encoder (reranker): it scores pairs of texts, and has no vectors")
_SPARSE_ENCODER = Kind(
    "is a sparse encoder: its vectors have one number per token of the vocabulary"
)
_LATE_INTERACTION = Kind(
    "is a late-interaction model (ColBERT): it has one vector per token, not per text"
)
_MULTIMODAL = Kind("is a multimodal model: only text models are supported")

_MODEL_TYPES = {
    "CrossEncoder": _CROSS_ENCODER,
    "SparseEncoder": _SPARSE_ENCODER,
    "MultiVectorEncoder": _LATE_INTERACTION,
}
"""`model_type` in config_sentence_transformers.json."""

_PACKAGES = {
    "sentence_transformers.cross_encoder.": _CROSS_ENCODER,
    "sentence_transformers.sparse_encoder.": _SPARSE_ENCODER,
    "sentence_transformers.multi_vector_encoder.": _LATE_INTERACTION,
    "pylate.": _LATE_INTERACTION,
}
"""Kinds by the package of the classes in modules.json."""

_CROSS_ENCODER_KEYS = ("activation_fn", "sbert_ce_default_activation_function")
"""Keys that sentence-transformers adds to the config.json of a cross-encoder (since 4.0,
before)."""

_HEADS = {
    "SequenceClassification": "a classification model, perhaps a cross-encoder (reranker)",
    "TokenClassification": "a token classification model",
    "QuestionAnswering": "a question answering model",
    "MultipleChoice": "a multiple choice model",
}
"""Heads that embedding models are not pretrained with, by suffix of the class in transformers."""

_FORMATS = {
    ".gguf": "GGUF", ".onnx": "ONNX", ".tflite": "TensorFlow Lite", ".h5": "TensorFlow",
    ".msgpack": "Flax", ".mlmodel": "Core ML", ".npz": "MLX",
}  # fmt: skip

_DATA = (".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".npy", ".gz", ".zst")


def unsupported_kind(folder: Path) -> Kind | None:
    """The kind of model by the JSON files of a folder; None if it may be a dense embedding model.

    Args:
        folder: Folder of the checkpoint.
    """
    settings = read_json(folder, "config_sentence_transformers.json") or {}
    kind = _MODEL_TYPES.get(str(settings.get("model_type")))
    entries = read_json_list(folder, "modules.json")
    if kind or entries is None:
        return kind or _transformers_kind(read_json(folder, "config.json") or {})
    classes = [str(entry.get("type")) for entry in entries if isinstance(entry, dict)]
    for name in classes:
        for package, kind in _PACKAGES.items():
            if name.startswith(package):
                return kind
    return _MULTIMODAL if any(name.endswith(".CLIPModel") for name in classes) else None


def _transformers_kind(config: Mapping[str, Any]) -> Kind | None:
    """The kind of model in a transformers folder, without modules.json."""
    nested = config.get("sentence_transformers")
    nested = nested if isinstance(nested, dict) else {}
    if any(key in keys for key in _CROSS_ENCODER_KEYS for keys in (config, nested)):
        return _CROSS_ENCODER
    if "colbert" in class_name(config).lower():
        return _LATE_INTERACTION
    if any(isinstance(config.get(key), dict) for key in ("vision_config", "audio_config")):
        return _MULTIMODAL
    return None


def head_warning(config: Mapping[str, Any], pooling: str) -> str | None:
    """A warning for a model without modules.json whose class has a head for another task.

    Such a model is used without its head.

    Args:
        config: The config.json.
        pooling: The assumed pooling.
    """
    name = class_name(config)
    task = re.search(r"For([A-Z]\w*)$", name)
    if task is None or task[1] not in _HEADS:
        return None
    return (
        f"a {name} without modules.json is {_HEADS[task[1]]}: its head is not used, and {pooling}"
        " pooling is assumed, as in sentence-transformers"
    )


def missing_weights_kind(root: Path, part: str) -> Kind:
    """What a folder without model.safetensors contains.

    Args:
        root: Folder of the checkpoint.
        part: Subfolder of the main weights; "" is the root.
    """
    folder = root / part
    if any((folder / f"adapter_{name}").is_file() for name in ("config.json", "model.safetensors")):
        base = (read_json(folder, "adapter_config.json") or {}).get("base_model_name_or_path")
        return Kind(
            "has an adapter, not a full model",
            f"merge it into its base first: embtool merge {folder} --base {base or 'BASE'} -o OUT",
        )
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in (
        *entries,
        *(nested for sub in entries if sub.is_dir() for nested in sub.iterdir()),
    ):
        if path.suffix in _FORMATS:
            return Kind(f"has only {_FORMATS[path.suffix]} weights ({path.name})", _ORIGINAL)
    models = [
        sub
        for sub in entries
        if (sub / "modules.json").is_file() or (sub / "config.json").is_file()
    ]
    if models and not part:
        return Kind("has no model.safetensors", f"give the folder of a model: {models[-1]}?")
    names = ", ".join(path.name for path in entries[:8])
    return Kind(
        f"has no model.safetensors{f' (it has {names})' if names else ''}",
        "is this the folder of a model?",
    )


def file_kind(path: Path) -> Kind:
    """What a file without the extension .safetensors is."""
    if path.suffix in _FORMATS:
        return Kind(f"is a model in {_FORMATS[path.suffix]}", _ORIGINAL)
    if path.suffix in _DATA:
        return Kind(
            "is a data file, not a model", "give texts with --texts; with encode, after the model"
        )
    return Kind(
        "is a file, but neither a model folder nor .safetensors",
        "give the folder with config.json",
    )
