"""Encoding by the teacher: `Encoder` against a bare forward loop and SentenceTransformer.encode.

The same texts for all, tokenization included, in turns. The bare loop is what one writes by
hand: tokenize, sort by length, cut into batches of as many tokens as `Encoder` takes, run the
model, mean and norm.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from common import Ratio, alternate, arguments, documents, finish, seconds


def bare(model: Any, texts: list[str], batch_tokens: int) -> np.ndarray:
    """Vectors by the shortest loop that is not slow."""
    import torch

    body, tokenizer, limit = model[0].auto_model, model.tokenizer, model.max_seq_length
    ids = tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    vectors = np.empty((len(ids), body.config.hidden_size), np.float32)
    start = 0
    with torch.inference_mode():
        while start < len(order):
            longest = len(ids[order[start]])
            batch = order[start : start + max(1, batch_tokens // longest)]
            start += len(batch)
            padded = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
            padded = {name: value.to(body.device) for name, value in padded.items()}
            hidden = body(**padded).last_hidden_state
            mask = padded["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            unit = torch.nn.functional.normalize(mean.float(), dim=1)
            vectors[batch] = unit.cpu().numpy()
    return vectors


def main() -> int:
    """One row a contender."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--texts", type=int, default=6000, help="how many, every n-th of the data")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    from emb_tool.model.encoder import Encoder
    from emb_tool.runtime.device import Runtime

    texts = documents(args.data)
    texts = texts[:: max(1, len(texts) // args.texts)]
    encoder = Encoder.open(args.model, Runtime.start())
    model = encoder.model  # the same weights, device and dtype for all three
    contenders: dict[str, Callable[[], np.ndarray]] = {
        "bare loop": lambda: bare(model, texts, args.batch_tokens),
        "embtool": lambda: encoder.encode(texts, batch_tokens=args.batch_tokens),
        "SentenceTransformer.encode": lambda: model.encode(texts, show_progress_bar=False),
    }
    vectors = {name: run() for name, run in contenders.items()}
    timers = {name: partial(seconds, run) for name, run in contenders.items()}
    times, turns = alternate(timers, args.rounds)
    base, reference = times["bare loop"], vectors["bare loop"]
    rows = [
        [name, len(texts) / took, base / took, float(np.abs(vectors[name] - reference).max())]
        for name, took in times.items()
    ]
    columns = ["", "texts/s", "of the bare loop", "largest difference"]
    ratios = [
        Ratio("encoding, texts/s", name, times[name] / times["embtool"], True)
        for name in ("bare loop", "SentenceTransformer.encode")
    ]
    results = {"texts": len(texts), "seconds": turns}
    finish("encode", args.out, results, columns, rows, ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
