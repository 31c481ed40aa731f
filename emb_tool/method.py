"""A method: a frozen pydantic class with its settings, its paper and a pure function.

The fields are the single source of help, docs and validation: `Field(description=..., ge=...)` is
used by `embtool methods`, `--help`, recipes and `--set`. Importing a method must not import torch.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from emb_tool.fields import METHOD, TRAINING


def _split(value: Any) -> Any:
    """Split `"0,2,5"` into a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


IntList = Annotated[tuple[int, ...], BeforeValidator(_split)]
"""Whole numbers, written `0,2,5` in a shell and as a list in a recipe."""

FloatList = Annotated[tuple[float, ...], BeforeValidator(_split)]
"""Numbers, written `1,.4` in a shell and as a list in a recipe."""

TextList = Annotated[tuple[str, ...], BeforeValidator(_split)]
"""Texts, written `a,b` in a shell and as a list in a recipe."""


class Settings(BaseModel):
    """Typed settings: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Method(Settings):
    """One method of one verb.

    Attributes:
        name: The `-m` name, the file's name with dashes.
        paper: Its publication, `arXiv:...` or `doi:...`.
        panel: Default heading of its settings in `--help`.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    panel: ClassVar[str] = METHOD


class Measure(Method):
    """A method that only reads models and data (the tasks of `embtool eval`)."""


class Training(Method):
    """A method with a loss, and the settings shared by all training methods.

    Attributes:
        presets: Settings by preset name; recipe and user settings override them.
    """

    panel: ClassVar[str] = TRAINING
    presets: ClassVar[dict[str, dict[str, object]]] = {}

    epochs: Annotated[float, Field(gt=0, description="passes over the texts, per cycle")] = 1.0
    cycles: Annotated[int, Field(ge=1, description="number of cycles of warm-up and decay")] = 1
    lr: Annotated[float, Field(gt=0, le=1, description="peak learning rate")] = 5e-4
    warmup: Annotated[float, Field(ge=0, lt=1, description="fraction of a cycle for warm-up")] = 0.1
    weight_decay: Annotated[float, Field(ge=0, description="AdamW's weight decay")] = 0.01
    max_grad_norm: Annotated[
        float, Field(ge=0, description="maximum gradient norm; 0 disables clipping")
    ] = 1.0
    batch_tokens: Annotated[
        int, Field(ge=1, description="tokens per optimizer step, over all processes")
    ] = 1024
    grad_accumulation: Annotated[
        int, Field(ge=1, description="parts into which a step is split to save memory")
    ] = 1
    max_length: Annotated[
        int | None, Field(ge=2, description="maximum tokens per text [the student's own limit]")
    ] = None
    query_share: Annotated[
        float | None,
        Field(
            ge=0, le=1, description="fraction of queries in an epoch [their fraction in the data]"
        ),
    ] = None
    dropout: Annotated[
        bool, Field(description="apply the student's own dropout during training")
    ] = False
    compile: Annotated[bool, Field(description="compile the student with torch.compile")] = False
