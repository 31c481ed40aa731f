"""Dropping transformer layers, so that what is written is a true, smaller model.

Layers are found by their names, `prefix.N.suffix` with as many N as the config states layers; no
architecture is named here. What transformers itself expects of the edited config is compared with
what will be written, before anything is.
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
        total: Layers there are.

    Raises:
        InvalidInput: More than there are, or none.
    """
    if not 1 <= count <= total:
        raise InvalidInput(f"{count} layers of {total}", f"between 1 and {total}")
    if count == 1:
        return (total - 1,)
    gaps = count - 1
    return tuple((2 * k * (total - 1) + gaps - 1) // (2 * gaps) for k in range(count))


def keep_layers(checkpoint: Checkpoint, layers: int | Sequence[int]) -> tuple[int, ...]:
    """The layers that a user's `3` or `0,2,5` names.

    Raises:
        InvalidInput: As `spread`, or the checkpoint has no layers.
    """
    total = len(find_layers(checkpoint)[1])
    return spread_layers(layers, total) if isinstance(layers, int) else tuple(layers)


def group_layers(names: Iterable[str]) -> dict[str, dict[int, list[str]]]:
    """Tensor names by the prefix and number of their layer: prefix -> N -> names.

    Only the first number in a name counts, so that experts inside a layer are not layers.
    """
    groups: dict[str, dict[int, list[str]]] = {}
    for name in names:
        if found := _LAYER.match(name):
            groups.setdefault(found[1], {}).setdefault(int(found[2]), []).append(name)
    return groups


def find_layers(checkpoint: Checkpoint) -> tuple[str, dict[int, list[str]]]:
    """The prefix of a checkpoint's layers and their names, by number.

    Raises:
        InvalidInput: No layers, or not those that the config states.
    """
    name, layout = checkpoint.name, checkpoint.layout
    if layout.routes:
        raise InvalidInput(
            f"{name} is a Router of several models", "name the folder of one of them"
        )
    if layout.family == "static":
        raise InvalidInput(f"{name} is a static embedding: it has no layers", "name a transformer")
    if checkpoint.weights[layout.main].pickled:
        raise InvalidInput(
            f"{name}: pickled weights are not read here", "convert them to safetensors"
        )
    stated = layer_count(checkpoint.config)
    groups = group_layers(checkpoint.tensors)
    fitting = {p: g for p, g in groups.items() if stated and set(g) == set(range(stated))}
    if len(fitting) > 1:  # an encoder with its decoder: texts are embedded by the encoder
        fitting = {p: g for p, g in fitting.items() if "encoder" in p.split(".")}
    if len(fitting) != 1:
        found = ", ".join(f"{len(g)} under {p!r}" for p, g in sorted(groups.items())) or "none"
        raise InvalidInput(
            f"{name}: config.json states {stated} layers, the weights have {found}",
            "layers can be dropped where each has weights of its own, as config.json states",
        )
    return next(iter(fitting.items()))


@dataclass(frozen=True)
class LayerCut:
    """What keeping some layers will write.

    Args:
        tensors: Name in the input to what is written of it.
        config: Keys of `config.json` to set (`None` removes the key).
        notes: Sentences for the user.
    """

    tensors: dict[str, TensorSpec]
    config: dict[str, Any]
    notes: tuple[str, ...]


def plan_cut(ckpt: Checkpoint, keep: Sequence[int]) -> LayerCut:
    """What keeping some layers will write, checked against transformers' own model.

    Args:
        ckpt: With one stack of layers.
        keep: Layers to keep, in the order in which they are to be applied.

    Raises:
        InvalidInput: A layer that is not there or named twice; an architecture whose layers differ,
            so that one cannot take another's place.
    """
    prefix, layers = find_layers(ckpt)
    _check_keep(keep, len(layers))
    if "quantization_config" in ckpt.config:
        raise InvalidInput(
            f"{ckpt.name} is quantized: what its layers are made of is not known here",
            "take layers out of the model that it was made from, and quantize the result",
        )
    edits = _config_edits(ckpt.config, keep, len(layers))
    before, after = _Expected(ckpt.config), _Expected({**ckpt.config, **edits})
    place = {old: new for new, old in enumerate(keep)}
    tensors: dict[str, TensorSpec] = {}
    dropped = []
    for name, spec in ckpt.tensors.items():
        found = _LAYER.match(name)
        new = name
        if before.ignores(spec):
            dropped.append(name)
            continue
        if found and found[1] == prefix:
            if int(found[2]) not in place:
                continue
            new = f"{name[: found.start(2)]}{place[int(found[2])]}.{found[3]}"
        tensors[name] = replace(spec, name=new)
    writes = [*tensors.values()]
    expected = {name for name in before.shapes if before.stack(prefix).match(name)}
    if expected and expected <= set(map(before.name, ckpt.tensors)):
        _check_names(ckpt, prefix, keep, before, after, writes)
    else:  # transformers renames or fuses these on loading
        _check_loads(ckpt, prefix, {**ckpt.config, **edits}, writes)
    notes = [f"layers {','.join(map(str, keep))} of {len(layers)} are kept"]
    if dropped:
        notes.append(f"left out, since transformers computes them: {', '.join(sorted(dropped))}")
    return LayerCut(tensors, edits, tuple(notes))


def _check_keep(keep: Sequence[int], total: int) -> None:
    if not keep:
        raise InvalidInput("no layer is kept", f"name some of 0 to {total - 1}")
    for layer in keep:
        if not 0 <= layer < total:
            raise InvalidInput(f"layer {layer} does not exist", f"there are 0 to {total - 1}")
        if list(keep).count(layer) > 1:
            raise InvalidInput(f"layer {layer} is named twice", "each layer can be kept once")


def _config_edits(raw: Mapping[str, Any], keep: Sequence[int], total: int) -> dict[str, Any]:
    """Keys of `config.json` to change: the count, and whatever is listed by layer.

    Lists that transformers derives (`layer_types` from an older pattern setting) are written out,
    since the derivation would go by the new numbers.

    Raises:
        InvalidInput: The edited config does not give each kept layer what it had.
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
    """The tensors of transformers' base model for a config: made without memory, on `meta`."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        model = model_on_meta(raw)
        self.base = f"{model.base_model_prefix}."
        self.shapes = {self.name(n): tuple(v.shape) for n, v in model.state_dict().items()}
        self.patterns = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or [])

    def name(self, name: str) -> str:
        """A tensor's name as the base model has it; norms were once called gamma and beta."""
        name = name.removeprefix(self.base)
        return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))

    def stack(self, prefix: str) -> re.Pattern[str]:
        """Matches the names under which the base model has the layers of a prefix."""
        return re.compile(re.escape(self.name(f"{prefix}." if prefix else "")) + r"(\d+)\.(.+)$")

    def ignores(self, spec: TensorSpec) -> bool:
        """Whether it is a buffer that older versions stored, such as position ids."""
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
    """The kept layers must have exactly the tensors that the smaller model expects of them."""
    stack = before.stack(prefix)
    given = {before.name(spec.name): spec.shape for spec in writes}
    for name in [*after.shapes, *given]:
        found = stack.match(name)
        if found and after.shapes.get(name) != given.get(name):
            place, tensor = int(found[1]), found[2]
            lacks = "lacks" if name not in given else "has"
            raise InvalidInput(
                f"{ckpt.name}: layer {keep[place]} cannot take place {place}: it {lacks}"
                f" {tensor}, unlike the layers that this architecture has there",
                f"keep layer {place} in its place",
            )


def _check_loads(
    ckpt: Checkpoint, prefix: str, config: Mapping[str, Any], writes: Sequence[TensorSpec]
) -> None:
    """Transformers finds every tensor of the layers among those to be written.

    It is shown a file that has the header and a hole in place of the data (see `meta_kwargs`).
    """
    from transformers import AutoModel

    with tempfile.TemporaryDirectory() as held, quiet():
        given = {key: value for key, value in config.items() if value is not None}
        write_json(Path(held) / "config.json", given)
        begin, _, size = header(writes)
        with open(Path(held) / "model.safetensors", "wb") as file:
            file.write(begin)
            file.truncate(len(begin) + size)
        _, info = AutoModel.from_pretrained(held, output_loading_info=True, **meta_kwargs())
    stacks = group_layers(info["missing_keys"])  # an encoder's decoder may well be missing
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
