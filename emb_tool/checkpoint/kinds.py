"""What a path holds if it is not a dense embedding model: another kind, another format, no model.

Found from names and JSON files before anything else is read, so that nobody is asked to restore
files that are as they should be.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from emb_tool.checkpoint.files import read_json, read_json_list
from emb_tool.checkpoint.modules import class_name

_ORIGINAL = "name the folder or hub id of the original model, with model.safetensors"


class Kind(NamedTuple):
    """What a path holds.

    Args:
        what: The sentence that begins with the path.
        hint: What to do.
    """

    what: str
    hint: str = "name a dense embedding model: one that makes one vector of a text"


_CROSS_ENCODER = Kind("is a cross-encoder (reranker): it scores pairs of texts, and has no vectors")
_SPARSE_ENCODER = Kind(
    "is a sparse encoder: its vectors have one number for each token of the vocabulary"
)
_LATE_INTERACTION = Kind(
    "is a late-interaction model (ColBERT): it has one vector for each token, not for the text"
)
_MULTIMODAL = Kind("is a multimodal model: only models of text alone are read")

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
"""Where the classes of modules.json are defined."""

_CROSS_ENCODER_KEYS = ("activation_fn", "sbert_ce_default_activation_function")
"""What sentence-transformers adds to the config.json of a cross-encoder: today, before 4.0."""

_HEADS = {
    "SequenceClassification": "a classification model, perhaps a cross-encoder (reranker)",
    "TokenClassification": "a token classification model",
    "QuestionAnswering": "a question answering model",
    "MultipleChoice": "a multiple choice model",
}
"""Heads that embedding models are not pretrained with, by the ends of transformers' class names."""

_FORMATS = {
    ".gguf": "GGUF", ".onnx": "ONNX", ".tflite": "TensorFlow Lite", ".h5": "TensorFlow",
    ".msgpack": "Flax", ".mlmodel": "Core ML", ".npz": "MLX",
}  # fmt: skip

_DATA = (".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".npy", ".gz", ".zst")


def unsupported_kind(folder: Path) -> Kind | None:
    """Which other kind of model a folder's JSON files say that it is; None if they do not.

    Args:
        folder: As the user named it.
    """
    stated = read_json(folder, "config_sentence_transformers.json") or {}
    kind = _MODEL_TYPES.get(str(stated.get("model_type")))
    entries = read_json_list(folder, "modules.json")
    if kind or entries is None:
        return kind or _bare_kind(read_json(folder, "config.json") or {})
    classes = [str(entry.get("type")) for entry in entries if isinstance(entry, dict)]
    for name in classes:
        for package, kind in _PACKAGES.items():
            if name.startswith(package):
                return kind
    return _MULTIMODAL if any(name.endswith(".CLIPModel") for name in classes) else None


def _bare_kind(config: Mapping[str, Any]) -> Kind | None:
    """Of a folder of transformers' own, without modules.json."""
    added = config.get("sentence_transformers")
    added = added if isinstance(added, dict) else {}
    if any(key in held for key in _CROSS_ENCODER_KEYS for held in (config, added)):
        return _CROSS_ENCODER
    if "colbert" in class_name(config).lower():
        return _LATE_INTERACTION
    if any(isinstance(config.get(key), dict) for key in ("vision_config", "audio_config")):
        return _MULTIMODAL
    return None


def head_warning(config: Mapping[str, Any], pooling: str) -> str | None:
    """What to know of a model without modules.json whose class has a head of another task.

    Its body is used as that of an embedding model, the head is left out.

    Args:
        config: Its config.json.
        pooling: The pooling that is assumed.
    """
    name = class_name(config)
    task = re.search(r"For([A-Z]\w*)$", name)
    if task is None or task[1] not in _HEADS:
        return None
    return (
        f"a {name} without modules.json is {_HEADS[task[1]]}: its head is left out, and {pooling}"
        " pooling is assumed, as sentence-transformers does"
    )


def without_weights(root: Path, part: str) -> Kind:
    """What a folder holds in which there is no model.safetensors.

    Args:
        root: As the user named it.
        part: The folder of the main weights in it; "" is itself.
    """
    folder = root / part
    if any((folder / f"adapter_{name}").is_file() for name in ("config.json", "model.safetensors")):
        stated = (read_json(folder, "adapter_config.json") or {}).get("base_model_name_or_path")
        return Kind(
            "holds an adapter, not a whole model",
            f"merge it into its base first: embtool merge {folder} --base {stated or 'BASE'}"
            " -o OUT",
        )
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in (*inside, *(inner for sub in inside if sub.is_dir() for inner in sub.iterdir())):
        if path.suffix in _FORMATS:
            return Kind(f"holds {_FORMATS[path.suffix]} alone ({path.name})", _ORIGINAL)
    models = [
        sub for sub in inside if (sub / "modules.json").is_file() or (sub / "config.json").is_file()
    ]
    if models and not part:
        return Kind("has no model.safetensors", f"name the folder of a model: {models[-1]}?")
    names = ", ".join(path.name for path in inside[:8])
    return Kind(
        f"has no model.safetensors{f' (it holds {names})' if names else ''}",
        "is this the folder of a model?",
    )


def file_kind(path: Path) -> Kind:
    """What a file is that is no .safetensors."""
    if path.suffix in _FORMATS:
        return Kind(f"is a model in {_FORMATS[path.suffix]}", _ORIGINAL)
    if path.suffix in _DATA:
        return Kind(
            "is a file of data, not a model", "texts are given by --texts, or with encode after it"
        )
    return Kind(
        "is a file, but neither a model folder nor .safetensors",
        "name the folder that holds config.json",
    )
