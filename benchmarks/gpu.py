"""On a GPU: what share of its ceilings look-ups, encoding and train steps reach.

The ceilings are measured first: bytes a second of a large copy, read and written, and operations a
second of a large bf16 product. A look-up's floor is the bytes of its ids, its codes and the rows
that it writes, once each. A model's work is 2 operations a weight of its layers and token, and
those of attention; a train step's is three times that. Look-ups are timed by the device's events,
the rest by the clock.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from common import Ratio, arguments, documents, finish, seconds
from tables import WORDS, fitted
from torch import Tensor, nn

from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.distill.leaf import Leaf
from emb_tool.model.encoder import Encoder
from emb_tool.runtime.device import Runtime
from emb_tool.training.batches import Batch, DataCursor
from emb_tool.training.step import Gradients

LOOKUPS = (
    *(f"int:bits={bits}" for bits in (8, 7, 4, 2)),
    "int:bits=4,group_size=64", "pq:subvectors=96", "pq:subvectors=48", "pq:budget=0.092",
    "opq:subvectors=96", "rq:stages=8",
)  # fmt: skip

STEPS = ((1024, 32), (4096, 32), (4096, 128), (16384, 128), (65536, 128))
"""Tokens of a step and of its texts."""


def device_ms(run: Callable[[], Any], rounds: int = 20) -> float:
    """Median milliseconds between two events of the device, warm."""
    spent = []
    for turn in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        if turn >= 3:
            spent.append(float(start.elapsed_time(end)))
    return median(spent)


def ceilings() -> tuple[float, float]:
    """Bytes a second of a copy, and operations a second of a product."""
    source, target = torch.randn(2, 1 << 30, device="cuda")
    bandwidth = 2 * source.nbytes / device_ms(partial(target.copy_, source)) * 1e3
    left, right = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    return bandwidth, 2 * 8192**3 / device_ms(partial(torch.mm, left, right)) * 1e3


# -- look-ups --------------------------------------------------------------------------------------


def lookups(table: Tensor, times: int, count: int, bandwidth: float) -> list[list[Any]]:
    """Rows of a table that no cache holds: the token table, repeated, in float16.

    Args:
        table: (rows, columns).
        times: How often it is repeated.
        count: Ids of a look-up, drawn evenly.
        bandwidth: Of the device, bytes a second.
    """
    generator = torch.Generator().manual_seed(0)
    large = table.cuda().half().repeat(times, 1)
    ids = torch.randint(len(large), (count // 64, 64), generator=generator).cuda()
    frequencies = 1 / torch.arange(1.0, len(large) + 1)
    rows: list[list[Any]] = []

    def row(name: str, module: nn.Module, stored: float) -> None:
        took = device_ms(partial(module, ids))
        floor = 1e3 * count * (8 + stored + 2 * table.shape[1]) / bandwidth
        rows.append([name, stored, took, took / (rows[0][2] if rows else took), floor / took])

    row("nn.Embedding", nn.Embedding.from_pretrained(large), 2 * table.shape[1])
    for told in LOOKUPS:
        module = fitted(told, large, frequencies if "budget" in told else None).cuda().half()
        row(told, module, module.nbytes / len(large))
    return rows


# -- models ----------------------------------------------------------------------------------------


def operations(encoder: Encoder, length: int) -> float:
    """Of a forward pass, a token."""
    body = encoder.model[0].auto_model
    weights = sum(int(p.numel()) for p in body.encoder.parameters() if p.ndim == 2)
    return 2.0 * weights + 4.0 * length * int(body.config.hidden_size) * len(body.encoder.layer)


def opened(model: str, runtime: Runtime, layers: list[int], *, training: bool) -> Encoder:
    """A checkpoint with some of its layers."""
    encoder = Encoder.open(model, runtime, training=training)
    body = encoder.model[0].auto_model
    body.encoder.layer = nn.ModuleList([body.encoder.layer[i] for i in layers])
    return encoder


def steps(model: str, runtime: Runtime, rate: float, rounds: int) -> list[list[Any]]:
    """Train steps of three layers, recorded and not, and the share of the ceiling.

    Args:
        model: Of which layers 0, 2 and 5 are trained.
        runtime: The GPU.
        rate: Operations a second, the ceiling.
        rounds: Steps of each.
    """
    rng, rows = np.random.default_rng(0), []
    encoder = opened(model, runtime, [0, 2, 5], training=True)

    def batch(count: int, length: int) -> Batch:
        ids = [rng.integers(1000, 20000, length).astype(np.int32) for _ in range(count)]
        targets = rng.standard_normal((count, encoder.dim)).astype(np.float32)
        targets /= np.linalg.norm(targets, axis=1, keepdims=True)
        return Batch(np.arange(count), ids, count, DataCursor(), targets)

    for tokens, length in STEPS:
        batches = [batch(tokens // length, length) for _ in range(8)]
        first = batches[0]
        sample = first.ids[:2], first.targets[:2], first.indices[:2]
        gradients = Gradients(encoder, Leaf(), runtime, sample)
        recorded = gradients.graph_step
        spent = {}
        for name, kept in (("recorded", recorded), ("as it is", None)):
            gradients.graph_step = kept

            def step(number: int, gradients: Gradients = gradients) -> None:
                gradients.add(batches[number % len(batches)], 1)  # noqa: B023 - run at once
                gradients.optimizer.step(1e-6)

            for number in range(4):
                step(number)
            torch.cuda.synchronize()

            def all_of_them(step: Callable[[int], None] = step) -> None:
                for number in range(rounds):
                    step(number)
                torch.cuda.synchronize()

            spent[name] = seconds(all_of_them) / rounds
        needed = 3 * tokens * operations(encoder, length)
        fast, plain = spent["recorded"], spent["as it is"]
        rows.append([
            f"{tokens // length} x {length}", 1e3 * plain, 1e3 * fast, plain / fast,
            tokens / fast, needed / fast / rate,
        ])  # fmt: skip
    return rows


def encoding(model: str, runtime: Runtime, texts: list[str], rate: float) -> list[list[Any]]:
    """Real texts through the whole model, by tokens of a batch."""
    encoder = Encoder.open(model, runtime)
    ids = encoder.tokenize(texts)
    tokens = sum(map(len, ids))
    needed = sum(len(row) * operations(encoder, len(row)) for row in ids)
    rows = []
    for batch_tokens in (4096, 8192, 16384, 65536, 262144):
        run = partial(encoder.encode_ids, ids, batch_tokens=batch_tokens)
        run()
        took = median(seconds(run) for _ in range(3))
        rows.append([batch_tokens, len(texts) / took, tokens / took, needed / took / rate])
    return rows


def main() -> int:
    """One table a part."""
    parser = arguments(str(__doc__).splitlines()[0])
    names = ("lookups", "steps", "encoding")
    parser.add_argument("--parts", nargs="+", default=list(names), choices=names)
    parser.add_argument("--times", type=int, default=34, help="the token table, repeated")
    parser.add_argument("--ids", type=int, default=1 << 20, help="of a look-up")
    parser.add_argument("--rounds", type=int, default=100, help="steps of each kind")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing was measured")
        return 0
    bandwidth, rate = ceilings()
    measured = {"bytes a second": bandwidth, "bf16 operations a second": rate}
    print(f"copies {bandwidth / 1e12:.2f} TB/s, bf16 products {rate / 1e12:.0f} TFLOP/s")
    runtime = Runtime.start("cuda", "bf16")
    if "lookups" in args.parts:
        with torch.no_grad():
            table = Checkpoint.open(args.model).tensor(WORDS).float()
            found = lookups(table, args.times, args.ids, bandwidth)
        columns = ["", "bytes a row", "ms", "x nn.Embedding", "share of the bandwidth"]
        finish("gpu-lookups", args.out, {"rows": found, **measured}, columns, found)
    if "steps" in args.parts:
        found = steps(args.model, runtime, rate, args.rounds)
        columns = ["texts x tokens", "ms as it is", "ms recorded", "ratio", "tokens/s", "share of the products"]  # fmt: skip  # noqa: E501
        ratios = [Ratio(f"train step on a GPU, {row[0]} tokens, ms", "without CUDA graphs", 1 / row[3]) for row in found]  # fmt: skip  # noqa: E501
        finish("gpu-steps", args.out, {"rows": found, **measured}, columns, found, ratios)
    if "encoding" in args.parts:
        found = encoding(args.model, runtime, documents(args.data)[::8], rate)
        columns = ["tokens of a batch", "texts/s", "tokens/s", "share of the products"]
        finish("gpu-encoding", args.out, {"rows": found, **measured}, columns, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
