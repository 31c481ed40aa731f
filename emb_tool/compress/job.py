"""Settings of `embtool compress`, without those of its methods."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from emb_tool.config import ChainJob, Holdout, Picture, TuneEpochs, TuneRate
from emb_tool.data.text_options import Delimiter, Header, TextField
from emb_tool.errors import InvalidInput
from emb_tool.fields import DATA, EVALUATION, METHOD, MODEL, OUTPUT, REQUIRED, TRAINING, FlagInfo

SEARCH_STAGES = ("vocabulary", "weights")
"""Stages that a search chooses the steps of."""

UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "b": 1}


def _parse_bytes(value: Any) -> Any:
    """Parse `20MB`, `1.5 GB` or `800000` to bytes; 1 MB = 10^6 bytes."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower().replace(" ", "")
    unit = next((unit for unit in UNITS if text.endswith(unit)), "")
    try:
        return round(float(text.removesuffix(unit)) * UNITS.get(unit, 1))
    except ValueError:
        raise ValueError("not a size: write 20MB, 1.5GB or a number of bytes") from None


def _check_weight_bytes(count: int) -> int:
    if count < UNITS["kb"]:
        raise ValueError(f"{count} bytes are too few for a model: did you mean {count}MB?")
    return count


Bytes = Annotated[int, BeforeValidator(_parse_bytes), AfterValidator(_check_weight_bytes)]
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
            description="texts for calibration and for measuring the result (split, disjoint); "
            "ideally those that will be searched [sentences of Python's documentation]"
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
        int | None, Field(ge=1, description="maximum number of texts to read"), FlagInfo(DATA)
    ] = None
    holdout: Annotated[
        Holdout,
        Field(
            description="texts held out to measure the result on, and as many again for --target "
            "to select by; at most a tenth of the texts each; 0: none",
        ),
        FlagInfo(EVALUATION),
    ] = 500
    partner: Annotated[
        str | None,
        Field(
            description="model with vectors in the same space, to which rotate and truncate are"
            " also applied; written to OUT/partner"
        ),
        FlagInfo(DATA, MODEL),
    ] = None
    dev: Annotated[
        tuple[str, ...],
        Field(
            description="task whose retention selects the chain of --target and the state of"
            " --tune: sts:FILE, retrieval:DIR [held-out texts]"
        ),
        FlagInfo(EVALUATION, "TASK"),
    ] = ()
    eval: Annotated[
        tuple[str, ...],
        Field(
            description="task to report for the result and the input, not used for selection:"
            " sts:FILE, retrieval:DIR"
        ),
        FlagInfo(EVALUATION, "TASK"),
    ] = ()
    min_retention: Annotated[
        float | None,
        Field(
            gt=0, le=2,
            description="gate: minimum retention in the tasks of --eval or, without --eval, of the "
            "ten nearest neighbors; exit code 3 below it",
        ), FlagInfo(EVALUATION),
    ] = None  # fmt: skip
    max_bytes: Annotated[
        Bytes | None,
        Field(
            gt=0,
            description="gate: maximum size of the weight files, as 20MB; exit code 3 above it",
        ),
        FlagInfo(EVALUATION, "SIZE"),
    ] = None
    target: Annotated[
        Bytes | None,
        Field(
            gt=0,
            description="maximum size of the weight files, as 15MB: searches for the best chain",
        ),
        FlagInfo(METHOD, "SIZE"),
    ] = None
    target_retention: Annotated[
        float | None,
        Field(gt=0, le=1, description="minimum retention: searches for the smallest chain"),
        FlagInfo(METHOD),
    ] = None
    tune: Annotated[
        tuple[str, ...],
        Field(
            description="texts on which scales, codebooks, norms and biases are finetuned to "
            "reproduce the vectors of the input"
        ),
        FlagInfo(TRAINING, "PATH"),
    ] = ()
    epochs: TuneEpochs = 1.0
    lr: TuneRate = 1e-3
    batch_tokens: Annotated[
        int, Field(ge=1, description="tokens per training step of --tune"), FlagInfo(TRAINING)
    ] = 2048
    format: Annotated[
        Literal["embtool", "compressed-tensors"],
        Field(
            description="format of packed weights: embtool, or compressed-tensors (pack-quantized; "
            "linear layers only, by int or gptq with 2, 4 or 8 bits)"
        ),
        FlagInfo(OUTPUT),
    ] = "embtool"
    plot: Annotated[
        Picture | None,
        Field(description="plot of the chains that --target measured, a .png, .svg or .pdf file"),
        FlagInfo(OUTPUT, "PATH"),
    ] = None
    output: Annotated[str, Field(description="folder to write"), FlagInfo(REQUIRED, "PATH")]

    @property
    def searches(self) -> bool:
        """Whether the job searches for a chain."""
        return self.target is not None or self.target_retention is not None

    @model_validator(mode="after")
    def _check_combinations(self) -> CompressJob:
        from emb_tool.compress.step import STAGES, CompressStep

        if not self.method and not self.searches:
            raise ValueError(
                "no method: give -m NAME:key=value (see embtool methods compress), or --target 15MB"
            )
        if self.target is not None and self.target_retention is not None:
            raise ValueError("--target and --target-retention: give only one of them")
        if self.dev and not (self.searches or self.tune):
            raise ValueError("--dev selects a chain or a state: also give --target or --tune")
        if self.searches and not self.holdout and not self.dev:
            raise ValueError("--holdout 0 leaves --target nothing to select by: also give --dev")
        if self.min_retention is not None and not self.holdout and not self.eval:
            raise ValueError(
                "--holdout 0 leaves --min-retention nothing to check: also give --eval"
            )
        if self.plot and not self.searches:
            raise ValueError("--plot shows the chains of a search: also give --target")
        if self.format != "embtool" and (self.searches or self.tune):
            raise ValueError(
                "--format compressed-tensors supports only steps that are given with -m"
            )
        steps = [step for step in self.method if isinstance(step, CompressStep)]
        order = [STAGES.index(step.stage) for step in steps]
        if self.searches and any(step.stage in SEARCH_STAGES for step in steps):
            raise InvalidInput(
                "--target chooses the steps for vocabulary and weights itself",
                "leave out " + " ".join(f"-m {s.name}" for s in steps if s.stage in SEARCH_STAGES),
            )
        if order != sorted(order):
            chain = " ".join(f"-m {step.name}" for step in steps)
            ordered = sorted(steps, key=lambda step: STAGES.index(step.stage))
            raise InvalidInput(
                f"{chain}: the steps are in the wrong order",
                "use this order: " + " ".join(f"-m {step.name}" for step in ordered),
            )
        return self
