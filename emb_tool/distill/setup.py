"""Opens and checks the inputs of a distillation, and plans the output."""

from __future__ import annotations

from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from emb_tool.checkpoint.files import sha256
from emb_tool.checkpoint.prompts import check_prompt, prompt_text
from emb_tool.checkpoint.reader import Checkpoint, check_finite
from emb_tool.data.files import is_address
from emb_tool.data.streams import HUB, Shards
from emb_tool.data.text_field import field_sentence
from emb_tool.data.text_options import TextOptions
from emb_tool.data.texts import expand, hashes, scan
from emb_tool.distill.job import DistillJob
from emb_tool.errors import InvalidInput
from emb_tool.evaluate import dev
from emb_tool.method import Training
from emb_tool.ops.layers import keep_layers, plan_cut
from emb_tool.plan import Plan
from emb_tool.progress import Progress
from emb_tool.training.endpoint_address import is_endpoint, parse_endpoint
from emb_tool.training.vectors_file import read_shape

VECTOR_FILES = (".npy", ".parquet", ".safetensors")


class Setup:
    """The inputs of a job.

    Args:
        job: The resolved job.
        progress: Receives warnings.
    """

    def __init__(self, job: DistillJob, progress: Progress) -> None:
        self.job, self.progress = job, progress
        self.method: Training = job.method

    @cached_property
    def teacher_kind(self) -> str:
        """`endpoint`, `file` or `checkpoint`."""
        if is_endpoint(self.job.teacher):
            return "endpoint"
        return "file" if self.job.teacher.endswith(VECTOR_FILES) else "checkpoint"

    @cached_property
    def teacher(self) -> Checkpoint | None:
        """The teacher's checkpoint, if it is one."""
        if self.teacher_kind != "checkpoint":
            return None
        return Checkpoint.open(self.job.teacher, allow_pickle=self.job.allow_pickle)

    @cached_property
    def backbone(self) -> Checkpoint:
        """The checkpoint that the student is initialized from, before layers are removed."""
        if self.job.student is not None:
            return Checkpoint.open(self.job.student, allow_pickle=self.job.allow_pickle)
        if self.teacher is None:
            raise InvalidInput(
                f"--student-layers {self.job.student_layers}: the teacher {self.job.teacher} has "
                "no layers to keep",
                "give a checkpoint with --student",
            )
        return self.teacher

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """The checkpoints that are read, by the name given by the user."""
        checkpoints = [self.backbone] if self.teacher is None else [self.teacher, self.backbone]
        return {checkpoint.name: checkpoint for checkpoint in checkpoints}

    def data(self) -> dict[str, dict[str, str]]:
        """Digests of the local files of texts and vectors, by the name given by the user."""
        # streams are not hashed: reading all of one again may take days
        digests = {} if self.job.stream else hashes([*self.job.texts, *self.job.queries])
        if self.teacher_kind == "file":
            path = Path(self.job.teacher)
            digests[self.job.teacher] = {path.name: sha256(path)}
        return digests | dev.digests(self.tasks.dev)

    @cached_property
    def prompts(self) -> dict[str, str]:
        """The prompt of each role, for both teacher and student.

        Raises:
            InvalidInput: A prompt name without a model that defines it, or together with its text.
        """
        job, names = self.job, {"query": "query", "document": self.job.prompt_name}
        texts = {"query": job.query_prompt, "document": job.document_prompt}
        if job.prompt_name != "document" and job.document_prompt is not None:
            raise InvalidInput(
                f"--prompt-name {job.prompt_name} and --document-prompt are two prompts of --texts",
                "leave one of them out",
            )
        if self.teacher is None and job.prompt_name not in ("document", "none"):
            raise InvalidInput(
                f"--prompt-name {job.prompt_name}: the prompts of {job.teacher} are not known",
                "give the text: --document-prompt 'passage: '",
            )
        prompts = {}
        for role, text in texts.items():
            if text is None and self.teacher is not None:
                text = prompt_text(self.teacher.layout, names[role], self.teacher.name)
            prompts[role] = text or ""
        return prompts

    def _check_prompts(self) -> None:
        """Refuse unknown prompt names, and warn of prompts that are not used."""
        _ = self.prompts
        job = self.job
        for sources, text, name, flag in (
            (job.queries, job.query_prompt, "query", "--query-prompt TEXT"),
            (job.texts, job.document_prompt, job.prompt_name, "--prompt-name {}"),
        ):
            if sources and text is None and self.teacher is not None:
                layout, teacher = self.teacher.layout, self.teacher.name
                check_prompt(layout, name, teacher, self.progress.warn, flag)

    @cached_property
    def keep(self) -> tuple[int, ...] | None:
        """Indices of the layers that the student keeps; None keeps all."""
        if self.job.student_layers is None:
            return None
        try:
            return keep_layers(self.backbone, self.job.student_layers)
        except InvalidInput as error:
            message = f"--student-layers {self.job.student_layers}: {error.message}"
            raise InvalidInput(message, error.hint) from None

    def plan(self) -> Plan:
        """Check headers, settings and local files, and plan the output."""
        job = self.job
        self._check_method()
        if job.tensorboard and find_spec("tensorboard") is None:
            raise InvalidInput("--tensorboard: it is not installed", "run: pip install tensorboard")
        self._check_prompts()
        backbone, keep = self.backbone, self.keep
        dim = self._teacher_dim()
        if dim is not None:
            if job.teacher_dim is not None and job.teacher_dim > dim:
                raise InvalidInput(
                    f"--teacher-dim {job.teacher_dim}: the teacher's vectors have {dim} dimensions",
                    f"at most {dim}",
                )
            dim = job.teacher_dim or dim
            self.check_head(dim)
        if self.teacher_kind == "endpoint":
            parse_endpoint(job.teacher)
        if job.router and self.teacher is None:
            raise InvalidInput(
                f"--router: documents are encoded by the teacher, and {job.teacher} is not a"
                " checkpoint",
                "leave --router out",
            )
        if job.min_retention is not None and (
            self.teacher is None or not any(task.retains for task in self.tasks.reported)
        ):
            raise InvalidInput(
                f"--min-retention {job.min_retention:g}: there is nothing to retain",
                "add --eval sts:FILE or --eval retrieval:DIR, with a checkpoint as teacher",
            )
        if self.method.query_share is not None and not (job.texts and job.queries):
            raise InvalidInput(
                f"--query-share {self.method.query_share:g}: there is nothing to share between",
                "give both --texts and --queries",
            )
        for task in self.tasks.reported:
            if task.needs_reference and self.teacher is None:
                raise InvalidInput(
                    f"--eval {task.spec}: compares with the teacher, and {job.teacher} is not "
                    "a checkpoint",
                    "leave it out",
                )
        self.tasks.check(self.progress.warn)
        if job.texts:
            scan(job.texts, self.options, beside=job.queries)
        if job.queries:
            scan(job.queries, self.query_options, beside=job.texts)
        if job.stream:
            for shards in self.streams.values():
                shards.check()
            _ = self.epoch_texts
        # transformers and torch are imported from here on
        plan = Plan(
            notes=(
                f"weights of {backbone.weight_bytes() / 1e6:,.1f} MB, as those of {backbone.name}",
            )
        )
        if keep is not None:
            edited = plan_cut(backbone, keep)
            plan = Plan(tuple(edited.tensors.values()), edited.config, edited.notes)
        check_finite(backbone)
        if self.teacher is not None and self.teacher is not backbone:
            check_finite(self.teacher)
        return plan

    @cached_property
    def streams(self) -> dict[str, Shards]:
        """The shards of streamed texts, by role."""
        job = self.job
        streams: dict[str, Shards] = {}
        by_role = (
            ("document", job.texts, self.options),
            ("query", job.queries, self.query_options),
        )
        for role, sources, options in by_role:
            names = [
                name
                for source in sources
                for name in (
                    [source]
                    if is_address(source) or source.startswith(HUB)
                    else map(str, expand(source))
                )
            ]
            if names:
                streams[role] = Shards(
                    names, options, note=lambda *field: self.progress.note(field_sentence(*field))
                )
        return streams

    @cached_property
    def query_share(self) -> float:
        """Fraction of queries in streamed texts."""
        share = self.method.query_share
        if len(self.streams) == 1:
            return float("query" in self.streams)
        if share is None:
            documents, queries = (shards.count() for shards in self.streams.values())
            if documents is None or queries is None:
                name = "queries" if documents is not None else "texts"
                raise InvalidInput(
                    f"--stream: the number of {name} is not known, and so not the fraction of"
                    " queries in an epoch",
                    "set it: --query-share 0.2",
                )
            share = queries / (documents + queries)
        if not 0 < share < 1:
            raise InvalidInput(
                f"--query-share {share:g}: leaves nothing of one of the two",
                "leave out " + ("--texts" if share else "--queries"),
            )
        return share

    @cached_property
    def epoch_texts(self) -> int:
        """Streamed texts per epoch: all documents, and their fraction of queries."""
        if self.teacher_kind == "file":
            raise InvalidInput(
                "--stream: a file of vectors needs the texts in their order",
                "leave --stream out, or give a checkpoint or an endpoint as --teacher",
            )
        first, *others = self.streams.values()
        share = self.query_share if others else 0.0
        count, limit = first.count(), self.job.limit
        if count is not None:
            count = round(count / (1 - share))
            return min(count, limit or count)
        if limit is None:
            raise InvalidInput(
                "--stream: the number of texts is not known, which the learning rate schedule"
                " needs",
                "set the number of texts per epoch: --limit N",
            )
        return limit  # an epoch also ends at the end of the data

    @property
    def options(self) -> TextOptions:
        """Options for reading the texts."""
        return TextOptions.of(self.job)

    @property
    def query_options(self) -> TextOptions:
        """Options for reading the queries."""
        return TextOptions.of(self.job, self.job.query_field)

    @cached_property
    def tasks(self) -> dev.Tasks:
        """The tasks of `--dev` and `--eval`, parsed."""
        return dev.Tasks(self.job.dev, self.job.eval)

    def _teacher_dim(self) -> int | None:
        """Dimension of the teacher's vectors, None if it is not known yet."""
        if self.teacher is not None:
            return self.teacher.layout.dim
        if self.teacher_kind == "file":
            return read_shape(Path(self.job.teacher), self.job.teacher_column)[1]
        return None

    def check_head(self, dim: int) -> None:
        """Refuse a head or Matryoshka dimensions that do not fit a target dimension."""
        width = self.backbone.layout.dim
        head = getattr(self.method, "head", "auto")
        if head == "none" and width is not None and width != dim:
            raise InvalidInput(
                f"--head none: the student has {width} dimensions, the target {dim}",
                "use --head linear, or --teacher-dim for a Matryoshka teacher",
            )
        for prefix in getattr(self.method, "dims", ()):
            if not 1 <= prefix <= dim:
                raise InvalidInput(
                    f"--dims {prefix}: the vectors have {dim} dimensions", f"at most {dim}"
                )

    def _check_method(self) -> None:
        limit = self.backbone.layout.max_length
        if self.method.max_length and limit and self.method.max_length > limit:
            raise InvalidInput(
                f"--max-length {self.method.max_length}: {self.backbone.name} reads {limit} tokens"
                " at most",
                f"use --max-length {limit}",
            )
