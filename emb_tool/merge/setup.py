"""A merge before it begins: the inputs, what will be written, and every refusal that this gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from emb_tool.checkpoint.elements import FLOATS, STORED, Files, widest
from emb_tool.checkpoint.files import join, write_json
from emb_tool.checkpoint.layout import Layout, write_layout
from emb_tool.checkpoint.reader import Checkpoint, copy_side_files
from emb_tool.errors import Refused
from emb_tool.evaluate.task import parse_tasks
from emb_tool.merge.adapter import Adapter, open_model
from emb_tool.merge.base import Merge
from emb_tool.merge.bench import Data
from emb_tool.merge.finding import Looking
from emb_tool.merge.job import MergeJob
from emb_tool.merge.names import canonical, is_computed, is_head, layer_numbers
from emb_tool.merge.preflight import (
    CHOICES,
    Difference,
    compare,
    compare_base,
    read_takes,
    refuse_differences,
    refuse_quantised,
)
from emb_tool.merge.stream import Slot, Source
from emb_tool.merge.weights import fits
from emb_tool.plan import Plan, Step, TensorSpec
from emb_tool.progress import Progress

DTYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
_CONFIG_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

Entry = tuple[str, TensorSpec, Path]
"""A tensor's name as stored, its spec, its file."""


class Setup:
    """What a job names, opened; and what will be written.

    Args:
        job: The resolved job.
        progress: Where warnings go.
    """

    def __init__(self, job: MergeJob, progress: Progress) -> None:
        self.job, self.progress = job, progress
        self.method = cast(Merge, job.method)
        self.files = Files()

    @cached_property
    def models(self) -> list[Checkpoint]:
        """The models, in the user's order."""
        return [open_model(name, self.base) for name in self.job.models]

    @cached_property
    def base(self) -> Checkpoint | None:
        """What they were trained from."""
        return Checkpoint.open(self.job.base, need_tokenizer=False) if self.job.base else None

    @property
    def lead(self) -> Checkpoint:
        """The first model, which gives what all have in common."""
        return self.models[0]

    @property
    def is_bare(self) -> bool:
        """Whether the models are files of tensors, without config or tokenizer."""
        return self.lead.path.is_file()

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """The checkpoints read, by the name that the user gave them."""
        found = [*self.models, *([self.base] if self.base else [])]
        return {checkpoint.name: checkpoint for checkpoint in found}

    @cached_property
    def tasks(self) -> list[Any]:
        """The `--eval` tasks, parsed."""
        return parse_tasks(self.job.eval)

    @cached_property
    def data(self) -> Data:
        """What the method looks at."""
        return Data(self.job)

    @cached_property
    def taken(self) -> dict[str, int]:
        """What is taken from which model."""
        return read_takes(self.job.take, self.job.models)

    def taken_from(self, key: str) -> Checkpoint:
        """The model that something is taken from: the first unless chosen."""
        return self.models[self.taken.get(key, 0)]

    # -- what is refused --------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Every refusal that headers, configs, settings and local files can give."""
        self.method.check(self.job.models, self.job.base)
        self._check_inputs()
        refuse_differences(self.differences, self.job.models, self.taken)
        if self.base is not None:
            for key, said in compare_base(self.lead, self.base):
                raise Refused(
                    f"the base {self.base.name} is not like {self.lead.name}: {key}: {said}",
                    "take the model that the others were trained from",
                )
        for task in self.tasks:
            for sentence in task.check():
                self.progress.warn(sentence)
        for sentence in self.data.check():
            self.progress.warn(sentence)
        if self.is_bare and isinstance(self.method, Looking):
            raise Refused(f"{self.method.name}: files of tensors cannot be run", None)
        if self.is_bare and self.job.eval:
            raise Refused("--eval: files of tensors cannot be run", "leave it out")
        self._check_weights()
        written = tuple(slot.spec for slot in self.slots)
        return Plan((Step((), written),), notes=tuple(self._notes))

    def inspect(self) -> None:
        """Refuse what cannot even be compared; differences stay differences."""
        if len(self.models) < 2 and self.base is None:
            raise Refused("one model alone: there is nothing to compare", "name two or more")
        self._check_inputs()
        fatal = [d for d in self.differences if d.key not in CHOICES and d.key != "vocabulary"]
        refuse_differences(fatal, self.job.models, self.taken)

    def _check_inputs(self) -> None:
        places: dict[Path, str] = {}
        for checkpoint in self.models:
            place = getattr(checkpoint, "folder", checkpoint.path).resolve()
            if place in places:
                raise Refused(
                    f"{checkpoint.name} is named twice"
                    + (f" (as {places[place]})" if places[place] != checkpoint.name else ""),
                    "give it a larger weight instead",
                )
            places[place] = checkpoint.name
        if self.base and self.base.path.resolve() in places:
            raise Refused(
                f"{self.base.name} is both the base and a model: its task vector is nothing",
                "leave it out of the models; scale= below 1 goes back towards the base",
            )
        adapted = any(isinstance(model, Adapter) for model in self.models)
        if self.base and not (self.method.takes_base or adapted or self.job.inspect):
            raise Refused(f"{self.method.name} has no use for a base", "leave --base out")
        for checkpoint in self.inputs.values():
            if checkpoint.layout.routes:
                raise Refused(
                    f"{checkpoint.name} is a Router of several models",
                    "merge the folders of its routes one by one",
                )
            refuse_quantised(checkpoint)

    @cached_property
    def differences(self) -> list[Difference]:
        """In what the models are not like the first one; the base where it must be."""
        found = compare(self.models)
        if any(d.key in ("architecture", "kind", "module chain") for d in found):
            return found  # their tensors are others, too: that says nothing more
        return [*found, *self._tensor_differences()]

    def _tensor_differences(self) -> list[Difference]:
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
            f"{part}/{name}" if part else name: spec
            for part, held in self._parts(self.models[number]).items()
            for name, (_, spec, _) in held.items()
            if not self._is_spare(name)
        }

    def _is_spare(self, name: str) -> bool:
        """Whether a tensor may be missing: computed buffers, a head tied to the token table."""
        tied = self.lead.config.get("tie_word_embeddings", True)
        return is_computed(name) or (is_head(name) and tied)

    def _parts(self, checkpoint: Checkpoint) -> dict[str, dict[str, Entry]]:
        """Part as it is written to canonical name to (name as stored, spec, file)."""
        layout = checkpoint.layout
        main = checkpoint.weights[layout.main]
        parts = {"": main}
        for index, module in enumerate(layout.modules[1:], 1):
            if module.path in checkpoint.weights and module.path != layout.main:
                parts[f"{index}_{module.kind}"] = checkpoint.weights[module.path]
        return {
            part: {
                short: (stored, weights.tensors[stored], weights.where[stored])
                for short, stored in (
                    canonical(weights.tensors) if not part else {n: n for n in weights.tensors}
                ).items()
            }
            for part, weights in parts.items()
        }

    def _check_weights(self) -> None:
        weights = getattr(self.method, "weights", None)
        for selector in weights.root if weights else ():
            if not any(fits(selector, slot.name, slot.layer) for slot in self.slots):
                raise Refused(
                    f"weights: {selector!r} fits no layer and no tensor",
                    f"tensors are called {self.slots[0].name}, layers are counted from 0",
                )
        if weights and self.method.averages:
            for selector, total in weights.sums().items():
                if abs(total - 1) > 1e-3:
                    where = "" if selector == "*" else f" of {selector}"
                    self.progress.warn(
                        f"the weights{where} sum to {total:g}, not 1: they are divided by their sum"
                    )

    # -- what is written --------------------------------------------------------------------------

    @cached_property
    def _notes(self) -> list[str]:
        return []

    @cached_property
    def slots(self) -> list[Slot]:
        """Every tensor that is written, in the order of the first model's files.

        Raises:
            Refused: A base without a tensor that the models have; buffers of unequal dtype.
        """
        models = [self._parts(checkpoint) for checkpoint in self.models]
        uses = self.method.takes_base or self.job.inspect
        base = self._parts(self.base) if self.base and uses else None
        slots = []
        for part, held in models[self.taken.get("tensors", 0)].items():
            layers = layer_numbers(held)
            for name, entry in held.items():
                entries = [parts[part][name] for parts in models if name in parts.get(part, {})]
                alike = len({(spec.shape, spec.dtype) for _, spec, _ in entries}) == 1
                everywhere = len(entries) == len(models)
                if self._is_spare(name) and (is_head(name) or not everywhere or not alike):
                    self._notes.append(
                        f"{join(part, name)} is left out: loaders make it themselves"
                    )
                    continue
                theirs = base.get(part, {}).get(name) if base is not None else None
                if not everywhere:
                    entries, theirs = [entry], None
                elif not {spec.dtype for _, spec, _ in entries} <= set(FLOATS):
                    theirs = None  # a buffer is copied or refused
                elif base is not None:
                    self._check_base(join(part, name), entry[1], theirs)
                slot = self._slot(part, name, entry[0], entries, theirs, layers.get(name))
                slots.append(slot if everywhere else replace(slot, only=0))
        return slots

    def _slot(
        self, part: str, name: str, stored: str, entries: list[Entry], theirs: Entry | None,
        layer: int | None,
    ) -> Slot:  # fmt: skip
        """One tensor to be written as `stored`, from those of its canonical name."""
        full = join(part, name)
        owners = self.models if len(entries) == len(self.models) else [None] * len(entries)
        sources = tuple(
            self._source(entry, owner if not part else None, name)
            for entry, owner in zip(entries, owners, strict=True)
        )
        there = [*entries, *([theirs] if theirs else [])]
        dtype = self._out_dtype({spec.dtype for _, spec, _ in there}, full)
        spec = TensorSpec(_modern(stored), entries[0][1].shape, dtype)
        base = self._source(theirs) if theirs else None
        return Slot(full, part, spec, sources, base, layer)

    def _check_base(self, name: str, spec: TensorSpec, theirs: Entry | None) -> None:
        assert self.base is not None
        if theirs is None:
            raise Refused(
                f"the base {self.base.name} has no {name}, so there is no task vector of it",
                "take the model that the others were trained from, with all its modules",
            )
        if theirs[1].shape != spec.shape:
            raise Refused(
                f"the base {self.base.name}: {name} is {list(theirs[1].shape)}, not"
                f" {list(spec.shape)}",
                "take the model that the others were trained from",
            )

    def _out_dtype(self, dtypes: set[str], name: str = "") -> str:
        if not dtypes <= set(FLOATS):
            (only, *more) = sorted(dtypes)
            if more or only not in STORED:
                raise Refused(f"{name} is {', '.join(sorted(dtypes))}: not to be merged", None)
            return only
        return DTYPES.get(self.job.out_dtype) or widest(dtypes)

    def _source(self, entry: Entry, model: Checkpoint | None = None, name: str = "") -> Source:
        stored, _, path = entry
        if isinstance(model, Adapter):
            return model.source(stored, name, self.files)
        return self.files.tensor(path, stored)

    def layout(self) -> Layout:
        """The modules as they are written."""
        modules = self.taken_from("modules").layout
        pooling = self.taken_from("pooling").layout
        chosen = tuple(
            (pooling.find("Pooling") or m) if m.kind == "Pooling" else m for m in modules.modules
        )
        prompts = self.taken_from("prompts").layout
        return replace(
            modules,
            modules=chosen,
            prompts=prompts.prompts,
            default_prompt_name=prompts.default_prompt_name,
            pooling=pooling.pooling,
            include_prompt=pooling.include_prompt,
            max_length=self.taken_from("max_length").layout.max_length,
            similarity=self.taken_from("similarity").layout.similarity,
        )

    def config(self) -> dict[str, Any]:
        """`config.json` as it is written: with the dtype that the weights have."""
        config = dict(self.taken_from("config").config)
        dtypes = {slot.spec.dtype for slot in self.slots if not slot.part} & set(FLOATS)
        key = "torch_dtype" if "torch_dtype" in config else "dtype"
        if dtypes and key in config:
            config[key] = _CONFIG_DTYPES[widest(dtypes)]
        return config

    def write_side_files(self, folder: Path) -> None:
        """Everything but weights: tokenizer, config, modules."""
        if self.is_bare:
            return
        copy_side_files(self.taken_from("tokenizer"), folder)
        config: Mapping[str, Any] = self.config()
        if config:
            write_json(folder / "config.json", config)
        else:
            (folder / "config.json").unlink(missing_ok=True)
        write_layout(folder, self.layout())


def _modern(name: str) -> str:
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name
