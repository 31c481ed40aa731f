"""The training loop: AdamW over token-budget batches, watched, and resumed to the bit.

What is trained and against what is the caller's, a step's gradients are `step`'s; the loop owns the
schedule, the state on disk, the measuring on the way and the way out when it is interrupted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from emb_tool.checkpoint.files import write_atomically
from emb_tool.checkpoint.result_cache import save_tensors
from emb_tool.errors import EmbToolError, Interrupted, InvalidInput, RunFailed, resumable_failure
from emb_tool.method import Training
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime
from emb_tool.runtime.distributed import full_tensor, local_shard
from emb_tool.runtime.signals import DeferredSignals
from emb_tool.training.batches import Batch, BatchStream, DataCursor
from emb_tool.training.losses import Counts, Losses
from emb_tool.training.outcome import Outcome, Score
from emb_tool.training.state import States, check_saved, checksum, load_tensors
from emb_tool.training.step import Gradients
from emb_tool.training.streaming import StreamedTexts

SAVE_SECONDS = 50.0
"""A stop repeats at most this much work (and the step under way)."""

SYNC_STEPS = 20
"""Steps after which the loss is read, which waits for the device."""


def rate(method: Training, done: float) -> float:
    """Learning rate after a share of the run.

    In each of `cycles` equal parts it rises linearly from 0 over `warmup` and falls linearly to 0:
    lr * min(x / warmup, (1 - x) / (1 - warmup)), x the share of the cycle.

    Args:
        method: The settings.
        done: Texts used over texts of the run, in [0, 1].
    """
    x = done * method.cycles % 1.0 if done < 1.0 else 1.0
    rising = x / method.warmup if method.warmup > 0 else 1.0
    return method.lr * max(0.0, min(rising, (1.0 - x) / (1.0 - method.warmup)))


class Trainer:
    """One run.

    Args:
        encoder: The student, weights in float32, on the device.
        method: Settings and loss.
        stream: The batches.
        runtime: Device and processes.
        folder: For the state and the best weights.
        score: Measures the student; called at the start, `scores` times on the way, at the end.
        scores: How often.
        progress: Called with (texts of the step, loss as last measured).
        on_warning: Called with a sentence.
        metrics: Lines of figures are added to this file.
        prompt_length: Tokens that pooling leaves out, for the texts of one batch.
        show: See `Losses`.
        log: Called with figures and texts used, beside `metrics`.
        fsdp: Cut the student over the processes.
        skip: Called with the texts that a run before has used.
        on_step: Called before each step with its number.
    """

    def __init__(
        self,
        encoder: Encoder,
        method: Training,
        stream: BatchStream | StreamedTexts,
        runtime: Runtime,
        folder: Path,
        *,
        score: Callable[[], Score],
        scores: int,
        progress: Callable[[int, float], None],
        on_warning: Callable[[str], None],
        metrics: Path | None = None,
        prompt_length: Callable[[np.ndarray], int] = lambda indices: 0,
        show: Callable[[int], str] | None = None,
        log: Callable[[dict[str, float], int], None] | None = None,
        fsdp: bool = False,
        skip: Callable[[int], None] = lambda texts: None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.encoder, self.method, self.stream, self.runtime = encoder, method, stream, runtime
        self.states = States(folder)
        self.folder = folder
        self.score, self.scores = score, scores
        self.progress, self.on_warning, self.skip = progress, on_warning, skip
        self.metrics, self.log = metrics, log
        self.on_step = on_step
        self.signals = DeferredSignals()
        self.outcome = Outcome(split=method.grad_accumulation)
        self.place = DataCursor()
        self.gradients = Gradients(
            encoder, method, runtime, stream.sample(), prompt_length, fsdp=fsdp
        )
        self.student, self.optimizer = self.gradients.student, self.gradients.optimizer
        self.losses = Losses(encoder, show)
        self._loss = math.nan
        self._lr = 0.0
        self._leave = self._due = 0
        self._saved = time.perf_counter()

    def run(self) -> Outcome:
        """Train to the end, or until interrupted.

        Raises:
            Interrupted: Ctrl-C or SIGTERM, after the state was saved.
            RunFailed: A loss that is not finite; memory out for a single text; another process
                gone.
        """
        with self.runtime.translate_peer_errors():
            return self._run()

    def _run(self) -> Outcome:
        facts = self.states.load(self.student, self.optimizer.optimizers)
        if facts:
            self.place = DataCursor(*facts["place"])
            self.outcome = Outcome(**facts["outcome"])
            self.outcome.resumed_at = self.place.texts
            self.skip(self.place.texts)
            self.optimizer.scaler.load_state_dict(facts["scaler"])
            self.losses.restore(Counts(*facts["loss"]))
        self._drop_metrics_after(self.place.texts if facts else -1)
        if not facts:
            self._measure()
        done = self.outcome
        next_score = self._next_score()
        clock = self._saved = time.perf_counter()
        with self.signals as signals:
            batches = self.stream.ahead(self.place)
            for batch in batches:
                waited = time.perf_counter()
                done.wait_seconds += waited - clock
                # at the middle of the step, so that a run of one step learns something
                middle = self.place.texts + batch.texts / 2
                self._lr = rate(self.method, middle / self.stream.total)
                if self.on_step:
                    self.on_step(done.steps)
                self._step(batch)
                self.place = batch.after
                done.steps += 1
                done.texts = self.place.texts
                self._read_loss(done.steps)
                self.progress(batch.texts, self._loss)
                now = time.perf_counter()
                done.seconds += now - clock
                clock = now
                if self.place.texts >= next_score or self.place.texts >= self.stream.total:
                    self._measure()
                    next_score = self._next_score()
                    clock = time.perf_counter()
                if self.runtime.world == 1:
                    self._leave, self._due = signals.number, now - self._saved > SAVE_SECONDS
                if self._leave:
                    self._save()
                    self.runtime.barrier()
                    batches.close()  # type: ignore[attr-defined]
                    raise self.runtime.collective_error(
                        Interrupted(self._leave, "go on with --resume")
                    )
                if self._due:
                    self._save()
                    clock = self._saved = time.perf_counter()
        self._save()
        return done

    def _drop_metrics_after(self, texts: int) -> None:
        """Leave out the lines of work that is about to be done again."""
        if self.metrics and self.metrics.exists() and self.runtime.is_main:
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [x for x in lines if x.endswith("\n") and json.loads(x)["texts"] <= texts]
            write_atomically(self.metrics, "".join(kept))

    def _next_score(self) -> float:
        step = self.stream.total / max(self.scores, 1)
        return (math.floor(self.place.texts / step + 1e-9) + 1) * step

    def _step(self, batch: Batch) -> None:
        """One step of the optimiser."""
        while True:
            split = self.outcome.split
            of_all: tuple[Any, ...] = ()
            if self.gradients.needs_moment(split):
                moment = self._agree(batch, partial(self.gradients.moment, batch, split))
                if moment is None:
                    continue
                self.runtime.all_reduce([moment])
                of_all = moment, batch.texts
            losses = self._agree(batch, partial(self.gradients.add, batch, split, *of_all))
            if losses is not None:
                break
        self.losses.add(batch, losses)
        self.optimizer.step(self._lr)

    def _agree(self, batch: Batch, work: Callable[[], Tensor]) -> Tensor | None:
        """Do a part of a step; if memory runs out, here or elsewhere, let all do it in more parts.

        A signal that any of them has got is noted on the way: all leave after the same step.

        Returns:
            What the work returns; None if it is to be done again.
        """
        found, state, longest = None, 0, 0
        try:
            found = work()
        except InvalidInput as error:  # the student's own modules fail on these texts
            if not self.outcome.steps:
                raise
            raise resumable_failure(error) from error
        except Exception as error:
            if not Runtime.is_out_of_memory(error):
                raise
            state = 1
            if self.outcome.split >= len(batch.ids):
                state, longest = 2, max(len(row) for row in batch.ids)
            if self.encoder.sharded:  # others wait for our part of the weights, not for a word
                raise
        due = time.perf_counter() - self._saved > SAVE_SECONDS
        told = self.runtime.largest(state, longest, self.signals.number, due)
        state, longest, self._leave, self._due = map(int, told)
        if not state:
            return found
        self.optimizer.forget()
        self.gradients.disable_graphs()  # steps in parts are not recorded, and memory is short
        self.runtime.free_memory()
        if state == 2:
            said = f"memory ran out for one text of {longest} tokens"
            hint = "lower --max-length, then go on with --resume"
            raise self.runtime.collective_error(RunFailed(said, hint))
        self.outcome.split *= 2
        self.on_warning(f"memory ran out: steps are now split into {self.outcome.split} parts")
        return None

    def _read_loss(self, step: int) -> None:
        """The mean loss since it was last read; not at each step, since it waits for the device."""
        if step % SYNC_STEPS and self.place.texts < self.stream.total:
            return
        counts = self.losses.reduced_counts()
        self.outcome.tokens += int(counts.tokens)
        self.outcome.padded += int(counts.padded)
        self._loss = counts.loss / counts.texts
        if not math.isfinite(self._loss):
            raise self._diverged("loss is")
        self.losses.reset()
        self._write({"loss": self._loss, "lr": self._lr})

    def _diverged(self, what: str) -> EmbToolError:
        """What all processes end with: rank 0 says which texts it was, whoever had them."""
        state = self.states.texts() if self.runtime.is_main else None
        kept = f"; the state after {state:,} texts is kept" if state is not None else ""
        culprit = self.losses.describe_nonfinite(self.outcome.steps)
        return self.runtime.collective_error(
            RunFailed(
                f"the {what} not finite after {self.place.texts:,} texts: {culprit}{kept}",
                "leave out texts that are named, or start anew with a lower --lr (and --overwrite)",
            )
        )

    def _write(self, figures: dict[str, float]) -> None:
        if self.metrics and self.runtime.is_main:
            line = {"texts": self.place.texts, "step": self.outcome.steps, **figures}
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self.log and self.runtime.is_main:
            self.log(figures, self.place.texts)

    def _measure(self) -> None:
        """Score the student, all processes together, and keep it if it is the best so far."""
        started = time.perf_counter()
        score = self.score()
        self.student.train(self.method.dropout)
        self._write(score.figures)
        if self.outcome.note(score):
            weights = {
                name: full_tensor(value) for name, value in self.student.state_dict().items()
            }
            if self.runtime.is_main:
                save_tensors(self._best_file(), weights)
                self.outcome.best_sum = checksum(self._best_file())
        self.runtime.barrier()
        self.outcome.score_seconds += time.perf_counter() - started

    def _best_file(self) -> Path:
        return self.folder / f"best-{self.outcome.best}.safetensors"

    def take_best(self) -> None:
        """Give the student its best state back, whole where it was cut: to be saved, not run."""
        check_saved(self._best_file(), self.outcome.best_sum)
        best = load_tensors(self._best_file())
        if not self.encoder.sharded:
            self.student.load_state_dict(best)
            return
        for name, _ in list(self.student.named_parameters()):
            home, _, last = name.rpartition(".")
            part = nn.Parameter(best[name], requires_grad=False)
            setattr(self.student.get_submodule(home), last, part)

    def _save(self) -> None:
        """Write the state; all processes take part, and one writes."""
        sharded, main = self.encoder.sharded, self.runtime.is_main
        bad = not all(bool(local_shard(p).isfinite().all()) for p in self.student.parameters())
        if self.runtime.largest(bad)[0]:
            raise self._diverged("weights are")
        self.stream.flush()
        losses = self.losses.reduced_counts()
        if not (main or sharded):
            return
        facts = {
            "place": list(self.place),
            "outcome": {**vars(self.outcome), "resumed_at": None},
            "loss": list(losses),
            "scaler": self.optimizer.scaler.state_dict(),
        }
        self.states.save(self.student, self.optimizer.optimizers, facts, write=main)
        for other in self.folder.glob("best-*.safetensors") if main else ():
            if other != self._best_file():
                other.unlink()
