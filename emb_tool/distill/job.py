"""The settings of a distillation that are not its method's."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from emb_tool.config import Holdout, MethodJob
from emb_tool.data.text_options import Delimiter, Header, TextField
from emb_tool.fields import (
    DATA,
    EVALUATION,
    MODEL,
    OUTPUT,
    REQUIRED,
    RUNNING,
    TEACHER,
    TRAINING,
    FlagInfo,
)
from emb_tool.method import FloatList, Training


def _layers(value: Any) -> Any:
    if isinstance(value, str) and "," in value:
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


Layers = Annotated[int | tuple[int, ...], BeforeValidator(_layers)]
"""How many layers to keep (`3`), or which (`0,2,5`; one alone is `5,`)."""


class DistillJob(MethodJob):
    """`embtool distill`."""

    verb: ClassVar[str] = "distill"
    parent: ClassVar[str | None] = "teacher"
    default_method: ClassVar[str] = "leaf"

    teacher: Annotated[
        str,
        Field(
            description="folder or hub id; a file of vectors beside the texts (.npy, .parquet, "
            ".safetensors); or an endpoint, https://host/v1#model"
        ),
        FlagInfo(REQUIRED, MODEL),
    ]
    student: Annotated[
        str | None,
        Field(
            description="model to train: folder or hub id [the teacher, cut to --student-layers]"
        ),
        FlagInfo(REQUIRED, MODEL),
    ] = None
    student_layers: Annotated[
        Layers | None,
        Field(description="layers of the teacher (or student) to keep: a count, or a list 0,2,5"),
        FlagInfo(DATA, "LAYERS"),
    ] = None
    from_scratch: Annotated[
        bool,
        Field(description="start from random weights instead of the student's own"),
        FlagInfo(TRAINING),
    ] = False
    texts: Annotated[
        tuple[str, ...],
        Field(description="texts: jsonl, csv, tsv, parquet, txt (.gz), folders, hub:, s3://, -"),
        FlagInfo(REQUIRED, "PATH"),
    ] = ()
    queries: Annotated[
        tuple[str, ...],
        Field(description="queries, read as --texts, with the query prompt"),
        FlagInfo(DATA, "PATH"),
    ] = ()
    stream: Annotated[
        bool,
        Field(
            description="read texts as they are trained on: no copy, no search for duplicates,"
            " vectors stored only where --store is given; for more texts than a disk is for"
        ),
        FlagInfo(DATA),
    ] = False
    shuffle_buffer: Annotated[
        int,
        Field(ge=16, description="texts of a stream that are shuffled together"),
        FlagInfo(DATA),
    ] = 8192
    text_field: TextField = None
    query_field: Annotated[
        TextField, Field(description="field of --queries, or its column's number [text_field]")
    ] = None
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
        int | None,
        Field(ge=1, description="read this many texts at most; of a stream, in each epoch"),
        FlagInfo(DATA),
    ] = None
    fraction: Annotated[
        FloatList,
        Field(
            description="share of --texts to take, drawn by content and --seed; one for all of"
            " them, or one for each, as 1,.4 [all]"
        ),
        FlagInfo(DATA, "SHARE,..."),
    ] = ()
    holdout: Annotated[
        Holdout,
        Field(
            description="texts kept from training, at most a tenth, to choose the state and to"
            " measure it; 0 keeps none, and the last state is written",
        ),
        FlagInfo(EVALUATION),
    ] = 500
    dev: Annotated[
        tuple[str, ...],
        Field(
            description="task that the state to write is chosen by: sts:FILE, retrieval:DIR"
            " [the held-out texts]"
        ),
        FlagInfo(EVALUATION, "TASK"),
    ] = ()
    eval: Annotated[
        tuple[str, ...],
        Field(
            description="task reported on the way and at the end, which chooses nothing: sts:FILE,"
            " retrieval:DIR"
        ),
        FlagInfo(EVALUATION, "TASK"),
    ] = ()
    num_evals: Annotated[
        int, Field(ge=1, description="how often it is measured on the way"), FlagInfo(EVALUATION)
    ] = 4
    min_retention: Annotated[
        float | None,
        Field(
            gt=0, le=2, description="gate: lowest share of the teacher's figures, else exit code 3"
        ),
        FlagInfo(EVALUATION),
    ] = None
    output: Annotated[str, Field(description="folder to write"), FlagInfo(REQUIRED, "PATH")]
    router: Annotated[
        bool,
        Field(description="also write OUT/router: queries by student, documents by teacher"),
        FlagInfo(OUTPUT),
    ] = False
    store: Annotated[
        str | None,
        Field(description="folder of the teacher's vectors [user's cache folder]"),
        FlagInfo(TEACHER, "PATH"),
    ] = None
    store_dtype: Annotated[
        Literal["float16", "float32"],
        Field(description="dtype of the stored vectors"),
        FlagInfo(TEACHER),
    ] = "float16"
    teacher_dim: Annotated[
        int | None,
        Field(ge=1, description="first dimensions of the teacher taken as target [all]"),
        FlagInfo(TEACHER),
    ] = None
    teacher_column: Annotated[
        str | None,
        Field(description="column or tensor of a file of vectors [the only one]"),
        FlagInfo(TEACHER, "NAME"),
    ] = None
    teacher_max_length: Annotated[
        int | None,
        Field(ge=2, description="tokens that the teacher reads [its own limit]"),
        FlagInfo(TEACHER),
    ] = None
    query_prompt: Annotated[
        str | None,
        Field(description="prompt put before queries [the teacher's own]"),
        FlagInfo(TEACHER, "TEXT"),
    ] = None
    document_prompt: Annotated[
        str | None,
        Field(description="prompt put before documents [the teacher's own]"),
        FlagInfo(TEACHER, "TEXT"),
    ] = None
    api_key_env: Annotated[
        str,
        Field(description="environment variable that holds the endpoint's key"),
        FlagInfo(TEACHER, "NAME"),
    ] = "EMBTOOL_API_KEY"
    concurrency: Annotated[
        int, Field(ge=1, description="requests to the endpoint at a time"), FlagInfo(TEACHER)
    ] = 8
    tensorboard: Annotated[
        bool,
        Field(description="also write the curves for TensorBoard, to OUT/embtool/tensorboard"),
        FlagInfo(OUTPUT),
    ] = False
    fsdp: Annotated[
        bool,
        Field(
            description="cut teacher and student over the processes (FSDP), where one device does"
            " not hold them; slower where it does"
        ),
        FlagInfo(RUNNING),
    ] = False
    allow_pickle: Annotated[
        bool,
        Field(description="open checkpoints whose weights are pickled (never do for strangers')"),
        FlagInfo(DATA),
    ] = False
    method: Training

    @model_validator(mode="after")
    def _whole(self) -> DistillJob:
        if not self.texts and not self.queries:
            raise ValueError("no texts: give --texts or --queries")
        if not all(0 < share <= 1 for share in self.fraction):
            raise ValueError("--fraction: a share is above 0 and at most 1")
        if len(self.fraction) > 1 and len(self.fraction) != len(self.texts):
            raise ValueError(
                f"--fraction: {len(self.fraction)} shares for {len(self.texts)} sources of --texts"
            )
        against = {"--fraction": self.fraction, "--fsdp": self.fsdp}
        against["texts from stdin"] = "-" in (*self.texts, *self.queries)
        for name, given in against.items():
            if self.stream and given:
                raise ValueError(f"--stream does not go with {name}")
        if self.student is None and self.student_layers is None:
            raise ValueError("no student: give --student, or --student-layers to cut the teacher")
        return self
