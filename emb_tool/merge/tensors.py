"""The tensors of all inputs, matched by name: in what they differ, and what is written of them."""

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
        name: As it is called in the model, whatever the file's wrapper.
        spec: Its spec.
        path: Its file.
        stored: Its name there.
    """

    name: str
    spec: TensorSpec
    path: Path
    stored: str


class Tensors:
    """What there is to be merged.

    Args:
        models: The models, in the user's order.
        base: What they were trained from, where it makes a difference.
        out_dtype: safetensors' name of the dtype written; None takes the widest that is read.
        lead: Number of the model that says which tensors there are.

    Attributes:
        files: Those that are open.
        notes: What is left out, and why.
    """

    def __init__(
        self, models: Sequence[Checkpoint], base: Checkpoint | None, out_dtype: str | None,
        lead: int,
    ) -> None:  # fmt: skip
        self.models, self.base, self.out_dtype, self.lead = models, base, out_dtype, lead
        self.files = OpenFiles()
        self.notes: list[str] = []

    def differences(self) -> list[Difference]:
        """In what the models' tensors are not like the first's."""
        found = []
        first = self._specs(0)
        for number in range(1, len(self.models)):
            mine = self._specs(number)
            for name in first.keys() & mine.keys():
                shapes = [list(specs[name].shape) for specs in (mine, first)]
                if shapes[0] != shapes[1]:
                    said = f"{name} is {shapes[0]}, not {shapes[1]}"
                    found.append(Difference("shape", number, said))
            for name in sorted(first.keys() ^ mine.keys()):
                said = f"no {name}" if name in first else f"{name} besides"
                found.append(Difference("tensors", number, said))
        return sorted(found)

    def _specs(self, number: int) -> dict[str, TensorSpec]:
        """A model's tensors by canonical name, those left aside that are no matter of choice."""
        return {
            f"{part}/{name}" if part else name: entry.spec
            for part, held in self._parts(self.models[number]).items()
            for name, entry in held.items()
            if not self._is_spare(name)
        }

    @cached_property
    def slots(self) -> list[OutputTensor]:
        """Every tensor that is written, in the order of the first model's files.

        Raises:
            InvalidInput: A base without a tensor that the models have; buffers of unequal dtype.
        """
        models = [self._parts(checkpoint) for checkpoint in self.models]
        base = self._parts(self.base) if self.base else None
        slots = []
        for part, held in models[self.lead].items():
            layers = layer_numbers(held)
            for name, entry in held.items():
                entries = [parts[part][name] for parts in models if name in parts.get(part, {})]
                alike = len({(e.spec.shape, e.spec.dtype) for e in entries}) == 1
                everywhere = len(entries) == len(models)
                if self._is_spare(name) and (is_head(name) or not everywhere or not alike):
                    self.notes.append(f"{join(part, name)} is left out: loaders make it themselves")
                    continue
                theirs = base.get(part, {}).get(name) if base is not None else None
                if not everywhere:
                    entries, theirs = [entry], None
                elif not {e.spec.dtype for e in entries} <= set(FLOATS):
                    theirs = None  # a buffer is copied or refused
                elif base is not None:
                    self._check_base(join(part, name), entry.spec, theirs)
                slot = self._slot(part, name, entry.name, entries, theirs, layers.get(name))
                slots.append(slot if everywhere else replace(slot, only=0))
        return slots

    def _slot(
        self, part: str, name: str, own: str, entries: list[Entry], theirs: Entry | None,
        layer: int | None,
    ) -> OutputTensor:  # fmt: skip
        """One tensor to be written as `own`, from those of its canonical name."""
        full = join(part, name)
        owners = self.models if len(entries) == len(self.models) else [None] * len(entries)
        sources = tuple(
            self._source(entry, owner if not part else None, name)
            for entry, owner in zip(entries, owners, strict=True)
        )
        there = [*entries, *([theirs] if theirs else [])]
        dtype = self._out_dtype({e.spec.dtype for e in there}, full)
        spec = TensorSpec(current_name(own), entries[0].spec.shape, dtype)
        base = self._source(theirs) if theirs else None
        return OutputTensor(full, part, spec, sources, base, layer)

    def _check_base(self, name: str, spec: TensorSpec, theirs: Entry | None) -> None:
        assert self.base is not None
        if theirs is None:
            raise InvalidInput(
                f"the base {self.base.name} has no {name}, so there is no task vector of it",
                "take the model that the others were trained from, with all its modules",
            )
        if theirs.spec.shape != spec.shape:
            raise InvalidInput(
                f"the base {self.base.name}: {name} is {list(theirs.spec.shape)}, not"
                f" {list(spec.shape)}",
                "take the model that the others were trained from",
            )

    def _out_dtype(self, dtypes: set[str], name: str = "") -> str:
        if not dtypes <= set(FLOATS):
            (only, *more) = sorted(dtypes)
            if more or only not in NUMPY_DTYPES:
                raise InvalidInput(f"{name} is {', '.join(sorted(dtypes))}: not to be merged", None)
            return only
        return self.out_dtype or promote_dtypes(dtypes)

    def _source(
        self, entry: Entry, model: Checkpoint | None = None, name: str = ""
    ) -> TensorSource:
        if isinstance(model, Adapter):
            return model.source(entry.name, name, self.files)
        return self.files.tensor(entry.path, entry.stored)

    def _is_spare(self, name: str) -> bool:
        """Whether a tensor may be missing: computed buffers, a head tied to the token table."""
        tied = self.models[0].config.get("tie_word_embeddings", True)
        return is_computed(name) or (is_head(name) and tied)

    @staticmethod
    def _parts(checkpoint: Checkpoint) -> dict[str, dict[str, Entry]]:
        """Part as it is written to canonical name to the tensor."""
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
