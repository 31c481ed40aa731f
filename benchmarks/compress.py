"""`embtool compress`: what chains keep of a model, by their bytes, on the files as written.

Calibrated on `texts.jsonl` and Cranfield's documents (never its queries), without labels. A chain
is one call of the command; quality is then measured on all of them at once. Chains of dimensions
are calibrated on Cranfield's documents alone. Last, what the search for ranges takes off the error
of rounding the token table to 4 bits.
"""

from __future__ import annotations

import sys
from math import nan
from pathlib import Path
from typing import Any

from common import arguments, embtool, figure, finish, kept

CHAINS = {
    "fp16": "cast",
    "int8": "int:bits=8",
    "int4": "int:bits=4",
    "gptq5": "vocab gptq:bits=5 int:bits=6",
    "gptq3": "vocab gptq:bits=3,group_size=64 int:bits=4,group_size=64",
    "gptq4-int3": "vocab gptq:bits=4,group_size=128 int:bits=3,group_size=32",
    "gptq4-pq": "vocab gptq:bits=4,group_size=128 pq:budget=0.1 int:bits=8",
    "truncate96": "truncate:dim=96",
    "rotate96": "rotate truncate:dim=96",
    "linear4-nearest": "int:bits=4,tables=0",
    "linear4-gptq": "gptq:bits=4",
    "linear3-nearest": "int:bits=3,tables=0",
    "linear3-gptq": "gptq:bits=3",
}
"""Name of the output to its chain."""

DIMENSIONS = ("truncate96", "rotate96")
"""Chains that are calibrated on what will be searched."""


def clip_search(model: str) -> dict[str, float]:
    """Squared relative error of the token table in 4 bits a row, both ways."""
    from emb_tool.checkpoint.reader import Checkpoint
    from emb_tool.editing import CheckpointEditor
    from emb_tool.ops.rounding import dequantize, quantize_groups

    draft = CheckpointEditor.of(Checkpoint.open(model))
    table = draft.tensors[draft.table_name()].load().float()
    errors = {}
    for name, clip in (("min-max", False), ("ranges searched", True)):
        made = dequantize(*quantize_groups(table, 4, clip=clip))
        errors[name] = float((made - table).square().sum() / table.square().sum())
    return errors


def main() -> int:
    """One row a chain."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--chains", nargs="+", default=list(CHAINS), choices=list(CHAINS))
    parser.add_argument("--tune", nargs="*", default=[], help="chains that are tuned, too")
    args = parser.parse_args()
    texts = [args.data / "texts.jsonl", args.data / "cranfield" / "corpus.jsonl"]
    reports: dict[Path, dict[str, Any]] = {}
    chains: dict[Path, str] = {}
    for name in args.chains:
        for tuned in (False, True)[: 1 + (name in args.tune)]:
            out = args.work / f"compress-{name}{'-tuned' if tuned else ''}"
            steps = [word for step in CHAINS[name].split() for word in ("-m", step)]
            tune = ["--tune", *texts] if tuned else []
            seen = texts[1:] if name in DIMENSIONS else texts
            reports[out] = embtool(
                "compress", args.model, *steps, "--texts", *seen, *tune, "-o", out, "--overwrite"
            )
            chains[out] = CHAINS[name] + (" --tune" if tuned else "")
    errors = clip_search(args.model)
    found = kept(args, list(reports))
    rows: list[list[Any]] = []
    for out, report in reports.items():
        size, resident = figure(report, "weights"), figure(report, "resident")
        rows.append(
            [
                chains[out],
                size / 1e6,
                resident / size,
                figure(report, "cosine mean", lacking=nan),
                figure(report, "neighbor overlap"),
                found[out]["sts kept"],
                found[out]["ndcg kept"],
                report["timings"]["total_seconds"],
            ]
        )
    columns = [
        "chain", "MB", "resident / file", "cosine", "neighbors kept", "STS-B dev kept, %",
        "Cranfield kept, %", "s",
    ]  # fmt: skip
    for name, error in errors.items():
        print(f"token table in 4 bits, {name}: relative error {error:.5f}")
    facts = {"chains": {o.name: r for o, r in reports.items()}, "table in 4 bits": errors}
    finish("compress", args.out, facts, columns, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
