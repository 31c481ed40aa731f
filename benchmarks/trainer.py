"""The peer: what a user would write today with sentence-transformers' own trainer.

One run in a process of its own: MSELoss distillation onto given vectors, the same layers kept,
no dropout, fused AdamW, batches of like length. Prints one JSON line.

The trainer builds its own batches and passes over transformers' `train_sampling_strategy`, so
that batches of like length come from its `batch_sampler` with transformers' LengthGroupedSampler.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def student(model: str, layers: list[int], dropout: float) -> Any:
    """The teacher with these layers alone.

    Args:
        model: A BERT-like checkpoint.
        layers: Which to keep.
        dropout: Of hidden states and of attention.
    """
    from sentence_transformers import SentenceTransformer
    from torch.nn import ModuleList

    config = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    made: Any = SentenceTransformer(model, config_kwargs=config)
    bert = made[0].auto_model
    bert.encoder.layer = ModuleList([bert.encoder.layer[i] for i in layers])
    bert.config.num_hidden_layers = len(layers)
    return made


def of_like_length(lengths: list[int]) -> Callable[..., Any]:
    """A batch sampler for the trainer's arguments.

    Args:
        lengths: Tokens of each text.
    """
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from transformers.trainer_pt_utils import LengthGroupedSampler

    def make(dataset: Any, batch_size: int, drop_last: bool, **rest: Any) -> Any:
        sampler = LengthGroupedSampler(batch_size, lengths=lengths, generator=rest.get("generator"))
        return DefaultBatchSampler(sampler, batch_size=batch_size, drop_last=drop_last)

    return make


def train(args: argparse.Namespace) -> dict[str, float]:
    """Train and give texts, seconds and the last loss."""
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import MSELoss
    from transformers import TrainerCallback

    if args.threads:
        torch.set_num_threads(args.threads)
    texts = [json.loads(line)["text"] for line in args.texts.open(encoding="utf-8")]
    targets = np.load(args.targets)
    if len(texts) != len(targets):
        raise SystemExit(f"{len(texts)} texts, {len(targets)} vectors")
    model = student(args.model, args.layers, args.dropout)
    limit = model.max_seq_length
    ids = model.tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    dataset = Dataset.from_dict({"text": texts, "label": targets})
    dataset = dataset.with_format("torch", columns=["label"], output_all_columns=True)

    class Clock(TrainerCallback):
        """Seconds of the steps and their batches alone: neither loading, model card nor saving."""

        start: float | None = None

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.start = self.start or time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            assert self.start is not None
            self.seconds = time.perf_counter() - self.start

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = SentenceTransformerTrainingArguments(
            output_dir=folder,
            num_train_epochs=args.epochs,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch,
            learning_rate=args.lr,
            lr_scheduler_type="linear",
            warmup_steps=0.1,
            weight_decay=0.01,
            optim="adamw_torch_fused",
            batch_sampler=of_like_length([len(row) for row in ids]),
            dataloader_num_workers=args.workers,
            save_strategy="no",
            logging_steps=50,
            report_to="none",
            disable_tqdm=True,
            bf16=torch.cuda.is_available(),
            seed=args.seed,
        )
        trainer = SentenceTransformerTrainer(
            model=model,
            args=settings,
            train_dataset=dataset,
            loss=MSELoss(model),
            callbacks=[clock],
        )
        done = trainer.train()
    if args.output:
        model.save_pretrained(str(args.output), create_model_card=False)
    used = round(done.metrics["epoch"] * len(texts))
    return {
        "texts": used,
        "seconds": clock.seconds,
        "steps": done.global_step,
        "loss": done.training_loss,
    }


def numbers(text: str) -> list[int]:
    """`0,2,5` as a list."""
    return [int(part) for part in text.split(",")]


def main() -> int:
    """Run once, as asked on the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=numbers, default=[0, 2, 5])
    parser.add_argument("--texts", type=Path, required=True, help="jsonl of {text}")
    parser.add_argument("--targets", type=Path, required=True, help="npy, a row a text")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=-1, help="instead of epochs")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(train(parser.parse_args())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
