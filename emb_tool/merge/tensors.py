"""Tensors of all inputs, matched by canonical name: their differences and the output tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from emb_tool.checkpoint.completeness import current_name
from emb_tool.checkpoint.elements import FLOATS, NUMPY_DTYPES, OpenFiles, promote_dtypes
from emb_tool.checkpoint.files import join
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import InvalidInput
from emb_tool.merge.adapter import Adapter
from emb_tool.merge.preflight import Difference
from emb_tool.merge.stream import OutputTensor, TensorSource
from emb_tool.merge.tensor_names import canonical, is_computed, is_head, layer_numbers
from emb_tool.plan import TensorSpec


class Entry(NamedTuple):
    """A tensor of one model.

    Args:
        name: Name in the model, without a wrapper's prefix.
        spec: Its spec.
        path: Its file.
        stored: Name in the file.
    """

    name: str
    spec: TensorSpec
    path: Path
    stored: str


class Tensors:
    """The tensors of a merge.

    Args:
        models: The models, in the user's order.
        base: The model that they were trained from, if it is used.
        out_dtype: safetensors name of the output dtype; None: the widest dtype of the inputs.
        reference: Index of the model that determines the set of tensors.

    Attributes:
        files: Open files.
        notes: Notes on omitted tensors.
    """

    def __init__(
        self, models: Sequence[Checkpoint], base: Checkpoint | None, out_dtype: str | None,
        reference: int,
    ) -> None:  # fmt: skip
        self.models, self.base, self.out_dtype, self.reference = models, base, out_dtype, reference
        self.files = OpenFiles()
        self.notes: list[str] = []

    def differences(self) -> list[Difference]:
        """Differences between the models' tensors and the first's."""
        differences = []
        first = self._specs(0)
        for index in range(1, len(self.models)):
            specs = self._specs(index)
            for name in first.keys() & specs.keys():
                shapes = [list(x[name].shape) for x in (specs, first)]
                if shapes[0] != shapes[1]:
                    description = f"{name} is {shapes[0]}, not {shapes[1]}"
                    differences.append(Difference("shape", index, description))
            for name in sorted(first.keys() ^ specs.keys()):
                description = f"{name} is missing" if name in first else f"{name} is extra"
                differences.append(Difference("tensors", index, description))
        return sorted(differences)

    def _specs(self, index: int) -> dict[str, TensorSpec]:
        """Specs of a model's tensors by canonical name, except optional tensors."""
        return {
            f"{part}/{name}" if part else name: entry.spec
            for part, entries in self._parts(self.models[index]).items()
            for name, entry in entries.items()
            if not self._is_optional(name)
        }

    @cached_property
    def slots(self) -> list[OutputTensor]:
        """The output tensors, in the order of the first model's files.

        Raises:
            InvalidInput: The base lacks a tensor of the models; buffers with different dtypes.
        """
        models = [self._parts(checkpoint) for checkpoint in self.models]
        base = self._parts(self.base) if self.base else None
        slots = []
        for part, reference_entries in models[self.reference].items():
            layers = layer_numbers(reference_entries)
            for name, entry in reference_entries.items():
                entries = [parts[part][name] for parts in models if name in parts.get(part, {})]
                same_spec = len({(e.spec.shape, e.spec.dtype) for e in entries}) == 1
                in_all_models = len(entries) == len(models)
                if self._is_optional(name) and (
                    is_head(name) or not in_all_models or not same_spec
                ):
                    self.notes.append(f"{join(part, name)} is omitted: loaders create it")
                    continue
                base_entry = base.get(part, {}).get(name) if base is not None else None
                if not in_all_models:
                    entries, base_entry = [entry], None
                elif not {e.spec.dtype for e in entries} <= set(FLOATS):
                    base_entry = None  # buffers are copied or refused
                elif base is not None:
                    self._check_base(join(part, name), entry.spec, base_entry)
                slot = self._slot(part, name, entry.name, entries, base_entry, layers.get(name))
                slots.append(slot if in_all_models else replace(slot, only=0))
        return slots

    def _slot(
        self, part: str, name: str, out_name: str, entries: list[Entry], base_entry: Entry | None,
        layer: int | None,
    ) -> OutputTensor:  # fmt: skip
        """The output tensor of a canonical name, written as `out_name`."""
        full_name = join(part, name)
        owners = self.models if len(entries) == len(self.models) else [None] * len(entries)
        sources = tuple(
            self._source(entry, owner if not part else None, name)
            for entry, owner in zip(entries, owners, strict=True)
        )
        all_entries = [*entries, *([base_entry] if base_entry else [])]
        dtype = self._out_dtype({e.spec.dtype for e in all_entries}, full_name)
        spec = TensorSpec(current_name(out_name), entries[0].spec.shape, dtype)
        base = self._source(base_entry) if base_entry else None
        return OutputTensor(full_name, part, spec, sources, base, layer)

    def _check_base(self, name: str, spec: TensorSpec, entry: Entry | None) -> None:
        assert self.base is not None
        if entry is None:
            raise InvalidInput(
                f"the base {self.base.name} has no {name}, so its task vector is undefined",
                "give the model that the others were trained from, with all its modules",
            )
        if entry.spec.shape != spec.shape:
            raise InvalidInput(
                f"the base {self.base.name}: {name} is {list(entry.spec.shape)}, not"
                f" {list(spec.shape)}",
                "give the model that the others were trained from",
            )

    def _out_dtype(self, dtypes: set[str], name: str = "") -> str:
        if not dtypes <= set(FLOATS):
            (dtype, *others) = sorted(dtypes)
            if others or dtype not in NUMPY_DTYPES:
                raise InvalidInput(f"{name} is {', '.join(sorted(dtypes))}: cannot be merged", None)
            return dtype
        return self.out_dtype or promote_dtypes(dtypes)

    def _source(
        self, entry: Entry, model: Checkpoint | None = None, name: str = ""
    ) -> TensorSource:
        if isinstance(model, Adapter):
            return model.source(entry.name, name, self.files)
        return self.files.tensor(entry.path, entry.stored)

    def _is_optional(self, name: str) -> bool:
        """Whether a tensor may be missing: a computed buffer, or a head tied to the token table."""
        tied = self.models[0].config.get("tie_word_embeddings", True)
        return is_computed(name) or (is_head(name) and tied)

    @staticmethod
    def _parts(checkpoint: Checkpoint) -> dict[str, dict[str, Entry]]:
        """Output folder to canonical name to tensor."""
        layout = checkpoint.layout
        main = checkpoint.weights[layout.main]
        parts = {"": main}
        for index, module in enumerate(layout.modules[1:], 1):
            if module.path in checkpoint.weights and module.path != layout.main:
                parts[f"{index}_{module.kind}"] = checkpoint.weights[module.path]
        return {
            part: {
                short: Entry(name, weights.tensors[name], weights.where[name], weights.stored(name))
                for short, name in (
                    canonical(weights.tensors) if not part else {n: n for n in weights.tensors}
                ).items()
            }
            for part, weights in parts.items()
        }
