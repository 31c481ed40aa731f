"""One distillation: texts to targets, targets to a student, the student to files."""

from __future__ import annotations

import json
import shutil
import time
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emb_tool.checkpoint.files import sha256
from emb_tool.checkpoint.reader import Checkpoint, check_finite
from emb_tool.data.corpus import Corpus
from emb_tool.data.texts import hashes, scan
from emb_tool.distill.job import DistillJob
from emb_tool.errors import Refused
from emb_tool.evaluate.task import parse_tasks, run_tasks
from emb_tool.method import Training
from emb_tool.ops.layers import cut, keep_layers, plan_cut
from emb_tool.plan import Plan
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report, Table
from emb_tool.training.client import is_endpoint, parse_endpoint
from emb_tool.training.endpoint import EndpointTeacher
from emb_tool.training.store import VectorStore
from emb_tool.training.vectors_file import FileVectors, read_shape

if TYPE_CHECKING:
    from emb_tool.encoder import Encoder
    from emb_tool.runtime import Runtime
    from emb_tool.training.loop import Outcome, Score
    from emb_tool.training.targets import Targets

VECTOR_FILES = (".npy", ".parquet", ".safetensors")
SAMPLE = 4096
"""Texts from which a head's starting point is solved for."""


class Distill:
    """What the engine carries out for `embtool distill`.

    Args:
        job: The resolved job.
        progress: Where bars and warnings go.
        report: Filled on the way.
    """

    def __init__(self, job: DistillJob, progress: Progress, report: Report) -> None:
        self.job, self.progress, self.report = job, progress, report
        self.method: Training = job.method
        self.papers = [job.method.paper]

    # -- before anything is written --------------------------------------------------------------

    @cached_property
    def teacher_kind(self) -> str:
        """`endpoint`, `file` or `checkpoint`."""
        if is_endpoint(self.job.teacher):
            return "endpoint"
        return "file" if self.job.teacher.endswith(VECTOR_FILES) else "checkpoint"

    @cached_property
    def teacher(self) -> Checkpoint | None:
        """The teacher's checkpoint, where it has one."""
        if self.teacher_kind != "checkpoint":
            return None
        return Checkpoint.open(self.job.teacher, allow_pickle=self.job.allow_pickle)

    @cached_property
    def body(self) -> Checkpoint:
        """The checkpoint that the student starts from, before layers are cut."""
        if self.job.student is not None:
            return Checkpoint.open(self.job.student, allow_pickle=self.job.allow_pickle)
        if self.teacher is None:
            raise Refused(
                f"--student-layers {self.job.student_layers}: the teacher {self.job.teacher} has "
                "no layers to cut",
                "name a checkpoint with --student",
            )
        return self.teacher

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """The checkpoints read, by the name that the user gave them."""
        found = [self.body] if self.teacher is None else [self.teacher, self.body]
        return {checkpoint.name: checkpoint for checkpoint in found}

    def data(self) -> dict[str, dict[str, str]]:
        """Digests of the local files of texts and vectors, by the name that the user gave them."""
        found = hashes([*self.job.texts, *self.job.queries])
        if self.teacher_kind == "file":
            path = Path(self.job.teacher)
            found[self.job.teacher] = {path.name: sha256(path)}
        return found

    @cached_property
    def keep(self) -> tuple[int, ...] | None:
        """The layers that the student keeps; None keeps all."""
        if self.job.student_layers is None:
            return None
        try:
            return keep_layers(self.body, self.job.student_layers)
        except Refused as error:
            said = f"--student-layers {self.job.student_layers}: {error.message}"
            raise Refused(said, error.hint) from None

    def plan(self) -> Plan:
        """Every refusal that headers, settings and local files can give."""
        job = self.job
        self._check_method()
        body, keep = self.body, self.keep
        plan = plan_cut(body, keep) if keep is not None else Plan()
        dim = self._teacher_dim()
        if dim is not None:
            if job.teacher_dim is not None and job.teacher_dim > dim:
                raise Refused(
                    f"--teacher-dim {job.teacher_dim}: the teacher's vectors have {dim} numbers",
                    f"at most {dim}",
                )
            dim = job.teacher_dim or dim
            self._check_head(dim)
        if self.teacher_kind == "endpoint":
            parse_endpoint(job.teacher)
        if job.router and self.teacher is None:
            raise Refused(
                f"--router: documents go to the teacher, and {job.teacher} is no checkpoint",
                "leave --router out",
            )
        if job.min_retention is not None and (
            self.teacher is None or not any(task.retains for task in self.tasks)
        ):
            raise Refused(
                f"--min-retention {job.min_retention:g}: there is nothing to retain",
                "add --eval sts:FILE or --eval retrieval:DIR, with a checkpoint as teacher",
            )
        if self.method.query_share is not None and not (job.texts and job.queries):
            raise Refused(
                f"--query-share {self.method.query_share:g}: there is nothing to share between",
                "give both --texts and --queries",
            )
        for task in self.tasks:
            if task.needs_reference and self.teacher is None:
                raise Refused(
                    f"--eval {task.spec}: compares with the teacher, and {job.teacher} is no "
                    "checkpoint",
                    "leave it out",
                )
            for sentence in task.check():
                self.progress.warn(sentence)
        for sources, field in ((job.texts, job.text_field), (job.queries, self._query_field)):
            if sources:
                scan(sources, field)
        check_finite(body)
        if self.teacher is not None and self.teacher is not body:
            check_finite(self.teacher)
        return plan

    @property
    def _query_field(self) -> str | None:
        return self.job.query_field or self.job.text_field

    @cached_property
    def tasks(self) -> list[Any]:
        """The `--eval` tasks, parsed."""
        return parse_tasks(self.job.eval)

    def _teacher_dim(self) -> int | None:
        """The width of the teacher's vectors, where it can be known before work."""
        if self.teacher is not None:
            return self.teacher.layout.dim
        if self.teacher_kind == "file":
            return read_shape(Path(self.job.teacher), self.job.teacher_column)[1]
        return None

    def _check_head(self, dim: int) -> None:
        width = self.body.layout.dim
        head = getattr(self.method, "head", "auto")
        if head == "none" and width is not None and width != dim:
            raise Refused(
                f"--head none: the student is {width} wide and the target {dim}",
                "use --head linear, or --teacher-dim where the student's width is a prefix",
            )
        for prefix in getattr(self.method, "dims", ()):
            if not 1 <= prefix <= dim:
                raise Refused(f"--dims {prefix}: the vectors have {dim} numbers", f"at most {dim}")

    def _check_method(self) -> None:
        limit = self.body.layout.max_length
        if self.method.max_length and limit and self.method.max_length > limit:
            raise Refused(
                f"--max-length {self.method.max_length}: {self.body.name} reads {limit} tokens at "
                "most",
                f"use --max-length {limit}",
            )

    # -- the work ---------------------------------------------------------------------------------

    def work(self, folder: Path, state: Path, runtime: Runtime) -> None:
        """Make the student in `folder`; what a resume needs is kept in `state`."""
        job = self.job
        clock = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal clock
            now = time.perf_counter()
            self.report.timings[name] = self.report.timings.get(name, 0.0) + now - clock
            clock = now

        with runtime.main_first():
            corpus = Corpus.open(state / "corpus")
            if corpus is None:
                corpus = Corpus.build(
                    state / "corpus",
                    job.texts,
                    job.queries,
                    field=job.text_field,
                    query_field=self._query_field,
                    limit=job.limit,
                    holdout=job.holdout,
                )
        self.report.facts["texts"] = dict(corpus.counts)
        if corpus.counts["duplicates"]:
            self.progress.say(f"{corpus.counts['duplicates']:,} duplicate texts dropped")
        lap("read_seconds")
        targets, prompts = self._targets(corpus, state, runtime)
        lap("teacher_seconds")
        student = self._student(state, runtime, corpus, targets, prompts)
        lap("student_seconds")
        self._train(student, corpus, targets, prompts, folder, state, runtime)
        clock = time.perf_counter()
        if runtime.is_main:
            self._write(student, corpus, targets, prompts, folder, state)
        runtime.barrier()
        lap("write_seconds")

    def _targets(
        self, corpus: Corpus, state: Path, runtime: Runtime
    ) -> tuple[Targets, dict[str, str]]:
        """What the teacher says of each text, and the prompts that were used."""
        from emb_tool.encoder import Encoder
        from emb_tool.training.targets import gather_targets
        from emb_tool.training.teacher import CheckpointTeacher

        job = self.job
        prompts = {"query": job.query_prompt or "", "document": job.document_prompt or ""}
        if self.teacher_kind == "file":
            vectors = FileVectors(
                Path(job.teacher),
                corpus,
                column=job.teacher_column,
                dims=job.teacher_dim,
                scratch=state,
                on_warning=self.progress.warn,
            )
            return vectors, prompts
        teacher: Any
        if self.teacher is not None:
            encoder = Encoder.open(self.teacher, runtime, max_length=job.teacher_max_length)
            own_query, own_document = encoder.prompt("query"), encoder.prompt(job.prompt_name)
            if job.query_prompt is None:
                prompts["query"] = own_query
            if job.document_prompt is None:
                prompts["document"] = own_document
            teacher = CheckpointTeacher(
                encoder,
                query_prompt=prompts["query"],
                document_prompt=prompts["document"],
                store_dtype=job.store_dtype,
            )
        else:
            teacher = EndpointTeacher(
                job.teacher,
                query_prompt=prompts["query"],
                document_prompt=prompts["document"],
                key_variable=job.api_key_env,
                store_dtype=job.store_dtype,
                concurrency=job.concurrency,
                on_warning=self.progress.warn,
            )
            self._check_head(job.teacher_dim or teacher.dim)
        store = VectorStore(
            Path(job.store).expanduser() if job.store else VectorStore.default_root(),
            self.progress.warn,
        )
        with self.progress.task("teacher", len(corpus), "texts") as advance:
            targets = gather_targets(
                corpus,
                teacher,
                store,
                dims=job.teacher_dim,
                progress=advance,
                rank=runtime.rank,
                world=runtime.world,
            )
        cut_off = getattr(teacher, "truncated", 0)
        self.report.facts["teacher"] = {"name": teacher.name, "texts_truncated": cut_off}
        self.report.facts["store"] = str(store.root)
        self.progress.say(f"teacher vectors are kept in {store.root} (embtool store)", level=2)
        return targets, prompts

    def _student(
        self,
        state: Path,
        runtime: Runtime,
        corpus: Corpus,
        targets: Targets,
        prompts: dict[str, str],
    ) -> Encoder:
        """The student before training: body, head, and the head's starting point."""
        from emb_tool.encoder import Encoder
        from emb_tool.training.student import attach_head, fit_head, start_from_scratch

        job = self.job
        body = self.body
        if self.keep is not None:
            with runtime.main_first():
                if not (state / "body").exists():
                    half = state / "body.new"
                    shutil.rmtree(half, ignore_errors=True)
                    cut(body, self.keep, half)
                    half.rename(state / "body")
            body = Checkpoint.open(state / "body")
        runtime.reseed()  # what came before depends on whether the run was taken up
        encoder = Encoder.open(body, runtime, max_length=self.method.max_length, training=True)
        if job.from_scratch:
            start_from_scratch(encoder)
        like = (self.teacher or body).layout
        student = attach_head(
            encoder,
            targets.dim,
            targets.normalises,
            getattr(self.method, "head", "auto"),
            getattr(self.method, "bias", True),
            {**like.prompts, **prompts},
            like,
        )
        sample = corpus.train[:: max(1, len(corpus.train) // SAMPLE)][:SAMPLE]
        ids = tokenize_roles(student, corpus, sample, prompts)
        student.truncated = 0
        fit_head(student, ids, targets.read(sample))
        return student

    def _train(
        self,
        student: Encoder,
        corpus: Corpus,
        targets: Targets,
        prompts: dict[str, str],
        folder: Path,
        state: Path,
        runtime: Runtime,
    ) -> None:
        from emb_tool.training.loop import Trainer
        from emb_tool.training.stream import Stream, TokenCache, index_dtype

        method = self.method
        train, roles = corpus.train, corpus.roles
        if not len(train):
            raise Refused("no text is left to train on", "lower --holdout, or give more texts")

        def tokenize(indices: np.ndarray) -> list[np.ndarray]:
            return tokenize_roles(student, corpus, indices, prompts)

        pools = [train]
        if corpus.counts["queries"]:
            dtype = index_dtype(len(corpus))
            pools = [train[roles[train] == role].astype(dtype) for role in (0, 1)]
        total = max(1, round(method.epochs * method.cycles * len(train)))
        cache = TokenCache(state / f"tokens-{runtime.rank}.bin", len(corpus), tokenize)
        lengths = {name: student.prompt_length(prompt) for name, prompt in prompts.items()}
        stream = Stream(
            pools,
            cache,
            targets.read,
            batch_tokens=method.batch_tokens,
            total=total,
            seed=runtime.seed,
            share=method.query_share,
            separate=len(set(lengths.values())) > 1,
            rank=runtime.rank,
            world=runtime.world,
        )
        with self.progress.task("training", total, "texts") as advance:
            trainer = Trainer(
                student,
                method,
                stream,
                runtime,
                state / "train",
                score=lambda: self._score(student, corpus, targets, prompts),
                scores=self.job.scores,
                progress=lambda texts, loss: advance(
                    texts, "" if isnan(loss) else f"loss {loss:.4f}"
                ),
                on_warning=self.progress.warn,
                metrics=folder / "metrics.jsonl",
                prompt_length=lambda indices: lengths["query" if roles[indices[0]] else "document"],
                log=_tensorboard(folder) if runtime.is_main else None,
            )
            outcome = trainer.run()
        cache.close()
        if runtime.is_main:
            trainer.take_best()
            self._tell(outcome, student, total)

    def _score(
        self,
        student: Encoder,
        corpus: Corpus,
        targets: Targets,
        prompts: dict[str, str],
    ) -> Score:
        """The student on held-out texts and on the `--eval` tasks."""
        from emb_tool.evaluate.pair import Pair
        from emb_tool.training.loop import Score

        figures: dict[str, float] = {}
        key: float | None = None
        heldout = np.asarray(corpus.heldout)
        if len(heldout):
            vectors = encode_roles(student, corpus, heldout, prompts)
            goal = targets.read(heldout)
            loss = float(np.square(vectors - goal).sum(1).mean())
            norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(goal, axis=1)
            cosine = (vectors * goal).sum(1) / np.maximum(norms, 1e-12)
            figures |= {"heldout_loss": loss, "heldout_cosine": float(cosine.mean())}
            key = -loss
        mains = []
        tasks = [task for task in self.tasks if task.main and not task.needs_reference]
        if tasks:
            measures = run_tasks(tasks, Pair.of(student, "student"))
            for task in tasks:
                for measure in measures:
                    if measure.of == task.label and measure.name == task.main:
                        figures[f"{task.label} {task.main}"] = float(measure.value or 0.0)
                        mains.append(float(measure.value or 0.0))
        if mains:
            key = sum(mains) / len(mains)
        return Score(key, figures)

    def _tell(self, outcome: Outcome, student: Encoder, total: int) -> None:
        """Put the run into the report; be loud if it did harm."""
        facts = self.report.facts
        facts["training"] = {
            "texts": outcome.texts,
            "tokens": outcome.tokens,
            "steps": outcome.steps,
            "padding": round(1 - outcome.tokens / max(outcome.padded, 1), 4),
            "truncated": student.truncated,
            "wait_seconds": round(outcome.wait_seconds, 3),
            "score_seconds": round(outcome.score_seconds, 3),
            "split": outcome.split,
            "resumed_at": outcome.resumed_at,
            "best_at": outcome.best,
            "history": outcome.history,
        }
        self.report.timings["train_seconds"] = outcome.seconds
        self.report.timings["score_seconds"] = outcome.score_seconds
        if outcome.seconds:
            speed = outcome.texts / outcome.seconds
            self.report.measures.append(Measure("training speed", speed, "texts/s"))
        if student.truncated:
            self.progress.warn(
                f"{student.truncated:,} texts were longer than the {student.max_length} tokens "
                "that the student reads"
            )
        if outcome.best == 0 and outcome.history:
            self.progress.warn(
                "TRAINING DID HARM: no state was better than the initialisation, which is what "
                "was written; try a lower --lr, or more and better fitting texts"
            )
        elif outcome.best < outcome.texts:
            self.progress.warn(
                f"the best state was the one after {outcome.best:,} of {total:,} texts; "
                "that one was written"
            )

    def _write(
        self,
        student: Encoder,
        corpus: Corpus,
        targets: Targets,
        prompts: dict[str, str],
        folder: Path,
        state: Path,
    ) -> None:
        """The student's files, and the held-out texts that the check measures it on."""
        from emb_tool.training.student import checkpoint_dtype, write_router

        student.save(folder, checkpoint_dtype(self.body))
        if self.job.router and self.teacher is not None:
            write_router(folder, self.teacher, folder / "router", targets.dim)
        heldout = np.asarray(corpus.heldout)
        np.save(state / "heldout.npy", targets.read(heldout))
        with open(state / "heldout.jsonl", "w", encoding="utf-8") as file:
            for index in heldout:
                role = "query" if corpus.roles[index] else "document"
                line = {"text": corpus[int(index)], "prompt": prompts[role]}
                file.write(json.dumps(line) + "\n")

    # -- after the files are written --------------------------------------------------------------

    def check(self, folder: Path, state: Path) -> dict[str, Any]:
        """What the engine's child process is to measure on the written files."""
        return {
            "folder": str(folder),
            "heldout": [str(state / "heldout.jsonl"), str(state / "heldout.npy")],
            "tasks": list(self.job.eval),
            "reference": str(self.teacher.path) if self.teacher and self.job.eval else None,
            "min_retention": self.job.min_retention,
        }

    def summarise(self, report: Report) -> None:
        """The table on top: what went in, what came out."""
        before = f"{self.teacher.weight_bytes() / 1e6:,.1f} MB" if self.teacher else "-"
        after = report.value("weights") or 0
        rows = [["weights", before, f"{after / 1e6:,.1f} MB"]]
        training = report.facts["training"]
        history = training["history"]
        first = history[0] if history else {}
        best = next((h for h in history if h["texts"] == training["best_at"]), first)
        table = Table("student", ["", "at start", "trained"])
        for name in best:
            if name != "texts":
                table.rows.append([name, f"{first[name]:.4f}", f"{best[name]:.4f}"])
        if table.rows:
            report.tables.insert(0, table)
        report.tables.insert(0, Table("distilled", ["", "teacher", "student"], rows))


def tokenize_roles(
    encoder: Encoder, corpus: Corpus, indices: np.ndarray, prompts: dict[str, str]
) -> list[np.ndarray]:
    """Token ids of corpus texts, each with the prompt of its role."""
    roles = np.asarray(corpus.roles[indices])
    ids: list[np.ndarray] = [np.zeros(0, np.int32)] * len(indices)
    for role, name in enumerate(("document", "query")):
        mine = np.flatnonzero(roles == role)
        found = encoder.tokenize(corpus.texts(indices[mine]), prompts[name])
        for position, row in zip(mine, found, strict=True):
            ids[position] = row
    return ids


def encode_roles(
    encoder: Encoder, corpus: Corpus, indices: np.ndarray, prompts: dict[str, str]
) -> np.ndarray:
    """Vectors of corpus texts, each with the prompt of its role, (n, dim) float32."""
    roles = np.asarray(corpus.roles[indices])
    vectors = np.empty((len(indices), encoder.dim), np.float32)
    truncated = encoder.truncated
    for role, name in enumerate(("document", "query")):
        mine = roles == role
        if mine.any():
            vectors[mine] = encoder.encode(corpus.texts(indices[mine]), prompts[name])
    encoder.truncated = truncated
    return vectors


def _tensorboard(folder: Path) -> Any:
    """A function that logs figures, where TensorBoard is installed; else None."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer = SummaryWriter(str(folder / "tensorboard"))

    def log(figures: dict[str, float], texts: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, texts)

    return log
