"""The settings of an extension job, without those of the method."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from emb_tool.config import Holdout, Job, TuneEpochs, TuneRate
from emb_tool.data.text_options import Delimiter, Header, TextField
from emb_tool.fields import DATA, EVALUATION, METHOD, MODEL, REQUIRED, TRAINING, FlagInfo
from emb_tool.method import Method


class ExtendJob(Job):
    """`embtool extend-context`."""

    verb: ClassVar[str] = "extend-context"
    parent: ClassVar[str | None] = "model"
    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: Annotated[str, Field(description="folder or hub id"), FlagInfo(REQUIRED, MODEL)]
    to: Annotated[
        int, Field(ge=2, description="target maximum length in tokens"), FlagInfo(REQUIRED)
    ]
    method: Annotated[
        Method | None,
        Field(description="extension method [rp for learned positions, ntk for rotary positions]"),
    ] = None
    original_length: Annotated[
        int | None,
        Field(ge=2, description="length in tokens that the model was trained at [from the config]"),
        FlagInfo(METHOD),
    ] = None
    preserve_short: Annotated[
        bool,
        Field(
            description="keep vectors of texts up to the original length bit-identical; rotary "
            "methods are then written as longrope, which only transformers supports"
        ),
        FlagInfo(METHOD),
    ] = False
    logn: Annotated[
        Literal["exact", "constant"] | None,
        Field(
            description="scale attention logits by ln n / ln L; exact: by the length of each text "
            "(needs emb_tool.hub to load), constant: by the target length, in the weights"
        ),
        FlagInfo(METHOD),
    ] = None
    tune: Annotated[
        tuple[str, ...],
        Field(
            description="texts to train the added rows of learned positions on, towards the "
            "vectors of the input; texts of at least 100 tokens are best"
        ),
        FlagInfo(TRAINING, "PATH"),
    ] = ()
    texts: Annotated[
        tuple[str, ...],
        Field(description="your texts, to report how many must be encoded again [--tune]"),
        FlagInfo(DATA, "PATH"),
    ] = ()
    text_field: TextField = None
    delimiter: Delimiter = None
    header: Header = None
    prompt_name: Annotated[
        str,
        Field(
            description="prompt of --texts and --tune: document, query, default, none or one of "
            "the model's"
        ),
        FlagInfo(DATA, "NAME"),
    ] = "document"
    limit: Annotated[
        int | None,
        Field(ge=1, description="maximum number of --texts and of --tune to read"),
        FlagInfo(DATA),
    ] = None
    holdout: Annotated[
        Holdout,
        Field(
            description="number of --tune texts held out to select the best state, at most a tenth;"
            " with 0 the last state is written"
        ),
        FlagInfo(TRAINING),
    ] = 200
    epochs: TuneEpochs = 1.0
    lr: TuneRate = 1e-3
    batch_tokens: Annotated[
        int, Field(ge=1, description="tokens per step of --tune"), FlagInfo(TRAINING)
    ] = 4096
    dev: Annotated[
        tuple[str, ...],
        Field(
            description="task used to select the best state of --tune, as passkey:sample_seed=1"
            " [the held-out texts]"
        ),
        FlagInfo(TRAINING, "TASK"),
    ] = ()
    eval: Annotated[
        tuple[str, ...],
        Field(
            description="task reported for the result and the input, not used to select a state,"
            " as passkey or retrieval:DIR"
        ),
        FlagInfo(EVALUATION, "TASK"),
    ] = ()
    output: Annotated[str, Field(description="folder to write"), FlagInfo(REQUIRED, "PATH")]
