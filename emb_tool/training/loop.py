"""The training loop: AdamW over token-budget batches, with bit-identical resume.

The caller provides student, batches and targets, and `step` computes gradients. The loop owns the
learning rate schedule, the saved states, evaluation during training, and interruption.
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
"""Seconds between saved states: the most work that is repeated after an interruption."""

SYNC_STEPS = 20
"""Steps between reads of the loss, which synchronize with the device."""


def learning_rate(method: Training, fraction: float) -> float:
    """Learning rate at a fraction of the run.

    In each of `cycles` equal parts it rises linearly from 0 over `warmup` and falls linearly to 0:
    lr * min(x / warmup, (1 - x) / (1 - warmup)), x the fraction of the cycle.

    Args:
        method: The settings.
        fraction: Texts used over texts of the run, in [0, 1].
    """
    x = fraction * method.cycles % 1.0 if fraction < 1.0 else 1.0
    rising = x / method.warmup if method.warmup > 0 else 1.0
    return method.lr * max(0.0, min(rising, (1.0 - x) / (1.0 - method.warmup)))


class Trainer:
    """One training run.

    Args:
        encoder: The student, weights in float32, on the device.
        method: Settings and loss.
        stream: The batches.
        runtime: Device and processes.
        folder: Folder for saved states and the best weights.
        score: Evaluates the student; called at the start, `scores` times during the run, and at
            the end.
        scores: Number of evaluations during the run.
        progress: Called with (texts of the step, last known loss).
        on_warning: Called with warnings.
        metrics: JSON lines file to which figures are appended.
        prompt_length: Maps indices of a batch to the prompt tokens excluded from pooling.
        text_at: See `Losses`.
        log: Called with figures and texts used, in addition to `metrics`.
        fsdp: Shard the student over the processes.
        skip: Called with the number of texts that an earlier run has used.
        on_step: Called before each step with its index.
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
        text_at: Callable[[int], str] | None = None,
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
        self.cursor = DataCursor()
        self.gradients = Gradients(
            encoder, method, runtime, stream.sample(), prompt_length, fsdp=fsdp
        )
        self.student, self.optimizer = self.gradients.student, self.gradients.optimizer
        self.losses = Losses(encoder, text_at)
        self._loss = math.nan
        self._lr = 0.0
        self._signal = self._save_due = 0
        self._saved = time.perf_counter()

    def run(self) -> Outcome:
        """Train to the end, or until interrupted.

        Raises:
            Interrupted: Ctrl-C or SIGTERM, after the state was saved.
            RunFailed: A loss is not finite; a single text does not fit in memory; another process
                has ended.
        """
        with self.runtime.translate_peer_errors():
            return self._run()

    def _run(self) -> Outcome:
        facts = self.states.load(self.student, self.optimizer.optimizers)
        if facts:
            self.cursor = DataCursor(*facts["cursor"])
            self.outcome = Outcome(**facts["outcome"])
            self.outcome.resumed_at = self.cursor.texts
            self.skip(self.cursor.texts)
            self.optimizer.scaler.load_state_dict(facts["scaler"])
            self.losses.restore(Counts(*facts["loss"]))
        self._truncate_metrics(self.cursor.texts if facts else -1)
        if not facts:
            self._evaluate()
        outcome = self.outcome
        next_score = self._next_score()
        clock = self._saved = time.perf_counter()
        with self.signals as signals:
            batches = self.stream.prefetched(self.cursor)
            for batch in batches:
                batch_ready = time.perf_counter()
                outcome.wait_seconds += batch_ready - clock
                # at the middle of the step, so the rate of a run of one step is not 0
                middle = self.cursor.texts + batch.texts / 2
                self._lr = learning_rate(self.method, middle / self.stream.total)
                if self.on_step:
                    self.on_step(outcome.steps)
                self._step(batch)
                self.cursor = batch.next_cursor
                outcome.steps += 1
                outcome.texts = self.cursor.texts
                self._read_loss(outcome.steps)
                self.progress(batch.texts, self._loss)
                now = time.perf_counter()
                outcome.seconds += now - clock
                clock = now
                if self.cursor.texts >= next_score or self.cursor.texts >= self.stream.total:
                    self._evaluate()
                    next_score = self._next_score()
                    clock = time.perf_counter()
                if self.runtime.world == 1:
                    self._signal, self._save_due = signals.number, now - self._saved > SAVE_SECONDS
                if self._signal:
                    self._save()
                    self.runtime.barrier()
                    batches.close()  # type: ignore[attr-defined]
                    raise self.runtime.collective_error(
                        Interrupted(self._signal, "go on with --resume")
                    )
                if self._save_due:
                    self._save()
                    clock = self._saved = time.perf_counter()
        self._save()
        return outcome

    def _truncate_metrics(self, texts: int) -> None:
        """Remove the lines of steps that will be repeated."""
        if self.metrics and self.metrics.exists() and self.runtime.is_main:
            lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            remaining = [x for x in lines if x.endswith("\n") and json.loads(x)["texts"] <= texts]
            write_atomically(self.metrics, "".join(remaining))

    def _next_score(self) -> float:
        step = self.stream.total / max(self.scores, 1)
        return (math.floor(self.cursor.texts / step + 1e-9) + 1) * step

    def _step(self, batch: Batch) -> None:
        """One optimizer step."""
        while True:
            split = self.outcome.split
            moment_args: tuple[Any, ...] = ()
            if self.gradients.needs_moment(split):
                moment = self._synchronize(batch, partial(self.gradients.moment, batch, split))
                if moment is None:
                    continue
                self.runtime.all_reduce([moment])
                moment_args = moment, batch.texts
            losses = self._synchronize(
                batch, partial(self.gradients.add, batch, split, *moment_args)
            )
            if losses is not None:
                break
        self.losses.add(batch, losses)
        self.optimizer.step(self._lr)

    def _synchronize(self, batch: Batch, work: Callable[[], Tensor]) -> Tensor | None:
        """Run a part of a step; if any process runs out of memory, split the step on all processes.

        Also shares received signals, so that all processes stop after the same step.

        Returns:
            The result of `work`; None if it must be repeated.
        """
        result, state, longest = None, 0, 0
        try:
            result = work()
        except InvalidInput as error:  # the student's modules fail on these texts
            if not self.outcome.steps:
                raise
            raise resumable_failure(error) from error
        except Exception as error:
            if not Runtime.is_out_of_memory(error):
                raise
            state = 1
            if self.outcome.split >= len(batch.ids):
                state, longest = 2, max(len(row) for row in batch.ids)
            if self.encoder.sharded:  # other processes wait for this process's shard
                raise
        save_due = time.perf_counter() - self._saved > SAVE_SECONDS
        maxima = self.runtime.all_reduce_max(state, longest, self.signals.number, save_due)
        state, longest, self._signal, self._save_due = map(int, maxima)
        if not state:
            return result
        self.optimizer.zero_grad()
        self.gradients.disable_graphs()  # split steps are not captured, and memory is short
        self.runtime.free_memory()
        if state == 2:
            message = f"memory ran out for one text of {longest} tokens"
            hint = "lower --max-length, then go on with --resume"
            raise self.runtime.collective_error(RunFailed(message, hint))
        self.outcome.split *= 2
        self.on_warning(f"memory ran out: steps are now split into {self.outcome.split} parts")
        return None

    def _read_loss(self, step: int) -> None:
        """Read the mean loss every `SYNC_STEPS` steps, since this synchronizes with the device."""
        if step % SYNC_STEPS and self.cursor.texts < self.stream.total:
            return
        counts = self.losses.reduced_counts()
        self.outcome.tokens += int(counts.tokens)
        self.outcome.padded += int(counts.padded)
        self._loss = counts.loss / counts.texts
        if not math.isfinite(self._loss):
            raise self._divergence_error("loss is")
        self.losses.reset()
        self._log_figures({"loss": self._loss, "lr": self._lr})

    def _divergence_error(self, subject: str) -> EmbToolError:
        """The error that all processes raise; it names the texts with a non-finite loss."""
        state = self.states.texts() if self.runtime.is_main else None
        saved = f"; the state after {state:,} texts is saved" if state is not None else ""
        cause = self.losses.describe_nonfinite(self.outcome.steps)
        return self.runtime.collective_error(
            RunFailed(
                f"the {subject} not finite after {self.cursor.texts:,} texts: {cause}{saved}",
                "remove the named texts, or start again with a lower --lr (and --overwrite)",
            )
        )

    def _log_figures(self, figures: dict[str, float]) -> None:
        if self.metrics and self.runtime.is_main:
            line = {"texts": self.cursor.texts, "step": self.outcome.steps, **figures}
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if self.log and self.runtime.is_main:
            self.log(figures, self.cursor.texts)

    def _evaluate(self) -> None:
        """Evaluate the student on all processes, and save it if it is the best so far."""
        started = time.perf_counter()
        score = self.score()
        self.student.train(self.method.dropout)
        self._log_figures(score.figures)
        if self.outcome.add_score(score):
            weights = {
                name: full_tensor(value) for name, value in self.student.state_dict().items()
            }
            if self.runtime.is_main:
                save_tensors(self._best_file(), weights)
                self.outcome.best_checksum = checksum(self._best_file())
        self.runtime.barrier()
        self.outcome.score_seconds += time.perf_counter() - started

    def _best_file(self) -> Path:
        return self.folder / f"best-{self.outcome.best}.safetensors"

    def take_best(self) -> None:
        """Load the best state into the student, with full weights if it is sharded, for saving."""
        check_saved(self._best_file(), self.outcome.best_checksum)
        best = load_tensors(self._best_file())
        if not self.encoder.sharded:
            self.student.load_state_dict(best)
            return
        for name, _ in list(self.student.named_parameters()):
            module_path, _, attribute = name.rpartition(".")
            part = nn.Parameter(best[name], requires_grad=False)
            setattr(self.student.get_submodule(module_path), attribute, part)

    def _save(self) -> None:
        """Save the state; called on all processes, one of which writes."""
        sharded, main = self.encoder.sharded, self.runtime.is_main
        diverged = not all(bool(local_shard(p).isfinite().all()) for p in self.student.parameters())
        if self.runtime.all_reduce_max(diverged)[0]:
            raise self._divergence_error("weights are")
        self.stream.flush()
        losses = self.losses.reduced_counts()
        if not (main or sharded):
            return
        facts = {
            "cursor": list(self.cursor),
            "outcome": {**vars(self.outcome), "resumed_at": None},
            "loss": list(losses),
            "scaler": self.optimizer.scaler.state_dict(),
        }
        self.states.save(self.student, self.optimizer.optimizers, facts, write=main)
        for other in self.folder.glob("best-*.safetensors") if main else ():
            if other != self._best_file():
                other.unlink()
