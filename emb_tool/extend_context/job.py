"""The settings of an extension that are not its method's."""

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
        int, Field(ge=2, description="tokens that the result reads of a text"), FlagInfo(REQUIRED)
    ]
    method: Annotated[
        Method | None,
        Field(description="how [rp for learned positions, ntk for rotary ones]"),
    ] = None
    original_length: Annotated[
        int | None,
        Field(
            ge=2, description="tokens that the model was trained at [the config, where it tells]"
        ),
        FlagInfo(METHOD),
    ] = None
    preserve_short: Annotated[
        bool,
        Field(
            description="texts that the input reads whole, and at positions it was trained at, "
            "keep their vectors to the bit; rotary methods are then carried by longrope, which "
            "transformers alone reads"
        ),
        FlagInfo(METHOD),
    ] = False
    logn: Annotated[
        Literal["exact", "constant"] | None,
        Field(
            description="attention's logits times ln n / ln L: exact by a text's own length (needs "
            "emb_tool.hub to load), constant for the target, in the weights"
        ),
        FlagInfo(METHOD),
    ] = None
    tune: Annotated[
        tuple[str, ...],
        Field(
            description="texts on which the added rows of learned positions are then trained "
            "towards the input's vectors; those of 100 tokens and more teach most"
        ),
        FlagInfo(TRAINING, "PATH"),
    ] = ()
    texts: Annotated[
        tuple[str, ...],
        Field(description="your texts: counts how many of them are to be encoded again [--tune]"),
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
        Field(ge=1, description="read this many of --texts and of --tune at most"),
        FlagInfo(DATA),
    ] = None
    holdout: Annotated[
        Holdout,
        Field(
            description="texts of --tune kept from training, at most a tenth, to choose the state;"
            " 0 keeps none, and the last state is written"
        ),
        FlagInfo(TRAINING),
    ] = 200
    epochs: TuneEpochs = 1.0
    lr: TuneRate = 1e-3
    batch_tokens: Annotated[
        int, Field(ge=1, description="tokens of a step of --tune"), FlagInfo(TRAINING)
    ] = 4096
    dev: Annotated[
        tuple[str, ...],
        Field(
            description="task that the state of --tune is chosen by, as passkey:sample_seed=1"
            " [the held-out texts]"
        ),
        FlagInfo(TRAINING, "TASK"),
    ] = ()
    eval: Annotated[
        tuple[str, ...],
        Field(
            description="task reported for the result and the input, which chooses nothing, as"
            " passkey or retrieval:DIR"
        ),
        FlagInfo(EVALUATION, "TASK"),
    ] = ()
    output: Annotated[str, Field(description="folder to write"), FlagInfo(REQUIRED, "PATH")]
