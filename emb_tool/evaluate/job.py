"""The settings of `embtool eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from emb_tool.config import BatchTokens, Job, Picture
from emb_tool.data.text_options import TextField
from emb_tool.errors import InvalidInput
from emb_tool.fields import DATA, EVALUATION, MODEL, OUTPUT, REQUIRED, FlagInfo
from emb_tool.method import IntList
from emb_tool.ops.precisions import Precisions

if TYPE_CHECKING:
    from emb_tool.evaluate.task import Task

Texts = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]
"""One string, or several."""


class EvalJob(Job):
    """Evaluate models, and compare them with a reference model if one is given."""

    verb: ClassVar[str] = "eval"
    positional: ClassVar[tuple[str, ...]] = ("models",)

    models: Annotated[
        Texts, Field(min_length=1, description="folders or hub ids"), FlagInfo(REQUIRED, MODEL)
    ]
    task: Annotated[
        Texts,
        Field(min_length=1, description="what to measure: name:PATH,key=value"),
        FlagInfo(REQUIRED, "TASK"),
    ]
    reference: Annotated[
        str | None,
        Field(description="reference model to compare the others with, usually the teacher"),
        FlagInfo(DATA, MODEL),
    ] = None
    query_model: Annotated[
        str | None,
        Field(description="model that encodes the queries [the model itself]"),
        FlagInfo(DATA, MODEL),
    ] = None
    prompt_name: Annotated[
        str | None,
        Field(
            description="prompt of every text: query, document, default, none or one of the "
            "model's [query for queries, document for documents, default for others]"
        ),
        FlagInfo(DATA, "NAME"),
    ] = None
    min_retention: Annotated[
        float | None,
        Field(
            gt=0,
            le=2,
            description="minimum retention of the reference's figures, a fraction, e.g. 0.97",
        ),
        FlagInfo(EVALUATION),
    ] = None
    plot: Annotated[
        Picture | None,
        Field(
            description="plot of quality against size, or against length for long inputs: "
            "a .png, .svg or .pdf file"
        ),
        FlagInfo(OUTPUT, "PATH"),
    ] = None
    max_length: Annotated[
        int | None,
        Field(ge=1, description="maximum number of tokens of a text [each model's own limit]"),
        FlagInfo(DATA),
    ] = None
    batch_tokens: BatchTokens = None
    text_field: Annotated[
        TextField,
        Field(description="field of the texts of agreement, speed, ..., or its column number"),
    ] = None
    precision: Annotated[
        Precisions,
        Field(
            description="retrieval: also search document vectors stored as float16, int8, uint8, "
            "binary, ubinary, rabitq"
        ),
        FlagInfo(EVALUATION, "PRECISION"),
    ] = ()
    rescore: Annotated[
        IntList,
        Field(
            description="retrieval: K, rescore the top 10 K results of the codes with float32 "
            "vectors; several: 0,4"
        ),
        FlagInfo(EVALUATION),
    ] = ()

    @model_validator(mode="after")
    def _consistent(self) -> EvalJob:
        tasks = self.tasks()
        if self.reference is None:
            for task in tasks:
                if task.needs_reference:
                    raise InvalidInput(
                        f"task {task.spec!r} compares with a reference and none is given",
                        "add --reference MODEL",
                    )
        if self.precision and not any("precision" in type(t).model_fields for t in tasks):
            raise InvalidInput(
                f"--precision {','.join(self.precision)}: none of the tasks searches vectors",
                "add --task retrieval:DIR",
            )
        if self.min_retention is not None:
            if self.reference is None and not any(getattr(task, "precision", ()) for task in tasks):
                raise InvalidInput(
                    f"--min-retention {self.min_retention:g}: there is nothing to retain",
                    "add --reference MODEL",
                )
            if not any(task.retains for task in tasks):
                raise InvalidInput(
                    f"--min-retention {self.min_retention:g}: none of the tasks has a retention",
                    "add --task sts:FILE or --task retrieval:DIR",
                )
        return self

    def tasks(self) -> list[Task]:
        """Parse the tasks."""
        from emb_tool.evaluate.task import parse_tasks

        prompt = self.prompt_name
        return parse_tasks(
            self.task,
            prompt_name=prompt,
            query_prompt=prompt,
            document_prompt=prompt,
            text_field=self.text_field,
            precision=self.precision or None,
            rescore=self.rescore or None,
        )
