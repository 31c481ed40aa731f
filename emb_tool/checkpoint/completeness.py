"""Whether a checkpoint's files hold the tensors that its configs describe, from headers alone.

Loaders initialize missing weights at random and ignore unknown tensors, with a warning at most.
Checked here is what headers show without doubt; transformers' own report shows the rest wherever a
model is loaded (`emb_tool.model.loaded_weights`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from emb_tool.checkpoint.architectures import ARCHITECTURES
from emb_tool.checkpoint.files import join
from emb_tool.checkpoint.modules import ModuleSpec, layer_count
from emb_tool.checkpoint.quantization import PACKED, packed_modules, unpacked
from emb_tool.checkpoint.weight_files import Weights
from emb_tool.checkpoint.wrappers import known_wrappers, wrapper_of
from emb_tool.plan import TensorSpec

MAX_NAMES = 3
"""Names in a message."""

DOWNLOAD_AGAIN = (
    "download the checkpoint again, or take the config.json that belongs to these weights"
)

COMPUTED = re.compile(r"(^|\.)(position_ids|token_type_ids|inv_freq|attn\.bias|masked_bias)$")
"""Buffers that a model's class computes; older versions of transformers stored them."""

ADAPTER = re.compile(r"(^|\.)(base_layer|lora_(embedding_)?[AB]|lora_magnitude_vector)(\.|$)")
"""In names of peft's, in a model saved before its adapter was merged."""

UNMERGED = (
    "merge the adapter into its base before saving: peft's model.merge_and_unload(), then"
    " save_pretrained"
)

_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}

MAIN_KINDS = ("Transformer", "StaticEmbedding")
"""Modules whose folder has a `config.json` of a model."""

_WEIGHTED = ("Transformer", "StaticEmbedding", "Dense", "LayerNorm", "WeightedLayerPooling", "CNN",
             "LSTM", "WordEmbeddings")  # fmt: skip
"""Modules that have weights."""

_WEIGHTLESS = ("Pooling", "Normalize", "Dropout")

_STATIC = ({"embedding.weight"}, {"embeddings"})
_STATIC_TOO = {"mapping", "weights"}
"""What a static embedder's file holds: sentence-transformers' table, or model2vec's."""


class Fault(NamedTuple):
    """What is wrong with a checkpoint, and what to do."""

    message: str
    hint: str


def summarize_names(names: Collection[str]) -> str:
    """The number of names, and the first few of them."""
    shown = ", ".join(sorted(names)[:MAX_NAMES])
    return f"{len(names):,} ({shown}{', ...' if len(names) > MAX_NAMES else ''})"


def current_name(name: str) -> str:
    """A tensor's name as it is written today: norms were once called gamma and beta."""
    old = next((old for old in _OLD if name.endswith(old)), None)
    return name.removesuffix(old) + _OLD[old] if old else name


def find_faults(
    modules: Iterable[ModuleSpec],
    weights: Mapping[str, Weights],
    configs: Mapping[str, Mapping[str, Any]],
) -> Iterator[Fault]:
    """Tensors that are missing and tensors that nothing uses, part by part.

    Args:
        modules: All of them, those of a Router's routes included.
        weights: Of each folder that has any.
        configs: The `config.json` of each folder of `MAIN_KINDS`.
    """
    checked = set()
    for module in modules:
        part = weights.get(module.path, Weights())
        if module.path in checked or part.pickled:
            continue
        if module.kind in _WEIGHTLESS and module.path and part.files:
            yield Fault(
                f"{module.path}: {module.kind} has no weights, but the folder holds tensors:"
                f" {summarize_names(part.tensors)}",
                "restore the original modules.json",
            )
        if module.kind not in _WEIGHTED:
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
        yield from _wrappers(part, config, module.kind)
        if module.kind == "Transformer":
            yield from _transformer(part.tensors, config)
        elif module.kind == "StaticEmbedding":
            yield from _static(where, part.tensors, config)
        else:
            yield from _shapes(module, where, part.tensors)


def _wrappers(part: Weights, config: Mapping[str, Any], kind: str) -> Iterator[Fault]:
    """A wrapper's prefix on some names alone, or a second one behind the one removed."""
    for prefix, made in known_wrappers(config, kind).items():
        inside = [name for name in part.tensors if name.startswith(prefix)]
        if inside and part.wrapper:
            yield Fault(
                f"{len(inside):,} tensor names begin with {part.wrapper + prefix!r}: two wrappers"
                " around the model",
                "save the inner model with save_pretrained",
            )
        elif inside and len(inside) < len(part.tensors):
            others = [name for name in part.tensors if not name.startswith(prefix)]
            yield Fault(
                f"the names of {len(inside):,} of {len(part.tensors):,} tensors begin with"
                f" {prefix!r} ({made}), the others do not: {summarize_names(others)}",
                "save the inner model with save_pretrained",
            )


def _packed(tensors: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> Iterator[Fault]:
    """Packed modules without a tensor."""
    packed = packed_modules(config)
    missing = [m for m in packed if not any(name.startswith(f"{m}.") for name in tensors)]
    if missing:
        yield Fault(
            "config.json lists packed modules that the files have no tensor of:"
            f" {summarize_names(missing)}",
            DOWNLOAD_AGAIN,
        )


def _transformer(tensors: Mapping[str, TensorSpec], config: Mapping[str, Any]) -> Iterator[Fault]:
    """Layers that are missing, too many or unlike the others, in architectures known here."""
    yield from _packed(tensors, config)
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
        layers = _layers(unpacked(config, tensors), architecture.stack)
        quantization = config.get("quantization_config") or {}
        foreign = quantization.get("quant_method", PACKED) != PACKED
        yield from _stack(layers, count)
        if architecture.collective_error and not (foreign or config.get("pruned_heads")):
            yield from _unlike(layers)


def _layers(
    tensors: Mapping[str, TensorSpec], stack: str
) -> dict[int, dict[str, tuple[str, tuple[int, ...]]]]:
    """The tensors of each layer: name inside the layer to whole name and shape."""
    pattern = re.compile(rf"(?:^|.*\.){re.escape(stack)}\.(\d{{1,6}})\.(.+)")
    layers: dict[int, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, spec in tensors.items():
        match = pattern.fullmatch(name)
        if match and not COMPUTED.search(name):
            layers.setdefault(int(match[1]), {})[current_name(match[2])] = (name, spec.shape)
    return layers


def _stack(layers: Mapping[int, Mapping[str, Any]], count: int) -> Iterator[Fault]:
    """Layers that are missing, and layers beyond the number in config.json."""
    if not layers:  # under other names, which transformers may know: its report will show
        return
    if missing := [number for number in range(count) if number not in layers]:
        shown = ", ".join(map(str, missing[:MAX_NAMES])) + (", ..." if missing[MAX_NAMES:] else "")
        yield Fault(
            f"config.json states {count} layers, of {len(missing)} of them the files have no"
            f" tensor: {shown}",
            DOWNLOAD_AGAIN,
        )
    extra = [name for n, layer in layers.items() if n >= count for name, _ in layer.values()]
    if extra:
        yield Fault(
            f"config.json states {count} layers, the files hold {len(layers)}; nothing would use"
            f" {summarize_names(extra)}",
            "take the config.json that belongs to these weights; to drop layers: embtool compress"
            " -m layers",
        )


def _unlike(layers: Mapping[int, Mapping[str, tuple[str, tuple[int, ...]]]]) -> Iterator[Fault]:
    """Tensors that some layers have and others lack, and shapes that differ."""
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
            (one, first), (two, second) = list(shapes.items())[:2]
            yield Fault(
                f"layers differ in shape: {first} is {list(one)}, {second} is {list(two)}",
                DOWNLOAD_AGAIN,
            )
            return


def _static(
    where: str, tensors: Mapping[str, TensorSpec], config: Mapping[str, Any]
) -> Iterator[Fault]:
    """A static embedder's loader reads the names that it knows and ignores the rest."""
    if packed_modules(config):
        yield from _packed(tensors, config)
        return
    names = set(tensors)
    table = next((known for known in _STATIC if known <= names), None)
    if table is None:
        yield Fault(
            f"{where}: no table under the names embedding.weight or embeddings; it holds"
            f" {summarize_names(names)}",
            "rename the table, or restore the original file",
        )
    elif rest := names - table - (_STATIC_TOO if table == _STATIC[1] else set()):
        yield Fault(
            f"{where}: tensors that nothing uses: {summarize_names(rest)}",
            "restore the original file",
        )


def _shapes(module: ModuleSpec, where: str, tensors: Mapping[str, TensorSpec]) -> Iterator[Fault]:
    """Tensors of modules whose config gives their names and shapes."""
    config = module.config
    wanted: dict[str, tuple[Any, ...]] = {}
    if module.kind == "Dense":
        rows, columns = config.get("out_features"), config.get("in_features")
        wanted = {"linear.weight": (rows, columns)}
        if config.get("bias", True):
            wanted["linear.bias"] = (rows,)
        optional = "activation_function."
    elif module.kind == "LayerNorm":
        wanted = dict.fromkeys(("norm.weight", "norm.bias"), (config.get("dimension"),))
        optional = ""
    else:
        return
    if missing := wanted.keys() - tensors.keys():
        yield Fault(
            f"{where}: {module.kind} lacks tensors: {summarize_names(missing)}", DOWNLOAD_AGAIN
        )
    extra = [
        name for name in tensors
        if name not in wanted and not (optional and name.startswith(optional))
    ]  # fmt: skip
    if extra:
        yield Fault(
            f"{where}: {module.kind} has no use for tensors of the file: {summarize_names(extra)}",
            "restore the module's original config.json and weights",
        )
    for name in wanted.keys() & tensors.keys():
        if tensors[name].shape != wanted[name] and None not in wanted[name]:
            yield Fault(
                f"{where}: {name} is {list(tensors[name].shape)}, config.json says"
                f" {list(wanted[name])}",
                "restore the module's original config.json and weights",
            )


def strip_wrappers(
    modules: Iterable[ModuleSpec],
    weights: Mapping[str, Weights],
    configs: Mapping[str, Mapping[str, Any]],
) -> dict[str, Weights]:
    """The weights of each folder, without the prefix of a wrapper that all names have.

    Args:
        modules: All of them.
        weights: Of each folder that has any.
        configs: The `config.json` of each folder of `MAIN_KINDS`.
    """
    kinds = {module.path: module.kind for module in reversed([*modules])}
    stripped = {}
    for path, part in weights.items():
        config, wrapper = configs.get(path, {}), ""
        if path in kinds and not packed_modules(config):  # tables of a bare file have any names
            wrapper = wrapper_of(part.tensors, config, kinds[path])
        stripped[path] = part.without(wrapper) if wrapper else part
    return stripped
