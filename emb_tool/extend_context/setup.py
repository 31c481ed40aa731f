"""Opens and checks the input of an extension, and plans the output."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, cast

from emb_tool import registry
from emb_tool.checkpoint.layout import needs_hub
from emb_tool.checkpoint.prompts import check_prompt
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.data.text_options import TextOptions
from emb_tool.data.texts import scan
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.evaluate import dev
from emb_tool.evaluate.extended_check import RotaryFrequencies
from emb_tool.evaluate.task import Task, parse_tasks
from emb_tool.extend_context.base import Extension, ExtensionContext
from emb_tool.extend_context.cost import attention_bytes
from emb_tool.extend_context.family import KIND_NAMES, Positions, read_positions
from emb_tool.extend_context.job import ExtendJob
from emb_tool.extend_context.limits import read_lengths, set_lengths
from emb_tool.extend_context.logn import logn_attention, logn_weights
from emb_tool.extend_context.rotary import RotaryPositions
from emb_tool.plan import Plan
from emb_tool.progress import Progress

DEFAULTS = {"learned": "rp", "rotary": "ntk", "relative": "lengths"}
"""Kind of positions to method."""


class ExtendedModel(NamedTuple):
    """A draft of the extended model, and its expected rotary frequencies, if any."""

    draft: CheckpointEditor
    rotary: RotaryFrequencies | None


class Setup:
    """The input and the planned output of a job.

    Args:
        job: The resolved job.
        progress: Receives warnings.
    """

    def __init__(self, job: ExtendJob, progress: Progress) -> None:
        self.job, self.progress = job, progress

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The model."""
        return Checkpoint.open(self.job.model)

    @cached_property
    def positions(self) -> Positions:
        """Position encoding of the model."""
        return read_positions(self.checkpoint)

    @cached_property
    def method(self) -> Extension:
        """The method of the job, or the default for its kind of positions."""
        default = DEFAULTS[self.positions.kind]
        return cast(Extension, self.job.method or registry.load("extend-context", default)())

    @cached_property
    def tasks(self) -> dev.Tasks:
        """The tasks of `--dev` and `--eval`; default lengths are limited to the target."""

        def parse(texts: Sequence[str]) -> list[Task]:
            tasks = parse_tasks(texts, window=self.context.short)
            return [_within(task, self.context.target) for task in tasks]

        return dev.Tasks(self.job.dev, self.job.eval, parse)

    @cached_property
    def context(self) -> ExtensionContext:
        """Original and target length.

        Raises:
            InvalidInput: See `original_length`; a target that is not larger.
        """
        original, target = original_length(self.checkpoint, self.positions, self.job), self.job.to
        limit = self.checkpoint.layout.max_length
        if target <= original:
            reads = f", and reads {limit:,}" if limit and limit < original else ""
            raise InvalidInput(
                f"--to {target}: {self.checkpoint.name} was trained at {original:,} tokens{reads}",
                "a higher number lengthens it"
                + (
                    f"; to read up to {original:,} set max_seq_length in sentence_bert_config.json"
                    if reads
                    else ""
                ),
            )
        return ExtensionContext(self.positions, original, target, limit, tuned=bool(self.job.tune))

    @cached_property
    def extended(self) -> ExtendedModel:
        """The planned output.

        Raises:
            InvalidInput: The method does not support the positions or lengths, short inputs cannot
                be preserved, or the model is already packed or extended.
        """
        self._refuse()
        draft, method = CheckpointEditor.of(self.checkpoint), self.method
        if self.preserves_short or not self.job.preserve_short:
            rotary = method.extend(draft, self.context)
        else:
            assert isinstance(method, RotaryPositions)
            rotary = method.extend_preserving_short(draft, self.context)
        if self.job.logn == "exact":
            logn_attention(draft, self.context)
        elif self.job.logn == "constant":
            logn_weights(draft, self.context)
        set_lengths(draft, self.context.target)
        draft.notes.append(
            f"a text of {self.context.target:,} tokens needs about {self.memory / 1e6:,.0f} MB "
            "beside the weights"
        )
        draft.facts["memory at target length"] = self.memory
        return ExtendedModel(draft, rotary)

    def _refuse(self) -> None:
        method, kind = self.method, self.positions.kind
        if kind not in method.kinds:
            table = registry.methods("extend-context")
            able = [n for n in table if kind in _kinds(n)]
            raise InvalidInput(
                f"-m {method.name}: {self.checkpoint.name} has {KIND_NAMES[kind]}, which it cannot"
                " lengthen",
                f"for these: {', '.join(able)}",
            )
        if self.job.preserve_short and self.job.logn == "constant":
            raise InvalidInput(
                "--preserve-short: --logn constant scales short inputs, too", "use --logn exact"
            )
        if self.job.preserve_short and not self.preserves_short and not self._can_preserve_short:
            raise InvalidInput(
                f"--preserve-short: -m {method.name} moves every position of such a model",
                "rp and hierarchical keep short inputs as they were, pi does with emb_tool.hub",
            )
        config, layout = self.checkpoint.config, self.checkpoint.layout
        if config.get("quantization_config"):
            raise InvalidInput(
                f"{self.checkpoint.name} is packed or quantized",
                "lengthen the plain model, then compress it",
            )
        if needs_hub(config, layout):
            raise InvalidInput(
                f"{self.checkpoint.name} is lengthened already",
                "begin with the model it was made of",
            )

    @cached_property
    def memory(self) -> int:
        """Bytes of activations for one text of the target length."""
        return attention_bytes(
            self.checkpoint.config, self.context.target, self.positions.family.eager
        )

    @property
    def preserves_short(self) -> bool:
        """Whether the method, or fine-tuning of added rows only, preserves short inputs."""
        kind = self.positions.kind
        preserved = kind in self.method.preserves_short or (
            kind == "learned" and bool(self.job.tune)
        )
        return preserved and self.job.logn != "constant"

    @property
    def _can_preserve_short(self) -> bool:
        """Whether the method has a variant that preserves short inputs."""
        return isinstance(self.method, RotaryPositions) and self.positions.kind in self.method.kinds

    def plan(self) -> Plan:
        """Check headers, settings and local files, and plan the output."""
        sources = [*self.job.tune, *self.job.texts]
        unused = self.progress.warn if sources else lambda sentence: None
        model = self.checkpoint
        check_prompt(model.layout, self.job.prompt_name, model.name, unused)
        if "-" in self.job.texts:
            raise InvalidInput("--texts -: they are read after the work, not before", "name a file")
        scan(sources, TextOptions.of(self.job))
        if self.job.dev and not self.job.tune:
            raise InvalidInput("--dev chooses a state of --tune, and there is none", "leave it out")
        self.tasks.check(self.progress.warn)
        draft = self.extended.draft
        if self.job.tune:
            if self.positions.kind != "learned":
                raise InvalidInput(
                    f"--tune: -m {self.method.name} adds nothing that could be trained",
                    "it is for the added rows of learned positions",
                )
            name = self.positions.table
            assert name is not None
            if draft.spec(name) == self.checkpoint.tensors[name]:
                raise InvalidInput(
                    f"--tune: -m {self.method.name} adds no rows", "rp, hierarchical, gp, pi do"
                )
        if (limit := self.context.limit or 0) > self.context.target:
            self.progress.warn(
                f"--to {self.context.target}: {self.checkpoint.name} reads {limit:,} tokens as it "
                "is, at positions that it was not trained at: longer texts are cut from now on"
            )
        if self.positions.family.eager:
            self.progress.warn(
                f"transformers has no attention but the eager one for this family: one text of "
                f"{self.context.target:,} tokens needs about {self.memory / 1e6:,.0f} MB beside the"
                " weights, and four times that at twice the length"
            )
        old = self.checkpoint.config
        edits = {key: value for key, value in draft.config.items() if old.get(key) != value}
        return Plan(tuple(draft.specs()), edits, tuple(draft.notes))


def _within(task: Task, target: int) -> Task:
    """A task with its default lengths limited to the target length."""
    lengths: tuple[int, ...] | None = getattr(task, "lengths", None)
    if lengths is None or "lengths" in task.model_fields_set:
        return task
    return task.model_copy(
        update={"lengths": tuple(n for n in lengths if n <= target) or (target,)}
    )


def _kinds(name: str) -> tuple[str, ...]:
    cls = registry.load("extend-context", name)
    assert issubclass(cls, Extension)
    return cls.kinds


def original_length(checkpoint: Checkpoint, positions: Positions, job: ExtendJob) -> int:
    """Training length of a model: the rows of its position table, or the limit in its files.

    Raises:
        InvalidInput: The files disagree and `--original-length` is not given; it exceeds the table.
    """
    given, name = job.original_length, checkpoint.name
    if positions.kind == "learned":
        rows = positions.rows - positions.first
        if given and given > rows:
            raise InvalidInput(
                f"--original-length {given}: the table of positions of {name} has {rows} rows",
                f"at most {rows}",
            )
        return given or rows
    if given:
        return given
    lengths = read_lengths(checkpoint)
    minimum = min(lengths.values(), default=None)
    if minimum is None:
        raise InvalidInput(
            f"{name}: no file says at what length it was trained",
            "say it with --original-length N",
        )
    positions_length = lengths.get("max_position_embeddings", minimum)
    if minimum < positions_length:
        listed = ", ".join(f"{key} {value:,}" for key, value in lengths.items())
        raise InvalidInput(
            f"{name}: its files do not state the length that it was trained with ({listed})",
            "say it with --original-length N; the model's card has it",
        )
    return minimum
