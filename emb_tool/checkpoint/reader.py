"""A checkpoint on disk: known from headers and configs, its tensors read lazily."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emb_tool.checkpoint.completeness import MAIN_KINDS, Fault, find_faults, strip_wrappers
from emb_tool.checkpoint.files import join, read_json, resolve_inside, sha256
from emb_tool.checkpoint.header import TORCH_DTYPES
from emb_tool.checkpoint.kinds import head_warning, missing_weights_kind, unsupported_kind
from emb_tool.checkpoint.layout import Layout, read_layout
from emb_tool.checkpoint.modules import read_modules
from emb_tool.checkpoint.source import commit_of, resolve_source
from emb_tool.checkpoint.weight_files import Weights, file_weights, find_weights
from emb_tool.checkpoint.wrappers import copy_unwrapped, wrapper_warning
from emb_tool.errors import InvalidInput
from emb_tool.plan import TensorSpec

if TYPE_CHECKING:
    import torch

TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "bpe.codes", "sentencepiece.model",
)  # fmt: skip
"""Any of these holds a vocabulary."""

_SIDE_FILES = (
    *TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "config.json",
)  # fmt: skip


MMAP_BYTES = 1 << 28
"""Bytes from which a tensor is mapped so that its pages can be let go (`checkpoint.mapped`)."""


class Checkpoint:
    """An embedding model on disk, known from its headers and configs.

    Args:
        path: The folder, or the bare `.safetensors` file.
        name: As the user named it.
        config: The main `config.json`, or {}.
        weights: Folder (relative, "" is the root) to its weight files.
        layout: How text becomes a vector.
        notes: What is odd, one sentence each.

    Attributes:
        tensors: The main ones by name, those of a Router by folder and name.
        faults: Tensors that are missing or unused, where it was opened in spite of that.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        config: dict[str, Any],
        weights: dict[str, Weights],
        layout: Layout,
        notes: list[str],
    ) -> None:
        self.path = path
        self.name = name
        self.config = config
        self.weights = weights
        self.layout = layout
        self.notes = notes
        self.faults: tuple[Fault, ...] = ()
        self._open: dict[Path, Any] = {}
        if layout.routes:  # the same names occur in several routes
            self.tensors = {
                f"{part}/{n}": TensorSpec(f"{part}/{n}", s.shape, s.dtype)
                for part, w in weights.items()
                for n, s in w.tensors.items()
            }
        else:
            self.tensors = weights[layout.main].tensors

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        allow_pickle: bool = False,
        need_tokenizer: bool = True,
        lenient: bool = False,
        path: Path | None = None,
    ) -> Checkpoint:
        """Open a checkpoint without reading its weights.

        Args:
            source: A local folder, a bare `.safetensors` file, or a hub id (read from the local
                cache alone with `HF_HUB_OFFLINE=1`).
            allow_pickle: Accept a folder that has pickled weights only; they are not read here.
            need_tokenizer: Refuse a folder that has none.
            lenient: Describe what can be described (`embtool inspect`): faults that do not stop
                the reading become `notes`, those of the weights `faults`.
            path: Local path of the source if it is resolved already.

        Raises:
            InvalidInput: Anything that is missing, damaged, or leads out of the folder; tensors
                that are missing or that nothing uses, as far as headers show it.
        """
        path = path or resolve_source(source)
        notes: list[str] = []
        if path.is_file():
            weights = file_weights(path)
            return cls(path, str(source), {}, {"": weights}, Layout(), notes)
        if kind := unsupported_kind(path):
            if not lenient:
                raise InvalidInput(f"{source} {kind.description}", kind.hint)
            notes.append(f"it {kind.description}")
        modules, routes = read_modules(path, notes if lenient else None)
        layout = Layout(modules=modules, routes=routes)
        parts = dict.fromkeys([layout.main, *(m.path for m in layout.all_modules)])
        weights_by_part = {}
        for part in parts:
            weights = find_weights(path, part, allow_pickle=allow_pickle)
            if weights.files or part == layout.main:
                weights_by_part[part] = weights
        main = weights_by_part[layout.main]
        if not main.files:
            kind = missing_weights_kind(path, layout.main)
            raise InvalidInput(f"{path / layout.main} {kind.description}", kind.hint)
        config = read_json(path, join(layout.main, "config.json")) or {}
        chain = layout.chain
        if not config and not (chain and chain[0].kind == "StaticEmbedding"):
            raise InvalidInput(
                f"{path / layout.main}: no config.json", "copy it from where the model came from"
            )
        if not any((path / layout.main / name).is_file() for name in TOKENIZER_FILES):
            sentence = f"{path / layout.main}: no tokenizer (tokenizer.json or a vocabulary file)"
            if need_tokenizer and not lenient:
                raise InvalidInput(
                    sentence, "copy the tokenizer's files from where the model came from"
                )
            notes.append(sentence)
        read_json(path, join(layout.main, "tokenizer_config.json"))  # looked at, whoever reads it
        configs = {
            module.path: read_json(path, join(module.path, "config.json")) or {}
            for module in layout.all_modules
            if module.kind in MAIN_KINDS
        }
        weights_by_part = strip_wrappers(layout.all_modules, weights_by_part, configs)
        faults = tuple(find_faults(layout.all_modules, weights_by_part, configs))
        if faults and not lenient:
            raise InvalidInput(f"{source}: {faults[0].message}", faults[0].hint)
        main = weights_by_part[layout.main]
        layout = read_layout(path, config, main.tensors, [] if lenient else None)
        checkpoint = cls(path, str(source), config, weights_by_part, layout, notes)
        checkpoint.faults = faults
        for name in checkpoint.files():
            resolve_inside(path, name)
        return checkpoint

    def tensor(self, name: str) -> torch.Tensor:
        """One main tensor, on the CPU, memory-mapped.

        Raises:
            InvalidInput: No such tensor, pickled weights, or a dtype that torch does not have.
        """
        if self.layout.routes:
            part, _, name = name.partition("/")
            return self._read(self.weights.get(part, Weights()), name)
        return self._read(self.weights[self.layout.main], name)

    def part_tensors(self, part: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of one folder (`ModuleSpec.path`), one by one; none if it has no weights."""
        weights = self.weights.get(part, Weights())
        for name in weights.tensors:
            yield name, self._read(weights, name)

    def _read(self, weights: Weights, name: str) -> torch.Tensor:
        if name not in weights.tensors:
            from emb_tool.registry import did_you_mean

            if weights.pickled:
                raise InvalidInput(
                    f"{self.path}: the weights are pickled and are not read here",
                    "convert them to safetensors first",
                )
            raise InvalidInput(
                f"{self.name} has no tensor {name!r}", did_you_mean(name, weights.tensors)
            )
        dtype = weights.tensors[name].dtype
        if dtype not in TORCH_DTYPES:
            raise InvalidInput(f"{self.name}: {name} has dtype {dtype}", "torch has no such dtype")
        path, stored = weights.where[name], weights.stored(name)
        if weights.tensors[name].nbytes >= MMAP_BYTES:
            from emb_tool.checkpoint.memory_map import map_tensor

            return map_tensor(path, stored)
        if path not in self._open:
            from safetensors import safe_open

            self._open[path] = safe_open(path, framework="pt")
        tensor: torch.Tensor = self._open[path].get_tensor(stored)
        return tensor

    @property
    def commit(self) -> str | None:
        """The commit of a model from the hub, in full; None of any other."""
        return commit_of(self.path)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user has to know of a checkpoint that can be used all the same."""
        wrappers = dict.fromkeys(w.wrapper for w in self.weights.values() if w.wrapper)
        sentences = [wrapper_warning(self.name, wrapper) for wrapper in wrappers]
        if self.config and not (self.path / "modules.json").is_file():
            head = head_warning(self.config, " and ".join(self.layout.pooling))
            sentences += [f"{self.name}: {head}"] if head else []
        return tuple(sentences)

    def files(self) -> tuple[str, ...]:
        """Everything that decides what vectors come out: weights, tokenizer, layout configs."""
        if self.path.is_file():
            return (self.path.name,)
        names = {name for weights in self.weights.values() for name in weights.files}
        for part in {self.layout.main, *(m.path for m in self.layout.all_modules)}:
            aux = (*_SIDE_FILES, "router_config.json", "sentence_bert_config.json")
            names |= {join(part, name) for name in aux if (self.path / part / name).is_file()}
        names |= {
            name
            for name in ("modules.json", "config_sentence_transformers.json", "router_config.json")
            if (self.path / name).is_file()
        }
        return tuple(sorted(names))

    def hashes(self) -> dict[str, str]:
        """sha256 of each of `files()`, by relative name."""
        if self.path.is_file():  # named by the user: a link may lead anywhere
            return {self.path.name: sha256(self.path)}
        return {name: sha256(resolve_inside(self.path, name)) for name in self.files()}

    def fingerprint(self) -> str:
        """sha256 over the names and digests of `files()`: the same wherever the folder lies."""
        listing = "".join(f"{digest}  {name}\n" for name, digest in self.hashes().items())
        return hashlib.sha256(listing.encode()).hexdigest()

    def weight_bytes(self) -> int:
        """Bytes of all weight files, those of modules included."""
        root = self.path.parent if self.path.is_file() else self.path
        return sum((root / n).stat().st_size for w in self.weights.values() for n in w.files)


def copy_aux_files(source: Checkpoint, folder: Path) -> None:
    """Copy tokenizer files and `config.json`, byte for byte, into the root of `folder`.

    Weights, cards and other formats' folders stay behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in _SIDE_FILES:
        path = resolve_inside(source.path, join(source.layout.main, name))
        if path.is_file():
            shutil.copyfile(path, folder / name)


def copy_module_weights(source: Checkpoint, folder: Path, written: Layout) -> None:
    """Copy the weight files of modules (Dense, ...) to where `write_layout` has put the modules."""
    for old, new in zip(source.layout.modules[1:], written.modules[1:], strict=True):
        weights = source.weights.get(old.path, Weights())
        for name in weights.files:
            target = folder / new.path / Path(name).name
            copy_unwrapped(resolve_inside(source.path, name), target, weights.wrapper)


def check_finite(checkpoint: Checkpoint) -> None:
    """Refuse NaN and infinities in the weights; reads every tensor once, in pieces.

    Raises:
        InvalidInput: Names the first tensor and row that is not finite.
    """
    import torch

    from emb_tool.checkpoint.memory_map import release_pages

    for part in checkpoint.weights:
        for name, tensor in checkpoint.part_tensors(part):
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            rows = tensor.reshape(tensor.shape[0] if tensor.dim() > 1 else 1, -1)
            step = max(1, (1 << 22) // max(1, rows.shape[1]))
            for start in range(0, rows.shape[0], step):
                piece = rows[start : start + step]
                piece = piece if piece.element_size() > 1 else piece.float()  # float8 has no test
                bad = ~torch.isfinite(piece).all(dim=1)
                if bad.any():
                    row = start + int(bad.nonzero()[0])
                    raise InvalidInput(
                        f"{checkpoint.name}: tensor {f'{part}/{name}' if part else name}, row {row}"
                        " is not finite (NaN or infinity)",
                        "the model is damaged or its training diverged; take another version",
                    )
                release_pages(tensor)
