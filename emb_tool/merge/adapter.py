"""A LoRA adapter as a whole model: the base's tensors, W + scaling * B A where it has been trained.

Nothing of that is written out first: rows are computed where they are read.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emb_tool.checkpoint.elements import FLOATS, Files, FileTensor
from emb_tool.checkpoint.files import read_json, sha256
from emb_tool.checkpoint.header import read_header
from emb_tool.checkpoint.layout import Layout, read_layout
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.checkpoint.source import locate
from emb_tool.checkpoint.weights import find_weights
from emb_tool.errors import Refused
from emb_tool.merge.names import canonical
from emb_tool.plan import TensorSpec

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.\w+)?\.weight")


class Factors(NamedTuple):
    """What stands for a change of a matrix, scaling * B A."""

    a: TensorSpec
    b: TensorSpec
    scaling: float


class Adapter(Checkpoint):
    """A LoRA adapter on its base.

    Args:
        folder: Of the adapter.
        name: As the user named it.
        base: What it was trained on.

    Raises:
        Refused: Adapters that are more than low-rank matrices.
    """

    def __init__(self, folder: Path, name: str, base: Checkpoint) -> None:
        layout = base.layout
        if (folder / "modules.json").is_file():
            layout = _on_base(read_layout(folder, base.config, base.tensors, []), base.layout)
        weights = {base.layout.main: base.weights[base.layout.main]}
        for module in layout.modules[1:]:
            own = find_weights(folder, module.path) if layout is not base.layout else None
            found = own if own and own.files else base.weights.get(module.path)
            if found and module.path:
                weights[module.path] = found
        super().__init__(base.path, name, base.config, weights, layout, [])
        self.folder = folder
        self.factors = _factors(folder, name, base)

    def files(self) -> tuple[str, ...]:
        """What the adapter itself is made of."""
        return (CONFIG, WEIGHTS)

    def hashes(self) -> dict[str, str]:
        """sha256 of each of `files()`."""
        return {name: sha256(self.folder / name) for name in self.files()}

    def weight_bytes(self) -> int:
        """Bytes of the adapter alone."""
        return (self.folder / WEIGHTS).stat().st_size

    def source(self, stored: str, short: str, files: Files) -> FileTensor | LowRank:
        """One of its main tensors.

        Args:
            stored: The name in the base's files.
            short: The canonical name.
            files: Open files.
        """
        main = self.weights[self.layout.main]
        there = files.tensor(main.where[stored], stored)
        if short not in self.factors:
            return there
        found = self.factors[short]
        path = self.folder / WEIGHTS
        a, b = (
            files.tensor(path, spec.name).values(0, spec.numel).reshape(spec.shape)
            for spec in (found.a, found.b)
        )
        return LowRank(there, path, found.scaling * b, a)


class LowRank:
    """A matrix of the base with its change, computed block by block."""

    def __init__(self, there: FileTensor, path: Path, b: np.ndarray, a: np.ndarray) -> None:
        self.path = path
        self.spec = TensorSpec(there.spec.name, there.spec.shape, "F64")
        self._there, self._a, self._b = there, a, b

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Flat elements [start, stop), float64."""
        columns = self._a.shape[1]
        first, last = start // columns, -(-stop // columns)
        # not by BLAS, whose sums depend on its number of threads
        change = np.einsum("or,ri->oi", self._b[first:last], self._a).reshape(-1)
        skipped = first * columns
        there = self._there.values(start, stop)
        return np.asarray(there + change[start - skipped : stop - skipped])


def open_model(name: str, base: Checkpoint | None) -> Checkpoint:
    """A model, or an adapter of the base.

    Raises:
        Refused: As `Checkpoint.open`; an adapter without a base.
    """
    path = locate(name)
    if not (path.is_dir() and (path / WEIGHTS).is_file()):
        return Checkpoint.open(name)
    if base is None or base.path.is_file():
        stated = (read_json(path, CONFIG) or {}).get("base_model_name_or_path")
        raise Refused(
            f"{name} is an adapter: it needs the model that it was trained on",
            f"add --base {stated or 'MODEL'}",
        )
    return Adapter(path, name, base)


def _on_base(layout: Layout, base: Layout) -> Layout:
    """The adapter's modules, with the base's folder as the main one."""
    if not layout.modules or not base.modules:
        return base
    first = replace(layout.modules[0], path=base.main)
    return replace(layout, modules=(first, *layout.modules[1:]))


def _factors(folder: Path, name: str, base: Checkpoint) -> dict[str, Factors]:
    config = read_json(folder, CONFIG) or {}
    _refuse_others(config, name)
    header = read_header(folder / WEIGHTS)
    halves: dict[str, dict[str, TensorSpec]] = {}
    for key, spec in header.tensors.items():
        found = _KEY.fullmatch(key)
        if not found or spec.dtype not in FLOATS or len(spec.shape) != 2:
            raise Refused(
                f"{name}: {key} is not half of a low-rank matrix",
                "merge it with peft's merge_and_unload, and name the folder of the result",
            )
        halves.setdefault(found[1], {})[found[2]] = spec
    shorts = canonical(base.tensors)
    found_factors = {}
    for module, half in halves.items():
        short = f"{module}.weight"
        if short not in shorts:  # it was trained on a class with a head
            short = short.partition(".")[2]
        if set(half) != {"A", "B"} or short not in shorts:
            raise Refused(
                f"{name}: {module} is no matrix of {base.name}, or half of it is missing",
                "name the model that the adapter was trained on with --base",
            )
        rank = half["A"].shape[0]
        shape = (half["B"].shape[0], half["A"].shape[1])
        if shape != base.tensors[shorts[short]].shape or half["B"].shape[1] != rank:
            raise Refused(
                f"{name}: {module} changes a matrix of {list(shape)}, {base.name} has"
                f" {list(base.tensors[shorts[short]].shape)}",
                "name the model that the adapter was trained on with --base",
            )
        alpha = float(config.get("lora_alpha", rank))
        scaling = alpha / (rank**0.5 if config.get("use_rslora") else rank)
        found_factors[short] = Factors(half["A"], half["B"], scaling)
    return found_factors


def _refuse_others(config: dict[str, Any], name: str) -> None:
    kind = config.get("peft_type")
    odd = [
        key for key in ("use_dora", "modules_to_save", "alpha_pattern", "fan_in_fan_out",
                        "megatron_config", "trainable_token_indices", "layer_replication")
        if config.get(key)
    ]  # fmt: skip
    if kind != "LORA" or config.get("bias", "none") != "none" or odd:
        what = ", ".join(odd) or (f"bias {config['bias']}" if kind == "LORA" else str(kind))
        raise Refused(
            f"{name} is an adapter with {what}: only plain low-rank matrices are merged here",
            "merge it with peft's merge_and_unload, and name the folder of the result",
        )
