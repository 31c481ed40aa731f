"""Fine-tuning of a modified model by regression onto the vectors of the original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from emb_tool.data.corpus import Corpus
from emb_tool.evaluate.dev import mean_figure, rule
from emb_tool.evaluate.model_pair import ModelPair
from emb_tool.evaluate.sharded_encoding import encode_together
from emb_tool.evaluate.task import Task
from emb_tool.method import Training
from emb_tool.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from emb_tool.model.encoder import Encoder
    from emb_tool.runtime.device import Runtime
    from emb_tool.training.outcome import Outcome
    from emb_tool.training.targets import Targets


class FinetuneJob(Training):
    """L = ‖y − t‖², y the modified model's vector and t the original's."""

    name: ClassVar[str] = "tune"
    paper: ClassVar[str] = "arXiv:2509.12539"

    lr: Annotated[float, Field(gt=0, le=1, description="peak learning rate")] = 1e-3

    def loss(self, vectors: Tensor, targets: Tensor) -> Tensor:
        """Loss of each text, (batch,)."""
        return (vectors - targets).square().sum(-1)


def tune(
    encoder: Encoder,
    corpus: Corpus,
    targets: Targets,
    prompt: str,
    method: FinetuneJob,
    runtime: Runtime,
    state: Path,
    progress: Progress,
    encode: Callable[[Sequence[str]], np.ndarray] | None = None,
    on_step: Callable[[int], None] | None = None,
    dev: Sequence[Task] = (),
) -> Outcome:
    """Train the parameters that require gradients and load the best state into the encoder.

    The best state is selected by the `--dev` tasks, otherwise by the held-out texts; without
    either the last state is used.

    Args:
        encoder: The model, opened for training.
        corpus: Training texts and held-out texts.
        targets: Target vectors of its texts.
        prompt: Prefix of each text.
        method: Settings.
        runtime: Device and processes.
        state: Folder for the state of the run.
        progress: Receives progress and warnings.
        encode: Computes vectors of the held-out texts [the encoder].
        on_step: See `Trainer`.
        dev: Tasks that select the best state [the held-out texts].
    """
    from emb_tool.training.batches import BatchStream, TokenCache
    from emb_tool.training.loop import Trainer
    from emb_tool.training.outcome import Score

    state.mkdir(parents=True, exist_ok=True)
    length = encoder.prompt_length(prompt)
    heldout = np.asarray(corpus.heldout)
    texts = corpus.texts(map(int, heldout))
    heldout_targets = targets.read(heldout)

    def score() -> Score:
        figures: dict[str, float] = {}
        key, criterion = None, ""
        if texts:
            vectors = encode(texts) if encode else encode_together(encoder, texts, prompt)
            figures["heldout_loss"] = float(np.square(vectors - heldout_targets).sum(1).mean())
            key = -figures["heldout_loss"]
            criterion = f"squared distance to the input's vectors on {len(texts):,} held-out texts"
        if dev:
            key, dev_figures = mean_figure(dev, ModelPair.of(encoder))
            figures, criterion = figures | dev_figures, rule(dev)
        return Score(key, figures, criterion, lower_is_better=not dev)

    cache = TokenCache(
        state / f"tokens-{runtime.rank}.bin",
        len(corpus),
        lambda indices: encoder.tokens(corpus.texts(map(int, indices)), prompt),
    )
    total = max(1, round(method.epochs * method.cycles * len(corpus.train)))
    stream = BatchStream(
        [corpus.train],
        cache,
        targets.read,
        batch_tokens=method.batch_tokens,
        total=total,
        seed=runtime.seed,
        rank=runtime.rank,
        world=runtime.world,
    )
    with progress.task("tuning", total, "texts") as advance:
        trainer = Trainer(
            encoder,
            method,
            stream,
            runtime,
            state / "train",
            score=score,
            scores=4,
            progress=lambda count, loss: advance(count, "" if isnan(loss) else f"loss {loss:.4f}"),
            on_warning=progress.warn,
            prompt_length=lambda indices: length,
            text_at=lambda index: corpus.texts([index])[0],
            skip=advance.skip,
            on_step=on_step,
        )
        outcome = trainer.run()
    cache.close()
    if truncated := int(cache.truncated.sum()):
        progress.warn(
            f"{truncated:,} of {len(corpus.train):,} training texts are longer than the"
            f" {encoder.max_length:,} tokens that the model reads, and were truncated"
        )
    if runtime.is_main:
        trainer.take_best()
        progress.say(f"tuned: {outcome.summary(total)}")
    return outcome
