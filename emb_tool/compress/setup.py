"""A compression before it begins: what it reads, and every refusal that this gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import cast

from emb_tool.checkpoint.prompts import check_prompt
from emb_tool.checkpoint.reader import Checkpoint, check_finite
from emb_tool.compress.chains import preview_chains
from emb_tool.compress.compressed_tensors import adapt_step, check_package, export
from emb_tool.compress.job import CompressJob
from emb_tool.compress.step import CompressStep, plan_step
from emb_tool.data.text_options import TextOptions
from emb_tool.data.texts import hashes, scan
from emb_tool.editing import CheckpointEditor, Rotation
from emb_tool.errors import InvalidInput
from emb_tool.evaluate import dev
from emb_tool.plan import Plan
from emb_tool.progress import Progress
from emb_tool.reporting.plots import check_plot


class Setup:
    """What a job names, opened; and its steps, planned.

    Args:
        job: The resolved job.
        progress: Where warnings go.
    """

    def __init__(self, job: CompressJob, progress: Progress) -> None:
        self.job, self.progress = job, progress
        self.steps = cast("tuple[CompressStep, ...]", job.method)
        if job.format == "compressed-tensors":
            self.steps = tuple(adapt_step(step) for step in self.steps)

    @cached_property
    def body(self) -> Checkpoint:
        """The model."""
        return Checkpoint.open(self.job.model)

    @property
    def is_bare(self) -> bool:
        """Whether it is a file of tensors, without config or tokenizer."""
        return self.body.path.is_file()

    @cached_property
    def partner(self) -> Checkpoint | None:
        """The model that gets the same rotation."""
        return Checkpoint.open(self.job.partner) if self.job.partner else None

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """The checkpoints read, by the name that the user gave them."""
        checkpoints = [self.body, *([self.partner] if self.partner else [])]
        return {checkpoint.name: checkpoint for checkpoint in checkpoints}

    def data(self) -> dict[str, dict[str, str]]:
        """Digests of the local files of texts, and of the tasks that choose."""
        return hashes(self.job.texts) | dev.digests(self.tasks.dev)

    @cached_property
    def tasks(self) -> dev.Tasks:
        """The tasks of `--dev` and `--eval`, parsed."""
        return dev.Tasks(self.job.dev, self.job.eval)

    def plan(self) -> Plan:
        """Every refusal that headers, settings and local files can give."""
        if self.is_bare:
            self._check_bare()
        self._check_partner()  # and the data before the steps, of which some import torch
        self._check_data()
        draft = CheckpointEditor.of(self.body)
        if self.job.searches:
            self._check_plain(draft)
        for step in self.steps:
            plan_step(step, draft)
        if self.partner is not None:
            self.shaped(self.partner)
        if self.job.format == "compressed-tensors":
            export(draft)
        if not self.is_bare:  # tables can be large; those that are packed are looked through then
            check_finite(self.body)
        old = self.body.config
        edits = {key: value for key, value in draft.config.items() if old.get(key) != value}
        if self.job.searches:
            trials = tuple(preview_chains(draft, self.job.target, bool(self.job.texts)))
            return Plan(notes=tuple(draft.notes), trials=trials)
        return Plan(tuple(draft.specs()), edits, tuple(draft.notes))

    def shaped(
        self, checkpoint: Checkpoint, rotations: Sequence[Rotation] | None = None
    ) -> CheckpointEditor:
        """A model of the same space after the steps that shape vectors.

        Args:
            checkpoint: The model.
            rotations: Matrices that `apply` computed for these steps; None to plan only.
        """
        draft = CheckpointEditor.of(checkpoint)
        for step in self.steps:
            if step.stage == "vectors":
                plan_step(step, draft)
        for announced, computed in zip(draft.rotations, rotations or draft.rotations, strict=True):
            announced.matrix, announced.mean = computed.matrix, computed.mean
        return draft

    def _check_data(self) -> None:
        """Refuse texts, tasks and pictures that cannot be had."""
        job = self.job
        if job.format == "compressed-tensors" and (warning := check_package()):
            self.progress.warn(warning)
        if job.plot:
            check_plot(job.plot)
        body, warn = self.body, self.progress.warn
        unused = warn if job.texts or job.tune else lambda sentence: None
        check_prompt(body.layout, job.prompt_name, body.name, unused)
        self.tasks.check(warn, retained=job.searches)
        scan((*job.texts, *job.tune), TextOptions.of(job))

    def _check_partner(self) -> None:
        if self.partner is None:
            return
        if self.partner.layout.dim != self.body.layout.dim:
            raise InvalidInput(
                f"--partner {self.partner.name} has vectors of {self.partner.layout.dim} "
                f"dimensions, {self.body.name} of {self.body.layout.dim}",
                "name a model whose vectors live in the same space",
            )
        if not any(step.stage == "vectors" for step in self.steps):
            raise InvalidInput("--partner: no step shapes vectors", "add -m rotate or -m truncate")

    def _check_plain(self, draft: CheckpointEditor) -> None:
        """Refuse a search among ways to pack what is packed already."""
        draft.refuse_quantized("--target")
        if draft.packed:
            raise InvalidInput(
                f"--target: {self.body.name} is packed already",
                "begin with the model that it was made from",
            )

    def _check_bare(self) -> None:
        """Refuse what needs a model, where there are only tensors."""
        job = self.job
        shaping = [step.name for step in self.steps if step.stage != "weights"]
        if shaping:
            raise InvalidInput(
                f"{shaping[0]}: {self.body.name} is a file of tensors, there is no model",
                "name a model's folder; a table is packed with -m int:bits=8, -m pq",
            )
        for name, given in (
            ("--eval", job.eval), ("--dev", job.dev), ("--tune", job.tune), ("--texts", job.texts),
            ("--target", job.searches), ("--min-retention", job.min_retention),
        ):  # fmt: skip
            if given:
                raise InvalidInput(
                    f"{name}: {self.body.name} is a file of tensors, there is no model to run",
                    "leave it out; counts of rows are given with --frequencies FILE",
                )
