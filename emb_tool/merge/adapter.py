"""A LoRA adapter as a whole model: the base's tensors, W + scaling * B A where it was trained.

Nothing of that is written out first: rows are computed where they are read.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emb_tool.checkpoint.elements import FLOATS, FileTensor, OpenFiles
from emb_tool.checkpoint.files import read_json, sha256
from emb_tool.checkpoint.header import read_header
from emb_tool.checkpoint.layout import Layout, read_layout
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.checkpoint.source import resolve_source
from emb_tool.checkpoint.weight_files import find_weights
from emb_tool.errors import InvalidInput
from emb_tool.merge.lora import MERGE_BY_PEFT, read_lora
from emb_tool.merge.tensor_names import PREFIXES, canonical
from emb_tool.plan import TensorSpec

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\."
    r"(?:lora_(?P<half>[AB])(?:\.\w+)?\.weight|lora_embedding_(?P<table_half>[AB])(?:\.\w+)?)"
)

_BASE = "name the model that the adapter was trained on with --base"


class Factors(NamedTuple):
    """What stands for a change of a matrix, scaling * B A; of a table, its transpose."""

    a: TensorSpec
    b: TensorSpec
    scaling: float
    is_table: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix that is changed."""
        rows, columns = self.b.shape[0], self.a.shape[1]
        return (columns, rows) if self.is_table else (rows, columns)


class Adapter(Checkpoint):
    """A LoRA adapter on its base.

    Args:
        folder: Of the adapter.
        name: As the user named it.
        base: What it was trained on.

    Raises:
        InvalidInput: Adapters that are more than low-rank matrices.
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

    @property
    def warnings(self) -> tuple[str, ...]:
        """None: the base has its own."""
        return ()

    def files(self) -> tuple[str, ...]:
        """What the adapter itself is made of."""
        return (CONFIG, WEIGHTS)

    def hashes(self) -> dict[str, str]:
        """sha256 of each of `files()`."""
        return {name: sha256(self.folder / name) for name in self.files()}

    def weight_bytes(self) -> int:
        """Bytes of the adapter alone."""
        return (self.folder / WEIGHTS).stat().st_size

    def source(self, stored: str, short: str, files: OpenFiles) -> FileTensor | LowRank:
        """One of its main tensors.

        Args:
            stored: The base's own name for it.
            short: The canonical name.
            files: Open files.
        """
        main = self.weights[self.layout.main]
        there = files.tensor(main.where[stored], main.stored(stored))
        if short not in self.factors:
            return there
        found = self.factors[short]
        path = self.folder / WEIGHTS
        a, b = (
            files.tensor(path, spec.name).values(0, spec.numel).reshape(spec.shape)
            for spec in (found.a, found.b)
        )
        if found.is_table:  # (B A)^T
            a, b = b.T, a.T
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
        InvalidInput: As `Checkpoint.open`; an adapter without a base.
    """
    path = resolve_source(name)
    if not (path.is_dir() and (path / WEIGHTS).is_file()):
        return Checkpoint.open(name)
    if base is None or base.path.is_file():
        stated = (read_json(path, CONFIG) or {}).get("base_model_name_or_path")
        raise InvalidInput(
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
    """Canonical name of a matrix to its change."""
    config = read_json(folder, CONFIG)
    if config is None:
        raise InvalidInput(f"{name}: {WEIGHTS} without {CONFIG}", "copy it from where it came from")
    lora = read_lora(config, name)
    shorts = canonical(base.tensors)
    found: dict[str, Factors] = {}
    for (module, is_table), halves in _halves(folder, name).items():
        short = f"{module}.weight"
        if short not in shorts and module.partition(".")[0] in PREFIXES:
            short = short.partition(".")[2]  # it was trained on a class with a head
        if set(halves) != {"A", "B"} or short not in shorts:
            raise InvalidInput(
                f"{name}: {module} is no matrix of {base.name}, or half of it is missing", _BASE
            )
        made = Factors(halves["A"], halves["B"], lora.scaling_of(module), is_table)
        stated, rank, other = lora.rank_of(module), made.a.shape[0], made.b.shape[1]
        if not stated == rank == other:
            raise InvalidInput(
                f"{name}: {module} has factors of rank {rank} and {other}, adapter_config.json"
                f" states {stated}",
                "take both files from one version of the adapter",
            )
        shape = base.tensors[shorts[short]].shape
        if made.shape != shape:
            raise InvalidInput(
                f"{name}: {module} changes a matrix of {list(made.shape)}, {base.name} has"
                f" {list(shape)}",
                _BASE,
            )
        if short in found:
            raise InvalidInput(f"{name}: {short} of {base.name} is changed twice", MERGE_BY_PEFT)
        if not is_table and shape[0] == shape[1] and _has_transposed(base):
            raise InvalidInput(
                f"{name}: {base.name} stores matrices as (in, out), so that the square {short} does"
                " not tell which side is which",
                MERGE_BY_PEFT,
            )
        found[short] = made
    return found


def _halves(folder: Path, name: str) -> dict[tuple[str, bool], dict[str, TensorSpec]]:
    """Module, and whether it is a table, to A and B; a file that holds anything else is refused."""
    found: dict[tuple[str, bool], dict[str, TensorSpec]] = {}
    for key, spec in read_header(folder / WEIGHTS).tensors.items():
        match = _KEY.fullmatch(key)
        if not match or spec.dtype not in FLOATS or len(spec.shape) != 2:
            raise InvalidInput(f"{name}: {key} is not half of a low-rank matrix", MERGE_BY_PEFT)
        half = match["half"] or match["table_half"]
        halves = found.setdefault((match["module"], match["half"] is None), {})
        if half in halves:
            raise InvalidInput(
                f"{name}: {halves[half].name} and {key} are of two adapters",
                "save them apart: model.save_pretrained(OUT) of peft makes a folder of each",
            )
        halves[half] = spec
    return found


def _has_transposed(base: Checkpoint) -> bool:
    """Whether a bias is as long as its matrix has columns: Conv1D of GPT-2, not a linear layer."""
    for key, spec in base.tensors.items():
        bias = base.tensors.get(f"{key.removesuffix('.weight')}.bias")
        if bias and key.endswith(".weight") and len(spec.shape) == 2:
            rows, columns = spec.shape
            if bias.shape == (columns,) and rows != columns:
                return True
    return False
