"""Remove transformer layers from a checkpoint.

Layers are identified by tensor names, `prefix.N.suffix` with one N per layer of the config, for any
architecture. Before anything is written, the result is compared with the tensors that transformers
expects for the edited config.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emb_tool.checkpoint.files import write_json
from emb_tool.checkpoint.meta_model import meta_kwargs, model_on_meta, transformers_config
from emb_tool.checkpoint.modules import LAYER_COUNTS, layer_count
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.checkpoint.writer import header
from emb_tool.errors import InvalidInput
from emb_tool.plan import TensorSpec
from emb_tool.progress import quiet

_LAYER = re.compile(r"^(.*?)\.?(?<![^.])(\d+)\.(.+)$")
_INDEX_LIST = re.compile(r"_layers?(_(idx|ids|idxs|indices|indexes))?$")


def spread_layers(count: int, total: int) -> tuple[int, ...]:
    """`count` of `total` layers, evenly from the first to the last.

    i_k = round(k (total - 1) / (count - 1)), halves down; one layer alone is the last.

    Args:
        count: Layers to keep.
        total: Number of layers.

    Raises:
        InvalidInput: `count` is less than 1 or more than `total`.
    """
    if not 1 <= count <= total:
        raise InvalidInput(f"{count} layers of {total}", f"between 1 and {total}")
    if count == 1:
        return (total - 1,)
    gaps = count - 1
    return tuple((2 * k * (total - 1) + gaps - 1) // (2 * gaps) for k in range(count))


def keep_layers(checkpoint: Checkpoint, layers: int | Sequence[int]) -> tuple[int, ...]:
    """Indices of the layers to keep: given as they are, or as a number of evenly spread ones.

    Raises:
        InvalidInput: As `spread_layers`, or the checkpoint has no layers.
    """
    total = len(find_layers(checkpoint)[1])
    return spread_layers(layers, total) if isinstance(layers, int) else tuple(layers)


def group_layers(names: Iterable[str]) -> dict[str, dict[int, list[str]]]:
    """Tensor names by the prefix and number of their layer: prefix -> N -> names.

    Only the first number in a name counts, so that experts inside a layer are not layers.
    """
    groups: dict[str, dict[int, list[str]]] = {}
    for name in names:
        if match := _LAYER.match(name):
            groups.setdefault(match[1], {}).setdefault(int(match[2]), []).append(name)
    return groups


def find_layers(checkpoint: Checkpoint) -> tuple[str, dict[int, list[str]]]:
    """Prefix of a checkpoint's layers, and tensor names by layer number.

    Raises:
        InvalidInput: No layers, or another number than in the config.
    """
    name, layout = checkpoint.name, checkpoint.layout
    if layout.routes:
        raise InvalidInput(
            f"{name} is a Router of several models", "give the folder of one of them"
        )
    if layout.family == "static":
        raise InvalidInput(f"{name} is a static embedding: it has no layers", "give a transformer")
    if checkpoint.weights[layout.main].pickled:
        raise InvalidInput(
            f"{name}: pickled weights are not supported here", "convert them to safetensors"
        )
    stated = layer_count(checkpoint.config)
    groups = group_layers(checkpoint.tensors)
    fitting = {p: g for p, g in groups.items() if stated and set(g) == set(range(stated))}
    if len(fitting) > 1:  # an encoder with its decoder: texts are embedded by the encoder
        fitting = {p: g for p, g in fitting.items() if "encoder" in p.split(".")}
    if len(fitting) != 1:
        counts = ", ".join(f"{len(g)} under {p!r}" for p, g in sorted(groups.items())) or "none"
        raise InvalidInput(
            f"{name}: config.json has {stated} layers, the weights have {counts}",
            "layers can be removed if each has its own weights and config.json has their number",
        )
    return next(iter(fitting.items()))


@dataclass(frozen=True)
class LayerCut:
    """The result of keeping some layers.

    Args:
        tensors: Name in the input to the tensor that is written.
        config: Keys of `config.json` to set (`None` removes the key).
        notes: Sentences for the user.
    """

    tensors: dict[str, TensorSpec]
    config: dict[str, Any]
    notes: tuple[str, ...]


def plan_cut(ckpt: Checkpoint, keep: Sequence[int]) -> LayerCut:
    """Plan to keep some layers, and compare the result with the model that transformers creates.

    Args:
        ckpt: A checkpoint with one stack of layers.
        keep: Indices of the layers to keep, in their new order.

    Raises:
        InvalidInput: An index is out of range or repeated; or layers differ by their position, so
            that one cannot replace another.
    """
    prefix, layers = find_layers(ckpt)
    _check_keep(keep, len(layers))
    if "quantization_config" in ckpt.config:
        raise InvalidInput(
            f"{ckpt.name} is quantized: layers of quantized models are not supported",
            "remove layers from the original model, then quantize the result",
        )
    edits = _config_edits(ckpt.config, keep, len(layers))
    before, after = _Expected(ckpt.config), _Expected({**ckpt.config, **edits})
    place = {old: new for new, old in enumerate(keep)}
    tensors: dict[str, TensorSpec] = {}
    dropped = []
    for name, spec in ckpt.tensors.items():
        match = _LAYER.match(name)
        new = name
        if before.ignores(spec):
            dropped.append(name)
            continue
        if match and match[1] == prefix:
            if int(match[2]) not in place:
                continue
            new = f"{name[: match.start(2)]}{place[int(match[2])]}.{match[3]}"
        tensors[name] = replace(spec, name=new)
    writes = [*tensors.values()]
    expected = {name for name in before.shapes if before.stack(prefix).match(name)}
    if expected and expected <= set(map(before.name, ckpt.tensors)):
        _check_names(ckpt, prefix, keep, before, after, writes)
    else:  # transformers renames or fuses these on loading
        _check_loads(ckpt, prefix, {**ckpt.config, **edits}, writes)
    notes = [f"layers {','.join(map(str, keep))} of {len(layers)} are kept"]
    if dropped:
        notes.append(f"left out, because transformers computes them: {', '.join(sorted(dropped))}")
    return LayerCut(tensors, edits, tuple(notes))


def _check_keep(keep: Sequence[int], total: int) -> None:
    if not keep:
        raise InvalidInput("no layer is kept", f"keep at least one of 0 to {total - 1}")
    for layer in keep:
        if not 0 <= layer < total:
            raise InvalidInput(f"layer {layer} does not exist", f"layers are 0 to {total - 1}")
        if list(keep).count(layer) > 1:
            raise InvalidInput(f"layer {layer} is repeated", "give each layer once")


def _config_edits(raw: Mapping[str, Any], keep: Sequence[int], total: int) -> dict[str, Any]:
    """Keys of `config.json` to change: the number of layers, and lists with one item per layer.

    Lists that transformers derives from another key (`layer_types` from a pattern) are written out,
    because the derivation would use the new indices.

    Raises:
        InvalidInput: The edited config gives a kept layer another value than it had.
    """
    old = transformers_config(raw)
    key = getattr(old, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers")
    edits: dict[str, Any] = {k: len(keep) for k in LAYER_COUNTS if k in raw} or {key: len(keep)}
    listed = {k: v for k, v in old.to_dict().items() if _per_layer(v, total)}
    for k, v in {**listed, **raw}.items():
        if _per_layer(v, total) and (k in listed or k in raw):
            edits[k] = [v[layer] for layer in keep]
        elif (
            isinstance(v, list)
            and v
            and _INDEX_LIST.search(k)
            and all(_is_layer(x, total) for x in v)
        ):
            edits[k] = [new for new, layer in enumerate(keep) if layer in v]
    new = transformers_config({**raw, **edits})
    for k, v in listed.items():
        if getattr(new, k, None) != [v[layer] for layer in keep]:
            raise InvalidInput(
                f"config.json cannot express {k} = {[v[layer] for layer in keep]} for these layers",
                "keep layers that repeat the model's own pattern from its first layer on",
            )
    return {k: v for k, v in edits.items() if raw.get(k) != v}


def _per_layer(value: Any, total: int) -> bool:
    return (
        isinstance(value, list) and len(value) == total
        and not any(isinstance(item, dict | list) for item in value)
    )  # fmt: skip


def _is_layer(value: Any, total: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < total


class _Expected:
    """Tensors that transformers' base model has for a config, created on the meta device."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        model = model_on_meta(raw)
        self.base = f"{model.base_model_prefix}."
        self.shapes = {self.name(n): tuple(v.shape) for n, v in model.state_dict().items()}
        self.patterns = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or [])

    def name(self, name: str) -> str:
        """Name of a tensor in the base model; older checkpoints name norms gamma and beta."""
        name = name.removeprefix(self.base)
        return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))

    def stack(self, prefix: str) -> re.Pattern[str]:
        """Pattern of the base model's names of the layers of a prefix."""
        return re.compile(re.escape(self.name(f"{prefix}." if prefix else "")) + r"(\d+)\.(.+)$")

    def ignores(self, spec: TensorSpec) -> bool:
        """Whether a tensor is a buffer that older versions stored, such as position ids."""
        return self.name(spec.name) not in self.shapes and (
            spec.dtype in ("I64", "I32", "BOOL", "U8")
            or any(re.search(pattern, spec.name) for pattern in self.patterns)
        )


def _check_names(
    ckpt: Checkpoint,
    prefix: str,
    keep: Sequence[int],
    before: _Expected,
    after: _Expected,
    writes: Sequence[TensorSpec],
) -> None:
    """Check that the layers have exactly the tensors that the smaller model expects."""
    stack = before.stack(prefix)
    given = {before.name(spec.name): spec.shape for spec in writes}
    for name in [*after.shapes, *given]:
        match = stack.match(name)
        if match and after.shapes.get(name) != given.get(name):
            place, tensor = int(match[1]), match[2]
            lacks = "lacks" if name not in given else "has"
            raise InvalidInput(
                f"{ckpt.name}: layer {keep[place]} cannot become layer {place}: it {lacks}"
                f" {tensor}, unlike layer {place} of this architecture",
                f"keep layer {place} at its position",
            )


def _check_loads(
    ckpt: Checkpoint, prefix: str, config: Mapping[str, Any], writes: Sequence[TensorSpec]
) -> None:
    """Check that transformers finds every tensor of the layers among those to be written.

    It loads a sparse file with the header and no data (see `meta_kwargs`).
    """
    from transformers import AutoModel

    with tempfile.TemporaryDirectory() as folder, quiet():
        given = {key: value for key, value in config.items() if value is not None}
        write_json(Path(folder) / "config.json", given)
        begin, _, size = header(writes)
        with open(Path(folder) / "model.safetensors", "wb") as file:
            file.write(begin)
            file.truncate(len(begin) + size)
        _, info = AutoModel.from_pretrained(folder, output_loading_info=True, **meta_kwargs())
    stacks = group_layers(info["missing_keys"])  # the decoder of an encoder may be missing
    missing = [
        name
        for p, stack in stacks.items()
        for names in stack.values()
        for name in names
        if f".{prefix}".endswith(f".{p}")
    ]
    for name in [*sorted(missing), *map(str, info["mismatched_keys"])]:
        raise InvalidInput(
            f"{ckpt.name}: with these layers, transformers does not find {name}",
            "keep other layers, or update transformers",
        )
