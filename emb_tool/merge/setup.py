"""A merge before it begins: the inputs, what will be written, and every refusal that this gives."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import cast

from emb_tool.checkpoint.prompts import ROLES, check_prompt
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import InvalidInput
from emb_tool.merge.adapter import Adapter, open_model
from emb_tool.merge.base import Merge
from emb_tool.merge.data import MergeData
from emb_tool.merge.job import MergeJob
from emb_tool.merge.preflight import (
    CHOICES,
    Difference,
    compare_base,
    compare_models,
    parse_copy_from,
    refuse_codes,
    refuse_differences,
)
from emb_tool.merge.stream import OutputTensor
from emb_tool.merge.tensors import Tensors
from emb_tool.merge.weights import fits
from emb_tool.plan import Plan
from emb_tool.progress import Progress

DTYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


class Setup:
    """What a job names, opened; and what will be written.

    Args:
        job: The resolved job.
        progress: Where warnings go.
    """

    def __init__(self, job: MergeJob, progress: Progress) -> None:
        self.job, self.progress = job, progress
        self.method = cast(Merge, job.method)

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
    def data(self) -> MergeData:
        """What the method looks at."""
        return MergeData(self.job)

    @cached_property
    def taken(self) -> dict[str, int]:
        """What is taken from which model."""
        return parse_copy_from(self.job.copy_from, self.job.models)

    def copied_from(self, key: str) -> Checkpoint:
        """The model that something is taken from: the first unless chosen."""
        return self.models[self.taken.get(key, 0)]

    @cached_property
    def tensors(self) -> Tensors:
        """Those of all inputs."""
        uses = self.method.takes_base or self.job.inspect
        return Tensors(
            self.models, self.base if uses else None, DTYPES.get(self.job.out_dtype),
            self.taken.get("tensors", 0),
        )  # fmt: skip

    @property
    def slots(self) -> list[OutputTensor]:
        """Every tensor that is written, in the order of the first model's files."""
        return self.tensors.slots

    # -- what is refused --------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Every refusal that headers, configs, settings and local files can give."""
        self.method.check(self.job.models, self.job.base)
        self._check_inputs()
        refuse_differences(self.differences, self.job.models, self.taken)
        if self.base is not None:
            for key, said in compare_base(self.lead, self.base):
                raise InvalidInput(
                    f"the base {self.base.name} is not like {self.lead.name}: {key}: {said}",
                    "take the model that the others were trained from",
                )
        for sentence in self.data.check():
            self.progress.warn(sentence)
        self._check_prompts()
        if self.is_bare and self.method.looks_at:
            raise InvalidInput(f"{self.method.name}: files of tensors cannot be run", None)
        if self.is_bare and self.job.eval:
            raise InvalidInput("--eval: files of tensors cannot be run", "leave it out")
        self._check_weights()
        written = tuple(slot.spec for slot in self.slots)
        return Plan(written, notes=tuple(self.tensors.notes))

    def _check_prompts(self) -> None:
        """Warn of prompts that are passed over where the method looks at texts."""
        if not (self.method.looks_at and (self.job.texts or self.job.pairs)):
            return
        lead = self.copied_from("prompts")
        for role in ROLES:
            way = f"put it under {role} in config_sentence_transformers.json"
            check_prompt(lead.layout, role, lead.name, self.progress.warn, way)

    def inspect(self) -> None:
        """Refuse what cannot even be compared; differences stay differences."""
        if len(self.models) < 2 and self.base is None:
            raise InvalidInput("one model alone: there is nothing to compare", "name two or more")
        self._check_inputs()
        fatal = [d for d in self.differences if d.key not in CHOICES and d.key != "vocabulary"]
        refuse_differences(fatal, self.job.models, self.taken)

    def _check_inputs(self) -> None:
        places: dict[Path, str] = {}
        for checkpoint in self.models:
            place = getattr(checkpoint, "folder", checkpoint.path).resolve()
            if place in places:
                raise InvalidInput(
                    f"{checkpoint.name} is named twice"
                    + (f" (as {places[place]})" if places[place] != checkpoint.name else ""),
                    "give it a larger weight instead",
                )
            places[place] = checkpoint.name
        if self.base and self.base.path.resolve() in places:
            raise InvalidInput(
                f"{self.base.name} is both the base and a model: its task vector is nothing",
                "leave it out of the models; scale= below 1 goes back towards the base",
            )
        adapted = any(isinstance(model, Adapter) for model in self.models)
        if self.base and not (self.method.takes_base or adapted or self.job.inspect):
            raise InvalidInput(f"{self.method.name} has no use for a base", "leave --base out")
        for checkpoint in self.inputs.values():
            if checkpoint.layout.routes:
                raise InvalidInput(
                    f"{checkpoint.name} is a Router of several models",
                    "merge the folders of its routes one by one",
                )
            refuse_codes(checkpoint)

    @cached_property
    def differences(self) -> list[Difference]:
        """In what the models are not like the first one; the base where it must be."""
        found = compare_models(self.models)
        if any(d.key in ("architecture", "kind", "module chain") for d in found):
            return found  # their tensors are others, too: that says nothing more
        return [*found, *self.tensors.differences()]

    def _check_weights(self) -> None:
        weights = getattr(self.method, "weights", None)
        for selector in weights.root if weights else ():
            if not any(fits(selector, slot.name, slot.layer) for slot in self.slots):
                raise InvalidInput(
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
