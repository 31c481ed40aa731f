"""Check from headers that a checkpoint has the tensors that its configs describe.

Loaders initialize missing weights at random and ignore unknown tensors, with a warning at most.
This module reports faults that are certain from headers; the loading report of transformers covers
the rest when a model is loaded (`emb_tool.model.loaded_weights`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from emb_tool.checkpoint.architectures import ARCHITECTURES
from emb_tool.checkpoint.files import join
from emb_tool.checkpoint.modules import ModuleSpec, layer_count
from emb_tool.checkpoint.quantization import PACKED, packed_modules, unpacked_specs
from emb_tool.checkpoint.weight_files import Weights
from emb_tool.checkpoint.wrappers import find_wrapper, known_wrappers
from emb_tool.plan import TensorSpec

MAX_NAMES = 3
"""Maximum number of names in a message."""

DOWNLOAD_AGAIN = (
    "download the checkpoint again, or take the config.json that belongs to these weights"
)

COMPUTED = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|attn\.bias|masked_bias)$")
"""Computed buffers, which older versions of transformers stored."""

ADAPTER = re.compile(r"(^|\.)(base_layer|lora_(embedding_)?[AB]|lora_magnitude_vector)(\.|$)")
"""Tensor names of peft in a model that was saved without merging its adapter."""

UNMERGED = (
    "merge the adapter into its base before saving: peft's model.merge_and_unload(), then"
    " save_pretrained"
)

_OLD_NORM_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

MAIN_KINDS = ("Transformer", "StaticEmbedding")
"""Modules whose folder has the `config.json` of a model."""

_KINDS_WITH_WEIGHTS = (
    "Transformer", "StaticEmbedding", "Dense", "LayerNorm", "WeightedLayerPooling", "CNN", "LSTM",
    "WordEmbeddings",
)  # fmt: skip
"""Modules that have weights."""

_KINDS_WITHOUT_WEIGHTS = ("Pooling", "Normalize", "Dropout")

_STATIC_TABLES = ({"embedding.weight"}, {"embeddings"})
_STATIC_EXTRAS = {"mapping", "weights"}
"""Tensors of a static embedding in sentence-transformers or model2vec, and further ones of
model2vec."""


class Fault(NamedTuple):
    """A fault of a checkpoint: an error message and a hint."""

    message: str
    hint: str


def summarize_names(names: Collection[str]) -> str:
    """Format the number of names and the first few of them."""
    listed = ", ".join(sorted(names)[:MAX_NAMES])
    return f"{len(names):,} ({listed}{', ...' if len(names) > MAX_NAMES else ''})"


def current_name(name: str) -> str:
    """The current name of a tensor: old checkpoints have gamma and beta for norms."""
    old = next((old for old in _OLD_NORM_NAMES if name.endswith(old)), None)
    return name.removesuffix(old) + _OLD_NORM_NAMES[old] if old else name


def find_faults(
    modules: Iterable[ModuleSpec],
    weights: Mapping[str, Weights],
    configs: Mapping[str, Mapping[str, Any]],
) -> Iterator[Fault]:
    """Find missing and unused tensors.

    Args:
        modules: All modules, including those of a Router's routes.
        weights: Weights by folder.
        configs: The `config.json` of each folder of `MAIN_KINDS`.
    """
    checked = set()
    for module in modules:
        part = weights.get(module.path, Weights())
        if module.path in checked or part.pickled:
            continue
        if module.kind in _KINDS_WITHOUT_WEIGHTS and module.path and part.files:
            yield Fault(
                f"{module.path}: {module.kind} has no weights, but the folder holds tensors:"
                f" {summarize_names(part.tensors)}",
                "restore the original modules.json",
            )
        if module.kind not in _KINDS_WITH_WEIGHTS:
            continue
        checked.add(module.path)
        where = join(module.path, "model.safetensors")
        if not part.files:
            yield Fault(
                f"{where} is missing: {module.kind} has no weights",
                "download the checkpoint again, with its module folders",
            )
            continue
        config = configs.get(module.path, {})
        yield from _wrapper_faults(part, config, module.kind)
        if module.kind == "Transformer":
            yield from _transformer_faults(part.tensors, config)
        elif module.kind == "StaticEmbedding":
            yield from _static_faults(where, part.tensors, config)
        else:
            yield from _shape_faults(module, where, part.tensors)


def _wrapper_faults(part: Weights, config: Mapping[str, Any], kind: str) -> Iterator[Fault]:
    """A wrapper's prefix on only some of the names, or a second wrapper."""
    for prefix, source in known_wrappers(config, kind).items():
        wrapped = [name for name in part.tensors if name.startswith(prefix)]
        if wrapped and part.wrapper:
            yield Fault(
                f"{len(wrapped):,} tensor names begin with {part.wrapper + prefix!r}: two wrappers"
                " around the model",
                "save the inner model with save_pretrained",
            )
        elif wrapped and len(wrapped) < len(part.tensors):
            others = [name for name in part.tensors if not name.startswith(prefix)]
            yield Fault(
                f"the names of {len(wrapped):,} of {len(part.tensors):,} tensors begin with"
                f" {prefix!r} ({source}), the others do not: {summarize_names(others)}",
                "save the inner model with save_pretrained",
            )


def _packed_faults(tensors: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> Iterator[Fault]:
    """Packed modules without tensors."""
    packed = packed_modules(config)
    missing = [m for m in packed if not any(name.startswith(f"{m}.") for name in tensors)]
    if missing:
        yield Fault(
            "config.json lists packed modules that have no tensors in the files:"
            f" {summarize_names(missing)}",
            DOWNLOAD_AGAIN,
        )


def _transformer_faults(
    tensors: Mapping[str, TensorSpec], config: Mapping[str, Any]
) -> Iterator[Fault]:
    """Missing, superfluous or nonuniform layers of the architectures in `ARCHITECTURES`."""
    yield from _packed_faults(tensors, config)
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    if architecture is None:
        return
    if unmerged := [name for name in tensors if ADAPTER.search(name)]:
        yield Fault(
            f"the files hold an adapter that was not merged: {summarize_names(unmerged)}", UNMERGED
        )
        return
    count = layer_count(config)
    if architecture.stack is not None and count:
        layers = _layers(unpacked_specs(config, tensors), architecture.stack)
        quantization = config.get("quantization_config") or {}
        other_format = quantization.get("quant_method", PACKED) != PACKED
        yield from _layer_count_faults(layers, count)
        if architecture.uniform and not (other_format or config.get("pruned_heads")):
            yield from _nonuniform(layers)


def _layers(
    tensors: Mapping[str, TensorSpec], stack: str
) -> dict[int, dict[str, tuple[str, tuple[int, ...]]]]:
    """Tensors by layer: name inside the layer to full name and shape."""
    pattern = re.compile(rf"(?:^|.*\.){re.escape(stack)}\.(\d{{1,6}})\.(.+)")
    layers: dict[int, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, spec in tensors.items():
        match = pattern.fullmatch(name)
        if match and not COMPUTED.search(name):
            layers.setdefault(int(match[1]), {})[current_name(match[2])] = (name, spec.shape)
    return layers


def _layer_count_faults(layers: Mapping[int, Mapping[str, Any]], count: int) -> Iterator[Fault]:
    """Missing layers, and layers beyond the number in config.json."""
    if not layers:  # transformers may know their names: see its loading report
        return
    if missing := [number for number in range(count) if number not in layers]:
        listed = ", ".join(map(str, missing[:MAX_NAMES])) + (", ..." if missing[MAX_NAMES:] else "")
        yield Fault(
            f"config.json states {count} layers, but {len(missing)} of them have no tensors in"
            f" the files: {listed}",
            DOWNLOAD_AGAIN,
        )
    extra = [name for n, layer in layers.items() if n >= count for name, _ in layer.values()]
    if extra:
        yield Fault(
            f"config.json states {count} layers, but the files have {len(layers)}; nothing would"
            f" use {summarize_names(extra)}",
            "use the config.json of these weights; to remove layers: embtool compress -m layers",
        )


def _nonuniform(layers: Mapping[int, Mapping[str, tuple[str, tuple[int, ...]]]]) -> Iterator[Fault]:
    """Tensors that are not in all layers, and shapes that differ between layers."""
    owners = Counter(suffix for layer in layers.values() for suffix in layer)
    lacking = [
        f"layer {number} {suffix}"
        for number, layer in sorted(layers.items())
        for suffix, count in owners.items()
        if suffix not in layer and 2 * count >= len(layers)
    ]
    extra = [
        layer[suffix][0]
        for layer in layers.values()
        for suffix, count in owners.items()
        if suffix in layer and 2 * count < len(layers)
    ]
    if lacking:
        yield Fault(
            f"tensors that other layers have are missing: {summarize_names(lacking)}",
            DOWNLOAD_AGAIN,
        )
    if extra:
        yield Fault(f"tensors that no other layer has: {summarize_names(extra)}", DOWNLOAD_AGAIN)
    for suffix in owners:
        shapes = {
            layer[suffix][1]: layer[suffix][0] for layer in layers.values() if suffix in layer
        }
        if len(shapes) > 1:
            (shape_a, name_a), (shape_b, name_b) = list(shapes.items())[:2]
            yield Fault(
                f"layers differ in shape: {name_a} is {list(shape_a)}, {name_b} is {list(shape_b)}",
                DOWNLOAD_AGAIN,
            )
            return


def _static_faults(
    where: str, tensors: Mapping[str, TensorSpec], config: Mapping[str, Any]
) -> Iterator[Fault]:
    """A missing table or unused tensors of a static embedding."""
    if packed_modules(config):
        yield from _packed_faults(tensors, config)
        return
    names = set(tensors)
    table = next((known for known in _STATIC_TABLES if known <= names), None)
    if table is None:
        yield Fault(
            f"{where}: no table named embedding.weight or embeddings; it has"
            f" {summarize_names(names)}",
            "rename the table, or restore the original file",
        )
    elif unused := names - table - (_STATIC_EXTRAS if table == _STATIC_TABLES[1] else set()):
        yield Fault(
            f"{where}: tensors that nothing uses: {summarize_names(unused)}",
            "restore the original file",
        )


def _shape_faults(
    module: ModuleSpec, where: str, tensors: Mapping[str, TensorSpec]
) -> Iterator[Fault]:
    """Wrong names or shapes of tensors in modules whose config determines them."""
    config = module.config
    expected: dict[str, tuple[Any, ...]] = {}
    if module.kind == "Dense":
        rows, columns = config.get("out_features"), config.get("in_features")
        expected = {"linear.weight": (rows, columns)}
        if config.get("bias", True):
            expected["linear.bias"] = (rows,)
        optional = "activation_function."
    elif module.kind == "LayerNorm":
        expected = dict.fromkeys(("norm.weight", "norm.bias"), (config.get("dimension"),))
        optional = ""
    else:
        return
    if missing := expected.keys() - tensors.keys():
        yield Fault(
            f"{where}: {module.kind} lacks tensors: {summarize_names(missing)}", DOWNLOAD_AGAIN
        )
    extra = [
        name for name in tensors
        if name not in expected and not (optional and name.startswith(optional))
    ]  # fmt: skip
    if extra:
        yield Fault(
            f"{where}: {module.kind} does not use tensors of the file: {summarize_names(extra)}",
            "restore the module's original config.json and weights",
        )
    for name in expected.keys() & tensors.keys():
        if tensors[name].shape != expected[name] and None not in expected[name]:
            yield Fault(
                f"{where}: {name} has the shape {list(tensors[name].shape)}, but config.json has"
                f" {list(expected[name])}",
                "restore the module's original config.json and weights",
            )


def strip_wrappers(
    modules: Iterable[ModuleSpec],
    weights: Mapping[str, Weights],
    configs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Weights]:
    """Remove the prefix of a wrapper if all names of a folder have it.

    Args:
        modules: All modules.
        weights: Weights by folder.
        configs: The `config.json` of each folder of `MAIN_KINDS`.

    Returns:
        Weights by folder.
    """
    kinds = {module.path: module.kind for module in reversed([*modules])}
    stripped = {}
    for path, part in weights.items():
        config, wrapper = configs.get(path, {}), ""
        if path in kinds and not packed_modules(config):  # packed files may have any names
            wrapper = find_wrapper(part.tensors, config, kinds[path])
        stripped[path] = part.without(wrapper) if wrapper else part
    return stripped
