"""The settings of a distillation job, without those of the method."""

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
"""Number of layers to keep (`3`), or their indices (`0,2,5`; a single one is `5,`)."""


class DistillJob(MethodJob):
    """`embtool distill`."""

    verb: ClassVar[str] = "distill"
    parent: ClassVar[str | None] = "teacher"
    default_method: ClassVar[str] = "leaf"

    teacher: Annotated[
        str,
        Field(
            description="teacher: folder or hub id, file of vectors of the texts (.npy, .parquet, "
            ".safetensors), or endpoint https://host/v1#model"
        ),
        FlagInfo(REQUIRED, MODEL),
    ]
    student: Annotated[
        str | None,
        Field(description="model to train: folder or hub id [the teacher with --student-layers]"),
        FlagInfo(REQUIRED, MODEL),
    ] = None
    student_layers: Annotated[
        Layers | None,
        Field(
            description="layers of the student (or teacher) to keep: a number, or indices as 0,2,5"
        ),
        FlagInfo(DATA, "LAYERS"),
    ] = None
    from_scratch: Annotated[
        bool,
        Field(description="start from random weights instead of the student's"),
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
            description="stream large corpora: no copy on disk, no deduplication, teacher vectors"
            " stored only with --store"
        ),
        FlagInfo(DATA),
    ] = False
    shuffle_buffer: Annotated[
        int,
        Field(ge=16, description="with --stream, number of texts that are shuffled together"),
        FlagInfo(DATA),
    ] = 8192
    text_field: TextField = None
    query_field: Annotated[
        TextField, Field(description="field, or number of the column, of --queries [text_field]")
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
        Field(ge=1, description="maximum number of texts to read; with --stream, per epoch"),
        FlagInfo(DATA),
    ] = None
    fraction: Annotated[
        FloatList,
        Field(
            description="fraction of --texts to use, sampled by content and --seed; one for all"
            " sources, or one for each, as 1,.4 [all]"
        ),
        FlagInfo(DATA, "FRACTION,..."),
    ] = ()
    holdout: Annotated[
        Holdout,
        Field(
            description="number of texts held out to select and evaluate the best state, at most a"
            " tenth; with 0 the last state is written",
        ),
        FlagInfo(EVALUATION),
    ] = 500
    dev: Annotated[
        tuple[str, ...],
        Field(
            description="task used to select the best state: sts:FILE, retrieval:DIR"
            " [the held-out texts]"
        ),
        FlagInfo(EVALUATION, "TASK"),
    ] = ()
    eval: Annotated[
        tuple[str, ...],
        Field(
            description="task reported during training and at the end, not used to select a"
            " state: sts:FILE, retrieval:DIR"
        ),
        FlagInfo(EVALUATION, "TASK"),
    ] = ()
    num_evals: Annotated[
        int, Field(ge=1, description="number of evaluations during training"), FlagInfo(EVALUATION)
    ] = 4
    min_retention: Annotated[
        float | None,
        Field(
            gt=0,
            le=2,
            description="minimum fraction of the teacher's scores, otherwise exit code 3",
        ),
        FlagInfo(EVALUATION),
    ] = None
    output: Annotated[str, Field(description="folder to write"), FlagInfo(REQUIRED, "PATH")]
    router: Annotated[
        bool,
        Field(
            description="also write OUT/router: queries encoded by student, documents by teacher"
        ),
        FlagInfo(OUTPUT),
    ] = False
    store: Annotated[
        str | None,
        Field(description="folder where teacher vectors are cached [user's cache folder]"),
        FlagInfo(TEACHER, "PATH"),
    ] = None
    store_dtype: Annotated[
        Literal["float16", "float32"],
        Field(description="dtype of the stored vectors"),
        FlagInfo(TEACHER),
    ] = "float16"
    teacher_dim: Annotated[
        int | None,
        Field(
            ge=1, description="number of leading dimensions of the teacher to use as target [all]"
        ),
        FlagInfo(TEACHER),
    ] = None
    teacher_column: Annotated[
        str | None,
        Field(description="column or tensor of the vectors in the teacher's file [the only one]"),
        FlagInfo(TEACHER, "NAME"),
    ] = None
    teacher_max_length: Annotated[
        int | None,
        Field(ge=2, description="maximum tokens per text of the teacher [its own limit]"),
        FlagInfo(TEACHER),
    ] = None
    query_prompt: Annotated[
        str | None,
        Field(description="teacher's prompt for queries [the teacher's own]"),
        FlagInfo(TEACHER, "TEXT"),
    ] = None
    document_prompt: Annotated[
        str | None,
        Field(description="teacher's prompt for documents [the teacher's own]"),
        FlagInfo(TEACHER, "TEXT"),
    ] = None
    api_key_env: Annotated[
        str,
        Field(description="environment variable with the endpoint's API key"),
        FlagInfo(TEACHER, "NAME"),
    ] = "EMBTOOL_API_KEY"
    concurrency: Annotated[
        int,
        Field(ge=1, description="number of concurrent requests to the endpoint"),
        FlagInfo(TEACHER),
    ] = 8
    tensorboard: Annotated[
        bool,
        Field(description="also write TensorBoard logs to OUT/embtool/tensorboard"),
        FlagInfo(OUTPUT),
    ] = False
    fsdp: Annotated[
        bool,
        Field(
            description="shard teacher and student over the processes (FSDP), for models that do"
            " not fit on one device"
        ),
        FlagInfo(RUNNING),
    ] = False
    allow_pickle: Annotated[
        bool,
        Field(
            description="load pickled weights, which can run arbitrary code: trusted sources only"
        ),
        FlagInfo(DATA),
    ] = False
    method: Training

    @model_validator(mode="after")
    def _check_settings(self) -> DistillJob:
        if not self.texts and not self.queries:
            raise ValueError("no texts: give --texts or --queries")
        if not all(0 < fraction <= 1 for fraction in self.fraction):
            raise ValueError("--fraction: a fraction must be above 0 and at most 1")
        if len(self.fraction) > 1 and len(self.fraction) != len(self.texts):
            raise ValueError(
                f"--fraction: {len(self.fraction)} fractions for {len(self.texts)} sources of"
                " --texts"
            )
        incompatible = {"--fraction": self.fraction, "--fsdp": self.fsdp}
        incompatible["texts from stdin"] = "-" in (*self.texts, *self.queries)
        for name, value in incompatible.items():
            if self.stream and value:
                raise ValueError(f"--stream cannot be combined with {name}")
        if self.student is None and self.student_layers is None:
            raise ValueError(
                "no student: give --student, or --student-layers to use layers of the teacher"
            )
        return self
