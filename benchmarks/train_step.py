"""What a train step costs: seconds over those of the student's bare forward pass.

Texts of one exact length, so that every step has the same shape. `embtool distill` runs as a
user runs it, its step being the report's training seconds over its steps; the bare forward pass,
and a plain PyTorch loop with the parts of its step, run in this process, in turns with it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import Ratio, alternate, arguments, embtool, finish, seconds, write_texts

COLUMNS = [
    "tokens", "bare forward ms", "embtool step ms", "ratio", "plain loop", "with dropout",
    "forward", "backward", "clip", "optimizer",
]  # fmt: skip
"""From `ratio` on in units of the bare forward pass; the last four are parts of the plain loop."""


def one_token_words(tokenizer: Any) -> list[str]:
    """Words that the tokenizer keeps whole."""
    words = [w for w in tokenizer.get_vocab() if w.isalpha() and w.isascii() and len(w) > 3]
    whole = tokenizer(sorted(words), add_special_tokens=False)["input_ids"]
    return [word for word, ids in zip(sorted(words), whole, strict=True) if len(ids) == 1]


def texts_of(length: int, count: int, words: list[str]) -> list[str]:
    """Distinct texts of `length` tokens, the two special ones included."""
    rng = np.random.default_rng(length)
    return [" ".join(rng.choice(words, length - 2)) for _ in range(count)]


class Loop:
    """A plain PyTorch loop over one batch, each part of its step timed.

    Args:
        folder: The student.
        batch: Texts.
        length: Tokens of each.
        dropout: Whether dropout is on.
        fused: Whether AdamW is fused.
    """

    def __init__(self, folder: Path, batch: int, length: int, dropout: bool, fused: bool) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = SentenceTransformer(str(folder), device=self.device)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1000, 20000, (batch, length), generator=generator).to(self.device)
        self.features = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self.target = torch.nn.functional.normalize(
            torch.randn(batch, int(self.model.get_embedding_dimension() or 0), generator=generator)
        ).to(self.device)
        self.dropout = dropout
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=fused or None)

    def autocast(self) -> Any:
        """bf16 on a GPU, as in training."""
        return self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.device == "cuda")

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def timed(self, run: Callable[[], Any], repeats: int) -> float:
        """Median seconds after two warm-ups."""

        def once() -> None:
            run()
            self.synchronize()

        once()
        once()
        return median(seconds(once) for _ in range(repeats))

    def bare(self, repeats: int = 10) -> float:
        """Seconds of the forward pass alone, no gradients."""
        self.model.eval()

        def run() -> None:
            with self.torch.inference_mode(), self.autocast():
                self.model(dict(self.features))

        return self.timed(run, repeats)

    def forward(self) -> Any:
        """The loss, with its graph."""
        with self.autocast():
            vectors = self.model(dict(self.features))["sentence_embedding"]
        return (vectors.float() - self.target).square().sum(1).mean()

    def parts(self, repeats: int = 10) -> dict[str, float]:
        """Median seconds of forward, backward, clipping and optimizer."""
        self.model.train(self.dropout)
        spent: dict[str, list[float]] = {"forward": [], "backward": [], "clip": [], "optimizer": []}
        for turn in range(repeats + 2):
            held: dict[str, Any] = {}

            def forward(held: dict[str, Any] = held) -> None:
                held["loss"] = self.forward()
                self.synchronize()

            def backward(held: dict[str, Any] = held) -> None:
                held["loss"].backward()
                self.synchronize()

            def clip() -> None:
                self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.synchronize()

            def step() -> None:
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.synchronize()

            for name, part in zip(spent, (forward, backward, clip, step), strict=True):
                took = seconds(part)
                if turn >= 2:
                    spent[name].append(took)
        return {name: median(values) for name, values in spent.items()}


def main() -> int:
    """For each length, a table row."""
    parser = arguments(str(__doc__).splitlines()[0], data=False)
    parser.add_argument("--layers", default="0,2,5")
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[32, 128], help="tokens of a text"
    )
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a step")
    parser.add_argument("--steps", type=int, default=30, help="steps of one run of embtool")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    from transformers import AutoTokenizer

    words = one_token_words(AutoTokenizer.from_pretrained(args.model))
    rows: list[list[Any]] = []
    results: dict[str, Any] = {"runs": []}
    for length in args.lengths:
        rows.append(measure(args, length, words, results))
        ratios = [
            Ratio(f"train step, {row[0]} tokens, ms", peer, row[2] / (row[1] * over))
            for row in rows
            for peer, over in (("bare forward pass", 1.0), ("plain PyTorch loop", row[4]))
        ]
        finish("train_step", args.out, results, COLUMNS, rows, ratios)
    return 0


def measure(
    args: argparse.Namespace, length: int, words: list[str], results: dict[str, Any]
) -> list[Any]:
    """One row: `args.tokens` tokens in texts of `length`."""
    batch = args.tokens // length
    count = batch * args.steps
    # a ninth more, for what is held out
    texts = texts_of(length, count + count // 8, words)
    path = write_texts(args.work / f"step-{length}.jsonl", texts)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((len(texts), 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(args.work / f"step-{length}.npy", vectors)
    student = args.work / f"step-{length}"

    def step() -> float:
        report = embtool(
            "distill", "--teacher", args.work / f"step-{length}.npy", "--student", args.model,
            "--student-layers", args.layers, "--texts", path, "--holdout", count // 9,
            "--batch-tokens", args.tokens, "--lr", "1e-6", "-o", student, "--overwrite",
        )  # fmt: skip
        results["runs"].append(report)
        training = report["facts"]["training"]
        return float(report["timings"]["train_seconds"] / training["steps"])

    step()  # the student's folder, and warm caches
    plain = Loop(student, batch, length, dropout=False, fused=True)
    slow = Loop(student, batch, length, dropout=True, fused=False)
    times, turns = alternate({"bare": plain.bare, "embtool": step}, args.rounds)
    parts, dropped = plain.parts(), slow.parts()
    results[f"{batch} x {length}"] = {"turns": turns, "plain": parts, "with dropout": dropped}
    bare = times["bare"]
    return [
        f"{batch} x {length}", 1e3 * bare, 1e3 * times["embtool"], times["embtool"] / bare,
        sum(parts.values()) / bare, sum(dropped.values()) / bare,
        *(value / bare for value in parts.values()),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
