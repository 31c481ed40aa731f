"""The training loop: AdamW over token-budget batches, watched, and resumed to the bit.

What is trained and against what is the caller's; the loop owns the optimiser, the schedule, the
state on disk, the measuring on the way and the way out when it is interrupted.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from emb_tool.checkpoint.files import write_atomically
from emb_tool.encoder import Encoder
from emb_tool.errors import EmbToolError, Failed, Interrupted
from emb_tool.method import Training
from emb_tool.ops.products import quicken
from emb_tool.processes import own_part, whole
from emb_tool.runtime import Runtime
from emb_tool.signals import DeferredSignals
from emb_tool.training.losses import Counts, Losses
from emb_tool.training.optimizer import Optimizer
from emb_tool.training.outcome import Outcome, Score
from emb_tool.training.spread import second_moment
from emb_tool.training.state import States, check_saved, checksum, load_tensors, save_tensors
from emb_tool.training.stream import Batch, Place, Stream
from emb_tool.training.streamed import StreamedTexts

SAVE_SECONDS = 50.0
"""A stop repeats at most this much work (and the step under way)."""

TOGETHER = 20
"""Steps after which the loss is read, which waits for the device."""


class Loss(Protocol):
    """What a training method adds to the loop's settings."""

    def loss(self, vectors: Tensor, targets: Tensor, *of_all: Any) -> Tensor:
        """Loss of each text: (batch,) from (batch, dim) vectors and targets.

        A method with a weight `gor` that is not 0 has a term over all pairs of a step: where a step
        is in parts, `loss` is also given the second moment of all vectors, and their number.
        """


class Student(nn.Module):
    """An encoder as one module, so that Accelerate and torch.compile wrap the whole of it."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.model = encoder.model

    def forward(self, features: dict[str, Any]) -> Tensor:
        """Vectors of a batch, (batch, dim) float32."""
        vectors: Tensor = self.model(dict(features))["sentence_embedding"]
        return vectors.float()


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
    """

    def __init__(
        self,
        encoder: Encoder,
        method: Training,
        stream: Stream | StreamedTexts,
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
    ) -> None:
        self.encoder, self.method, self.stream, self.runtime = encoder, method, stream, runtime
        self.states = States(folder)
        self.folder = folder
        self.score, self.scores = score, scores
        self.progress, self.on_warning = progress, on_warning
        self.metrics, self.log = metrics, log
        self.prompt_length = prompt_length
        self.signals = DeferredSignals()
        self.outcome = Outcome(split=method.accumulate)
        self.place = Place()
        self.student = Student(encoder)
        self.student.train(method.dropout)
        if not method.compile:
            quicken(self.student)
        self._freeze_what_the_loss_does_not_reach()
        if fsdp:
            encoder.shard()
        wrapped = self.student
        if method.compile:
            wrapped = torch.compile(wrapped, dynamic=True)  # type: ignore[assignment]
        self.module = wrapped
        table = None if fsdp else encoder.token_table()
        self.optimizer = Optimizer(self.student, table, method, runtime, encoder.sharded)
        self.optimizers = self.optimizer.optimizers
        self.losses = Losses(encoder, show)
        self._loss = math.nan
        self._lr = 0.0
        self._leave = self._due = 0
        self._saved = time.perf_counter()

    def _freeze_what_the_loss_does_not_reach(self) -> None:
        """Poolers and heads that no vector depends on."""
        ids, targets, indices = self.stream.sample()
        goal = torch.from_numpy(targets).to(self.runtime.device)
        self._sample = ids, goal, indices
        self._losses(self.student, *self._sample).sum().backward()
        for parameter in self.student.parameters():
            if parameter.grad is None:
                parameter.requires_grad_(False)
            parameter.grad = None

    def _losses(
        self,
        module: nn.Module,
        ids: list[np.ndarray],
        targets: Tensor,
        indices: np.ndarray,
        *of_all: Any,
    ) -> Tensor:
        vectors = self._vectors(module, ids, indices)
        return cast(Loss, self.method).loss(vectors, targets, *of_all)

    def _vectors(self, module: nn.Module, ids: list[np.ndarray], indices: np.ndarray) -> Tensor:
        features = self.encoder.collate(ids, self.prompt_length(indices))
        with self.runtime.autocast():
            vectors: Tensor = module(features)
        return vectors

    def run(self) -> Outcome:
        """Train to the end, or until interrupted.

        Raises:
            Interrupted: Ctrl-C or SIGTERM, after the state was saved.
            Failed: A loss that is not finite; memory out for a single text; another process gone.
        """
        with self.runtime.company():
            return self._run()

    def _run(self) -> Outcome:
        facts = self.states.load(self.student, self.optimizers)
        if facts:
            self.place = Place(*facts["place"])
            self.outcome = Outcome(**facts["outcome"])
            self.outcome.resumed_at = self.place.texts
            self.optimizer.scaler.load_state_dict(facts["scaler"])
            self.losses.take_up(Counts(*facts["loss"]))
        self._forget_metrics_after(self.place.texts if facts else -1)
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
                    raise self.runtime.alike(Interrupted(self._leave, "go on with --resume"))
                if self._due:
                    self._save()
                    clock = self._saved = time.perf_counter()
        self._save()
        return done

    def _forget_metrics_after(self, texts: int) -> None:
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
            of_all: tuple[Any, ...] = ()
            if self._needs_moment():
                moment = self._agree(batch, partial(self._moment, batch))
                if moment is None:
                    continue
                self.runtime.add_up([moment])
                of_all = moment, batch.texts
            losses = self._agree(batch, partial(self._accumulate, batch, *of_all))
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
        self.runtime.free_memory()
        if state == 2:
            said = f"memory ran out for one text of {longest} tokens"
            hint = "lower --max-length, then go on with --resume"
            raise self.runtime.alike(Failed(said, hint))
        self.outcome.split *= 2
        self.on_warning(f"memory ran out: steps are now split into {self.outcome.split} parts")
        return None

    def _parts(self, batch: Batch) -> list[np.ndarray]:
        parts = np.array_split(np.arange(len(batch.ids)), self.outcome.split)
        return [part for part in parts if len(part) or self.encoder.sharded]

    def _needs_moment(self) -> bool:
        """Whether a loss over pairs is made in parts, which then need to know of one another."""
        parts = self.runtime.world * self.outcome.split
        return parts > 1 and bool(getattr(self.method, "gor", 0))

    @torch.no_grad()
    def _moment(self, batch: Batch) -> Tensor:
        """Σ x xᵀ over the unit vectors of this process's texts, (dim, dim): a forward pass more."""
        total = torch.zeros(batch.targets.shape[1], batch.targets.shape[1])
        total = total.to(self.runtime.device)
        for part in self._parts(batch):
            ids = [batch.ids[i] for i in part]
            if not ids:
                self._vectors(self.module, self._sample[0], self._sample[2])
                continue
            total += second_moment(self._vectors(self.module, ids, batch.indices[part]))
        return total

    def _accumulate(self, batch: Batch, *of_all: Any) -> Tensor:
        """Gradients of the mean loss over the whole step, whatever the split and the world.

        Returns:
            The losses of this process's texts, (texts,).
        """
        found = [torch.zeros(0, device=self.runtime.device)]
        for part in self._parts(batch):
            if not len(part):  # the others want our part of the weights all the same
                nothing = self._vectors(self.module, self._sample[0], self._sample[2]).sum() * 0
                self.optimizer.backward(nothing)
                continue
            targets = self.runtime.move(torch.from_numpy(batch.targets[part]))
            ids = [batch.ids[i] for i in part]
            losses = self._losses(self.module, ids, targets, batch.indices[part], *of_all)
            self.optimizer.backward(losses.sum() / batch.texts)
            found.append(losses.detach())
        return torch.cat(found)

    def _read_loss(self, step: int) -> None:
        """The mean loss since it was last read; not at each step, since it waits for the device."""
        if step % TOGETHER and self.place.texts < self.stream.total:
            return
        counts = self.losses.of_all()
        self.outcome.tokens += int(counts.tokens)
        self.outcome.padded += int(counts.padded)
        self._loss = counts.loss / counts.texts
        if not math.isfinite(self._loss):
            raise self._diverged("loss is")
        self.losses.begin_anew()
        self._write({"loss": self._loss, "lr": self._lr})

    def _diverged(self, what: str) -> EmbToolError:
        """What all processes end with: rank 0 says which texts it was, whoever had them."""
        state = self.states.texts() if self.runtime.is_main else None
        kept = f"; the state after {state:,} texts is kept" if state is not None else ""
        culprit = self.losses.culprit(self.outcome.steps)
        return self.runtime.alike(
            Failed(
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
        self.outcome.history.append({"texts": self.place.texts, **score.figures})
        self._write(score.figures)
        if score.key is None or score.key > self.outcome.best_key:
            self.outcome.best = self.place.texts
            self.outcome.best_key = -math.inf if score.key is None else score.key
            weights = {name: whole(value) for name, value in self.student.state_dict().items()}
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
        bad = not all(bool(own_part(p).isfinite().all()) for p in self.student.parameters())
        if self.runtime.largest(bad)[0]:
            raise self._diverged("weights are")
        losses = self.losses.of_all()
        if not (main or sharded):
            return
        facts = {
            "place": list(self.place),
            "outcome": {**vars(self.outcome), "resumed_at": None},
            "loss": list(losses),
            "scaler": self.optimizer.scaler.state_dict(),
        }
        self.states.save(self.student, self.optimizers, facts, write=main)
        for other in self.folder.glob("best-*.safetensors") if main else ():
            if other != self._best_file():
                other.unlink()
