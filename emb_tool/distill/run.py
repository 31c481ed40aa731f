"""Runner of `embtool distill`."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from emb_tool.checkpoint.own_files import METRICS, TENSORBOARD, own_file
from emb_tool.checkpoint.prompts import format_prompt
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.data.corpus import HELD_OUT_SHARE, Corpus, check_parts
from emb_tool.data.text_options import TextOptions
from emb_tool.distill.job import DistillJob
from emb_tool.distill.measure import record_outcome, score_student, tokenize_roles
from emb_tool.distill.setup import Setup
from emb_tool.distill.streaming import check_sources, streamed_batches, write_heads
from emb_tool.distill.student import open_student, write_student
from emb_tool.distill.teachers import open_teacher
from emb_tool.distill.truncation import TruncationCounter, report_truncated, truncated_by_role
from emb_tool.evaluate.heldout_check import HeldoutCheck
from emb_tool.plan import Plan
from emb_tool.report import Report, Table
from emb_tool.runner import CheckpointRunner, Options, RunContext
from emb_tool.training.store import VectorStore
from emb_tool.training.vectors_file import FileVectors

if TYPE_CHECKING:
    from emb_tool.model.encoder import Encoder
    from emb_tool.runtime.check_process import Check, CheckTarget
    from emb_tool.runtime.device import Runtime
    from emb_tool.training.outcome import Score
    from emb_tool.training.targets import Targets


class DistillRunner(CheckpointRunner):
    """The runner of `embtool distill`.

    Args:
        job: The resolved job.
        options: Options of the run.
        report: The report to fill.
    """

    job: DistillJob

    def __init__(self, job: DistillJob, options: Options, report: Report) -> None:
        super().__init__(job, options, report)
        self.method = job.method
        self.setup = Setup(job, options.progress)
        self.papers = [job.method.paper]
        self._teacher: Any = None

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """The checkpoints that are read, by the name given by the user."""
        return self.setup.inputs

    @property
    def before(self) -> Checkpoint | None:
        """The teacher, if it is a checkpoint."""
        return self.setup.teacher

    def data(self) -> dict[str, dict[str, str]]:
        """Digests of the local files of texts and vectors, by the name given by the user."""
        return self.setup.data()

    def plan(self) -> Plan:
        """Check headers, settings and local files, and plan the output."""
        return self.setup.plan()

    # -- run --------------------------------------------------------------------------------------

    def run(self, context: RunContext) -> None:
        """Train the student and write it."""
        job, folder, state, runtime = self.job, context.folder, context.state, context.torch
        clock = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal clock
            now = time.perf_counter()
            self.report.timings[name] = self.report.timings.get(name, 0.0) + now - clock
            clock = now

        if job.stream:
            runtime.on_main(lambda: check_sources(self.setup, state))
        with self.progress.task("reading the texts"):
            runtime.on_main(lambda: self._corpus(state))
            corpus = self._corpus(state)
        counts: dict[str, Any] = dict(corpus.counts)
        if job.stream:
            counts = {"epoch": self.setup.epoch_texts, "head": counts}
        self.report.facts["texts"] = counts
        corpus.tell(self.progress.note)
        if corpus.counts["duplicates"]:
            self.progress.say(f"{corpus.counts['duplicates']:,} duplicate texts dropped")
        lap("read_seconds")
        targets, prompts = self._targets(corpus, state, runtime), self.setup.prompts
        self._report_prompts()
        lap("teacher_seconds")
        with self.progress.task("opening the student"):
            student = open_student(self.setup, corpus, targets, prompts, state, runtime)
        lap("student_seconds")
        self._train(student, corpus, targets, prompts, folder, state, runtime)
        clock = time.perf_counter()
        with self.progress.task("writing the student"):
            if runtime.is_main:
                write_student(self.setup, student, corpus, targets, prompts, folder, state)
            runtime.barrier()
        lap("write_seconds")

    def _corpus(self, state: Path) -> Corpus:
        """The texts on disk; for a stream its first texts, for evaluation and the head."""
        share = 2 if self.job.stream else HELD_OUT_SHARE
        corpus = Corpus.open(state / "corpus") or self._read(state, share)
        counts = len(corpus.train), len(corpus.heldout)
        if warning := check_parts("--texts", *counts, self.job.holdout, share=share):
            self.progress.warn(warning)
        return corpus

    def _read(self, state: Path, share: int) -> Corpus:
        """Read the texts, at most one in `share` of which is held out."""
        job, texts, queries = self.job, list(self.job.texts), list(self.job.queries)
        if job.stream:
            texts, queries = write_heads(self.setup, state).values()
        return Corpus.build(
            state / "corpus",
            texts,
            queries,
            options=TextOptions() if job.stream else self.setup.options,
            query_options=TextOptions() if job.stream else self.setup.query_options,
            limit=job.limit,
            holdout=job.holdout,
            share=share,
            sample=job.fraction,
            seed=job.seed,
        )

    def _report_prompts(self) -> None:
        """Report the prompts of teacher and student."""
        job, prompts = self.job, self.setup.prompts
        by_texts = {"queries": prompts["query"]} if job.queries else {}
        by_texts |= {"documents": prompts["document"]} if job.texts else {}
        self.report.facts["prompts"] = by_texts
        rows = [[name, format_prompt(text)] for name, text in by_texts.items()]
        self.report.tables.append(Table("prompts in training", ["texts", "prompt"], rows))

    def _targets(self, corpus: Corpus, state: Path, runtime: Runtime) -> Targets:
        """Target vectors of the texts."""
        from emb_tool.training.targets import gather_targets

        job = self.job
        if self.setup.teacher_kind == "file":
            return FileVectors(
                Path(job.teacher),
                corpus,
                column=job.teacher_column,
                dims=job.teacher_dim,
                scratch=state,
                on_warning=self.progress.warn,
            )
        with self.progress.task("opening the teacher"):
            teacher = open_teacher(self.setup, runtime, self.progress)
        store = VectorStore(
            Path(job.store).expanduser() if job.store else VectorStore.default_root(),
            self.progress.warn,
        )
        if job.stream:  # otherwise its memory is freed for the student
            self._teacher = teacher, store
        encoded = TruncationCounter(state, runtime.rank)
        with self.progress.task("encoding by the teacher", len(corpus), "texts") as advance:
            targets = gather_targets(
                corpus,
                teacher,
                store,
                dims=job.teacher_dim,
                progress=advance,
                skip=advance.skip,
                rank=runtime.rank,
                world=runtime.world,
                meet=runtime.barrier if job.fsdp and self.setup.teacher is not None else None,
                note=encoded.add,
            )
        runtime.barrier()  # all processes have saved their counts
        texts, truncated = encoded.all()
        self.report.facts["teacher"] = {
            "name": teacher.name,
            "max_length": teacher.space("document").max_length,
            "texts_encoded": texts,
            "texts_truncated": truncated,
        }
        self.report.facts["store"] = str(store.root)
        self.progress.say(f"teacher vectors are stored in {store.root} (embtool store)", level=2)
        return targets

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

        method, roles = self.method, corpus.roles
        lengths = {name: student.prompt_length(prompt) for name, prompt in prompts.items()}
        stream: Any
        separate = len(set(lengths.values())) > 1
        if self.job.stream:
            teacher, store = self._teacher
            stream = streamed_batches(
                self.setup, corpus, student, teacher, store, prompts, runtime, separate=separate
            )
        else:
            stream = self._stream(student, corpus, targets, prompts, separate, state, runtime)
        total = stream.total

        def prompt_length(indices: np.ndarray) -> int:
            is_query = indices[0] if self.job.stream else roles[indices[0]]
            return lengths["query" if is_query else "document"]

        def score() -> Score:
            with self.progress.task("measuring the student"):
                return score_student(student, corpus, targets, prompts, self.setup.tasks)

        with self.progress.task("training", total, "texts") as advance:
            trainer = Trainer(
                student,
                method,
                stream,
                runtime,
                state / "train",
                score=score,
                scores=self.job.num_evals,
                progress=lambda texts, loss: advance(
                    texts, "" if isnan(loss) else f"loss {loss:.4f}"
                ),
                on_warning=self.progress.warn,
                metrics=own_file(folder, METRICS),
                prompt_length=prompt_length,
                text_at=None if self.job.stream else lambda index: corpus.texts([index])[0],
                log=_tensorboard(folder) if self.job.tensorboard and runtime.is_main else None,
                fsdp=self.job.fsdp,
                skip=advance.skip,
            )
            outcome = trainer.run()
        stream.close()
        if self.job.stream and stream.teacher_cache:
            misses, hits = runtime.sum(stream.teacher_cache.misses, stream.teacher_cache.hits)
            self.report.facts["teacher"] |= {"asked": int(misses), "found": int(hits)}
        if runtime.is_main:
            trainer.take_best()
            record_outcome(self.report, self.progress, outcome, total)
            truncated = (
                stream.truncated
                if self.job.stream
                else truncated_by_role(stream.cache.truncated, corpus)
            )
            report_truncated(self.report, self.progress, truncated, student.max_length)

    def _stream(
        self,
        student: Encoder,
        corpus: Corpus,
        targets: Targets,
        prompts: dict[str, str],
        separate: bool,
        state: Path,
        runtime: Runtime,
    ) -> Any:
        """Batches of the texts on disk."""
        from emb_tool.training.batches import BatchStream, TokenCache, index_dtype

        method, train, roles = self.method, corpus.train, corpus.roles
        pools = [train]
        if corpus.counts["queries"]:
            dtype = index_dtype(len(corpus))
            pools = [train[roles[train] == role].astype(dtype) for role in (0, 1)]
        return BatchStream(
            pools,
            TokenCache(
                state / f"tokens-{runtime.rank}.bin",
                len(corpus),
                lambda indices: tokenize_roles(student, corpus, indices, prompts),
            ),
            targets.read,
            batch_tokens=method.batch_tokens,
            total=max(1, round(method.epochs * method.cycles * len(train))),
            seed=runtime.seed,
            share=method.query_share,
            separate=separate,
            rank=runtime.rank,
            world=runtime.world,
        )

    # -- after the files are written --------------------------------------------------------------

    def check(self, context: RunContext, target: CheckTarget) -> Check:
        """Compare vectors of held-out texts with the teacher's."""
        teacher, state = self.setup.teacher, context.state
        return HeldoutCheck(
            target=target,
            texts=state / "heldout.jsonl",
            vectors=state / "heldout.npy",
            against="the teacher's vectors",
            tasks=self.job.eval,
            reference=teacher.path if teacher and self.job.eval else None,
            min_retention=self.job.min_retention,
        )

    def summarize(self, report: Report) -> None:
        """Add the tables of sizes and states."""
        before = f"{self.setup.teacher.weight_bytes() / 1e6:,.1f} MB" if self.setup.teacher else "-"
        after = report.value("weights") or 0
        rows = [["weights", before, f"{after / 1e6:,.1f} MB"]]
        training = report.facts["training"]
        history, choice = training["history"], training["choice"]
        states = {"at start": history[0], "written": choice["chosen"], "last": choice["last"]}
        if choice["chosen"] == choice["last"]:
            del states["last"]
        table = Table("student", ["", *states])
        table.rows.append(["after texts", *(f"{state['texts']:,}" for state in states.values())])
        for name in history[0]:
            if name != "texts":
                table.rows.append([name, *(f"{state[name]:.4f}" for state in states.values())])
        report.tables.insert(0, table)
        report.tables.insert(0, Table("distilled", ["", "teacher", "student"], rows))


def _tensorboard(folder: Path) -> Callable[[dict[str, float], int], None]:
    """A function that logs figures."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(own_file(folder, TENSORBOARD)))

    def log(figures: dict[str, float], texts: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, texts)

    return log
