"""A LoRA adapter as a full model: the base's tensors, W + scaling * B A where it was trained.

The full matrices are not written to disk: rows are computed as they are read.
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
    """Low-rank factors of a change, scaling * B A; for a token table the transpose."""

    a: TensorSpec
    b: TensorSpec
    scaling: float
    is_table: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix that is changed."""
        rows, columns = self.b.shape[0], self.a.shape[1]
        return (columns, rows) if self.is_table else (rows, columns)


class Adapter(Checkpoint):
    """A LoRA adapter on its base.

    Args:
        folder: Folder of the adapter.
        name: The adapter as given by the user.
        base: The model that it was trained on.

    Raises:
        InvalidInput: The adapter has more than low-rank matrices.
    """

    def __init__(self, folder: Path, name: str, base: Checkpoint) -> None:
        layout = base.layout
        if (folder / "modules.json").is_file():
            layout = _on_base(read_layout(folder, base.config, base.tensors, []), base.layout)
        weights = {base.layout.main: base.weights[base.layout.main]}
        for module in layout.modules[1:]:
            own = find_weights(folder, module.path) if layout is not base.layout else None
            module_weights = own if own and own.files else base.weights.get(module.path)
            if module_weights and module.path:
                weights[module.path] = module_weights
        super().__init__(base.path, name, base.config, weights, layout, [])
        self.folder = folder
        self.factors = _factors(folder, name, base)

    @property
    def warnings(self) -> tuple[str, ...]:
        """None: warnings belong to the base."""
        return ()

    def files(self) -> tuple[str, ...]:
        """The files of the adapter itself."""
        return (CONFIG, WEIGHTS)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each of `files()`."""
        return {name: sha256(self.folder / name) for name in self.files()}

    def weight_bytes(self) -> int:
        """Bytes of the adapter without its base."""
        return (self.folder / WEIGHTS).stat().st_size

    def source(self, stored: str, short: str, files: OpenFiles) -> FileTensor | LowRank:
        """One tensor of the main module.

        Args:
            stored: The name in the base.
            short: The canonical name.
            files: Open files.
        """
        main = self.weights[self.layout.main]
        base_tensor = files.tensor(main.where[stored], main.stored(stored))
        if short not in self.factors:
            return base_tensor
        factors = self.factors[short]
        path = self.folder / WEIGHTS
        a, b = (
            files.tensor(path, spec.name).values(0, spec.numel).reshape(spec.shape)
            for spec in (factors.a, factors.b)
        )
        if factors.is_table:  # (B A)^T
            a, b = b.T, a.T
        return LowRank(base_tensor, path, factors.scaling * b, a)


class LowRank:
    """A matrix of the base plus its low-rank change, computed block by block."""

    def __init__(self, base_tensor: FileTensor, path: Path, b: np.ndarray, a: np.ndarray) -> None:
        self.path = path
        self.spec = TensorSpec(base_tensor.spec.name, base_tensor.spec.shape, "F64")
        self._base_tensor, self._a, self._b = base_tensor, a, b

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Flat elements [start, stop), float64."""
        columns = self._a.shape[1]
        first, last = start // columns, -(-stop // columns)
        # not by BLAS, whose sums depend on its number of threads
        change = np.einsum("or,ri->oi", self._b[first:last], self._a).reshape(-1)
        offset = first * columns
        base_values = self._base_tensor.values(start, stop)
        return np.asarray(base_values + change[start - offset : stop - offset])


def open_model(name: str, base: Checkpoint | None) -> Checkpoint:
    """Open a model, or an adapter of the base.

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
    """The adapter's modules, with the base's folder as the main module."""
    if not layout.modules or not base.modules:
        return base
    first = replace(layout.modules[0], path=base.main)
    return replace(layout, modules=(first, *layout.modules[1:]))


def _factors(folder: Path, name: str, base: Checkpoint) -> dict[str, Factors]:
    """Canonical name of a matrix to its factors."""
    config = read_json(folder, CONFIG)
    if config is None:
        raise InvalidInput(
            f"{name}: {WEIGHTS} without {CONFIG}", "copy it from the original adapter"
        )
    lora = read_lora(config, name)
    shorts = canonical(base.tensors)
    factors: dict[str, Factors] = {}
    for (module, is_table), halves in _halves(folder, name).items():
        short = f"{module}.weight"
        if short not in shorts and module.partition(".")[0] in PREFIXES:
            short = short.partition(".")[2]  # it was trained on a class with a head
        if set(halves) != {"A", "B"} or short not in shorts:
            raise InvalidInput(
                f"{name}: {module} is not a matrix of {base.name}, or one factor is missing", _BASE
            )
        factor = Factors(halves["A"], halves["B"], lora.scaling_of(module), is_table)
        expected_rank, rank_a, rank_b = lora.rank_of(module), factor.a.shape[0], factor.b.shape[1]
        if not expected_rank == rank_a == rank_b:
            raise InvalidInput(
                f"{name}: {module} has factors of rank {rank_a} and {rank_b}, adapter_config.json"
                f" states {expected_rank}",
                "copy both files from one version of the adapter",
            )
        shape = base.tensors[shorts[short]].shape
        if factor.shape != shape:
            raise InvalidInput(
                f"{name}: {module} is for a matrix of {list(factor.shape)}, {base.name} has"
                f" {list(shape)}",
                _BASE,
            )
        if short in factors:
            raise InvalidInput(f"{name}: {short} of {base.name} is changed twice", MERGE_BY_PEFT)
        if not is_table and shape[0] == shape[1] and _has_transposed(base):
            raise InvalidInput(
                f"{name}: {base.name} stores matrices as (in, out), so for the square {short} the"
                " orientation of the factors is ambiguous",
                MERGE_BY_PEFT,
            )
        factors[short] = factor
    return factors


def _halves(folder: Path, name: str) -> dict[tuple[str, bool], dict[str, TensorSpec]]:
    """(Module, is a table) to A and B; a file with any other tensor is refused."""
    factors_by_module: dict[tuple[str, bool], dict[str, TensorSpec]] = {}
    for key, spec in read_header(folder / WEIGHTS).tensors.items():
        match = _KEY.fullmatch(key)
        if not match or spec.dtype not in FLOATS or len(spec.shape) != 2:
            raise InvalidInput(f"{name}: {key} is not a factor of a low-rank matrix", MERGE_BY_PEFT)
        half = match["half"] or match["table_half"]
        halves = factors_by_module.setdefault((match["module"], match["half"] is None), {})
        if half in halves:
            raise InvalidInput(
                f"{name}: {halves[half].name} and {key} belong to two adapters",
                "save them separately: peft's model.save_pretrained(OUT) writes a folder for each",
            )
        halves[half] = spec
    return factors_by_module


def _has_transposed(base: Checkpoint) -> bool:
    """Whether a bias has as many elements as its matrix has columns: Conv1D of GPT-2."""
    for key, spec in base.tensors.items():
        bias = base.tensors.get(f"{key.removesuffix('.weight')}.bias")
        if bias and key.endswith(".weight") and len(spec.shape) == 2:
            rows, columns = spec.shape
            if bias.shape == (columns,) and rows != columns:
                return True
    return False
