"""The settings of a compression that are not its methods'."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from emb_tool.config import ChainJob, Holdout, Picture, TuneEpochs, TuneRate
from emb_tool.data.text_options import Delimiter, Header, TextField
from emb_tool.errors import InvalidInput
from emb_tool.fields import DATA, EVALUATION, METHOD, MODEL, OUTPUT, REQUIRED, TRAINING, FlagInfo

SEARCHED = ("vocabulary", "weights")
"""Stages that a search fills."""

UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "b": 1}


def _bytes(value: Any) -> Any:
    """`20MB`, `1.5 GB`, `800000` in bytes; 1 MB = 10^6 bytes."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower().replace(" ", "")
    unit = next((unit for unit in UNITS if text.endswith(unit)), "")
    try:
        return round(float(text.removesuffix(unit)) * UNITS.get(unit, 1))
    except ValueError:
        raise ValueError("not a size: write 20MB, 1.5GB or a number of bytes") from None


def _weights(count: int) -> int:
    if count < UNITS["kb"]:
        raise ValueError(f"{count} bytes hold no model: did you mean {count}MB?")
    return count


Bytes = Annotated[int, BeforeValidator(_bytes), AfterValidator(_weights)]
"""A number of bytes, written `20MB` in a shell."""


class CompressJob(ChainJob):
    """`embtool compress`."""

    verb: ClassVar[str] = "compress"
    parent: ClassVar[str | None] = "model"
    positional: ClassVar[tuple[str, ...]] = ("model",)
    shared: ClassVar[tuple[str, str] | None] = ("emb_tool.compress.table_method", "TableMethod")

    model: Annotated[
        str,
        Field(description="folder, hub id, or a bare .safetensors file"),
        FlagInfo(REQUIRED, MODEL),
    ]
    texts: Annotated[
        tuple[str, ...],
        Field(
            description="texts to calibrate on and, others of them, to measure on; best those that "
            "will be searched [sentences of Python's own documentation]"
        ),
        FlagInfo(DATA, "PATH"),
    ] = ()
    text_field: TextField = None
    delimiter: Delimiter = None
    header: Header = None
    prompt_name: Annotated[
        str,
        Field(
            description="prompt of --texts: document, query, default, none or one of the model's"
        ),
        FlagInfo(DATA, "NAME"),
    ] = "document"
    limit: Annotated[
        int | None, Field(ge=1, description="read this many texts at most"), FlagInfo(DATA)
    ] = None
    holdout: Annotated[
        Holdout,
        Field(
            description="texts kept from calibration to measure the result on, and as many others "
            "for --target to choose on; at most a tenth each; 0 keeps none",
        ),
        FlagInfo(EVALUATION),
    ] = 500
    partner: Annotated[
        str | None,
        Field(description="model of the same space that gets the same vectors' steps: OUT/partner"),
        FlagInfo(DATA, MODEL),
    ] = None
    dev: Annotated[
        tuple[str, ...],
        Field(
            description="task by whose retention --target chooses, and --tune its state: sts:FILE,"
            " retrieval:DIR [held-out texts]"
        ),
        FlagInfo(EVALUATION, "TASK"),
    ] = ()
    eval: Annotated[
        tuple[str, ...],
        Field(
            description="task reported for the result and the input, which chooses nothing:"
            " sts:FILE, retrieval:DIR"
        ),
        FlagInfo(EVALUATION, "TASK"),
    ] = ()
    min_retention: Annotated[
        float | None,
        Field(
            gt=0, le=2,
            description="gate: least share kept in the tasks of --eval, or of the ten nearest "
            "neighbours where there is none, else exit code 3",
        ), FlagInfo(EVALUATION),
    ] = None  # fmt: skip
    max_bytes: Annotated[
        Bytes | None,
        Field(gt=0, description="gate: size of the weight files, as 20MB, else exit code 3"),
        FlagInfo(EVALUATION, "SIZE"),
    ] = None
    target: Annotated[
        Bytes | None,
        Field(gt=0, description="size of the weight files, as 15MB: find the best chain below it"),
        FlagInfo(METHOD, "SIZE"),
    ] = None
    target_retention: Annotated[
        float | None,
        Field(gt=0, le=1, description="share to be kept: find the smallest chain that keeps it"),
        FlagInfo(METHOD),
    ] = None
    tune: Annotated[
        tuple[str, ...],
        Field(
            description="texts on which scales, codebooks, norms and biases are then trained "
            "towards the input's vectors"
        ),
        FlagInfo(TRAINING, "PATH"),
    ] = ()
    epochs: TuneEpochs = 1.0
    lr: TuneRate = 1e-3
    batch_tokens: Annotated[
        int, Field(ge=1, description="tokens of a step of --tune"), FlagInfo(TRAINING)
    ] = 2048
    format: Annotated[
        Literal["embtool", "compressed-tensors"],
        Field(
            description="of packed weights: our own, or compressed-tensors' pack-quantized (linear "
            "layers alone, by int or gptq of 2, 4 or 8 bits)"
        ),
        FlagInfo(OUTPUT),
    ] = "embtool"
    plot: Annotated[
        Picture | None,
        Field(description="picture of what --target tried, a .png, .svg or .pdf"),
        FlagInfo(OUTPUT, "PATH"),
    ] = None
    output: Annotated[str, Field(description="folder to write"), FlagInfo(REQUIRED, "PATH")]

    @property
    def searches(self) -> bool:
        """Whether the chain is to be found."""
        return self.target is not None or self.target_retention is not None

    @model_validator(mode="after")
    def _whole(self) -> CompressJob:
        from emb_tool.compress.step import STAGES, CompressStep

        if not self.method and not self.searches:
            raise ValueError(
                "no method: give -m NAME:key=value (see embtool methods compress), or --target 15MB"
            )
        if self.target is not None and self.target_retention is not None:
            raise ValueError("--target and --target-retention: give one of them")
        if self.dev and not (self.searches or self.tune):
            raise ValueError("--dev chooses a chain or a state: give --target or --tune, too")
        if self.searches and not self.holdout and not self.dev:
            raise ValueError("--holdout 0 leaves --target nothing to choose by: give --dev, too")
        if self.min_retention is not None and not self.holdout and not self.eval:
            raise ValueError("--holdout 0 leaves --min-retention nothing: give --eval, too")
        if self.plot and not self.searches:
            raise ValueError("--plot shows what a search tried: give --target, too")
        if self.format != "embtool" and (self.searches or self.tune):
            raise ValueError("--format compressed-tensors goes with steps alone: name them with -m")
        steps = [step for step in self.method if isinstance(step, CompressStep)]
        order = [STAGES.index(step.stage) for step in steps]
        if self.searches and any(step.stage in SEARCHED for step in steps):
            raise InvalidInput(
                "--target chooses vocabulary and weights itself",
                "leave out " + " ".join(f"-m {s.name}" for s in steps if s.stage in SEARCHED),
            )
        if order != sorted(order):
            given = " ".join(f"-m {step.name}" for step in steps)
            right = sorted(steps, key=lambda step: STAGES.index(step.stage))
            raise InvalidInput(
                f"{given}: a step comes too late, what it needs is gone by then",
                "in this order: " + " ".join(f"-m {step.name}" for step in right),
            )
        return self
