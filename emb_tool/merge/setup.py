"""Opens and checks the inputs of a merge, and plans the output."""

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
    refuse_differences,
    refuse_quantized_checkpoint,
)
from emb_tool.merge.stream import OutputTensor
from emb_tool.merge.tensors import Tensors
from emb_tool.merge.weights import matches
from emb_tool.plan import Plan
from emb_tool.progress import Progress

DTYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}


class Setup:
    """The inputs and the planned output of a job.

    Args:
        job: The resolved job.
        progress: Receives warnings.
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
        """The model that they were trained from."""
        return Checkpoint.open(self.job.base, need_tokenizer=False) if self.job.base else None

    @property
    def first(self) -> Checkpoint:
        """The first model, the reference for comparisons."""
        return self.models[0]

    @property
    def is_bare(self) -> bool:
        """Whether the models are bare tensor files, without config or tokenizer."""
        return self.first.path.is_file()

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """The checkpoints that are read, by the name given by the user."""
        checkpoints = [*self.models, *([self.base] if self.base else [])]
        return {checkpoint.name: checkpoint for checkpoint in checkpoints}

    @cached_property
    def data(self) -> MergeData:
        """The data of the method."""
        return MergeData(self.job)

    @cached_property
    def copy_sources(self) -> dict[str, int]:
        """Part to the index of the model that it is copied from."""
        return parse_copy_from(self.job.copy_from, self.job.models)

    def copy_source(self, key: str) -> Checkpoint:
        """The model that a part is copied from: the selected one, or the first."""
        return self.models[self.copy_sources.get(key, 0)]

    @cached_property
    def tensors(self) -> Tensors:
        """The tensors of all inputs."""
        uses_base = self.method.uses_base or self.job.inspect
        return Tensors(
            self.models, self.base if uses_base else None, DTYPES.get(self.job.out_dtype),
            self.copy_sources.get("tensors", 0),
        )  # fmt: skip

    @property
    def slots(self) -> list[OutputTensor]:
        """The output tensors, in the order of the first model's files."""
        return self.tensors.slots

    # -- checks -----------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Check headers, configs, settings and local files, and plan the output."""
        self.method.check(self.job.models, self.job.base)
        self._check_inputs()
        refuse_differences(self.differences, self.job.models, self.copy_sources)
        if self.base is not None:
            for key, description in compare_base(self.first, self.base):
                raise InvalidInput(
                    f"the base {self.base.name} differs from {self.first.name}: {key}:"
                    f" {description}",
                    "give the model that the others were trained from",
                )
        for warning in self.data.check():
            self.progress.warn(warning)
        self._check_prompts()
        if self.is_bare and self.method.data_kinds:
            raise InvalidInput(f"{self.method.name}: bare tensor files cannot be run", None)
        if self.is_bare and self.job.eval:
            raise InvalidInput("--eval: bare tensor files cannot be run", "leave it out")
        self._check_weights()
        specs = tuple(slot.spec for slot in self.slots)
        return Plan(specs, notes=tuple(self.tensors.notes))

    def _check_prompts(self) -> None:
        """Warn of unused prompts if the method uses texts."""
        if not (self.method.data_kinds and (self.job.texts or self.job.pairs)):
            return
        source = self.copy_source("prompts")
        for role in ROLES:
            hint = f"put it under {role} in config_sentence_transformers.json"
            check_prompt(source.layout, role, source.name, self.progress.warn, hint)

    def inspect(self) -> None:
        """Check whether the models can be compared; differences are allowed."""
        if len(self.models) < 2 and self.base is None:
            raise InvalidInput(
                "a comparison needs two models or a model and a base", "give more models, or --base"
            )
        self._check_inputs()
        fatal = [d for d in self.differences if d.key not in CHOICES and d.key != "vocabulary"]
        refuse_differences(fatal, self.job.models, self.copy_sources)

    def _check_inputs(self) -> None:
        names_by_path: dict[Path, str] = {}
        for checkpoint in self.models:
            path = getattr(checkpoint, "folder", checkpoint.path).resolve()
            if path in names_by_path:
                raise InvalidInput(
                    f"{checkpoint.name} is given twice"
                    + (
                        f" (as {names_by_path[path]})"
                        if names_by_path[path] != checkpoint.name
                        else ""
                    ),
                    "give it a larger weight instead",
                )
            names_by_path[path] = checkpoint.name
        if self.base and self.base.path.resolve() in names_by_path:
            raise InvalidInput(
                f"{self.base.name} is both the base and a model: its task vector is zero",
                "leave it out of the models; scale= below 1 interpolates towards the base",
            )
        has_adapter = any(isinstance(model, Adapter) for model in self.models)
        if self.base and not (self.method.uses_base or has_adapter or self.job.inspect):
            raise InvalidInput(f"{self.method.name} does not use a base", "leave --base out")
        for checkpoint in self.inputs.values():
            if checkpoint.layout.routes:
                raise InvalidInput(
                    f"{checkpoint.name} is a Router of several models",
                    "merge the folders of each route separately",
                )
            refuse_quantized_checkpoint(checkpoint)

    @cached_property
    def differences(self) -> list[Difference]:
        """Differences of the models from the first."""
        differences = compare_models(self.models)
        if any(d.key in ("architecture", "kind", "module chain") for d in differences):
            return differences  # tensor differences are a consequence
        return [*differences, *self.tensors.differences()]

    def _check_weights(self) -> None:
        weights = getattr(self.method, "weights", None)
        for selector in weights.root if weights else ():
            if not any(matches(selector, slot.name, slot.layer) for slot in self.slots):
                raise InvalidInput(
                    f"weights: {selector!r} matches no layer and no tensor",
                    f"tensor names are like {self.slots[0].name}, layers are counted from 0",
                )
        if weights and self.method.averages:
            for selector, total in weights.sums().items():
                if abs(total - 1) > 1e-3:
                    where = "" if selector == "*" else f" of {selector}"
                    self.progress.warn(
                        f"the weights{where} sum to {total:g}, not 1: they are divided by their sum"
                    )
