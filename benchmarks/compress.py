"""`embtool compress`: what chains keep of a model, by their bytes, on the files as written.

Calibrated on `texts.jsonl` and Cranfield's documents (never its queries), without labels. A chain
is one call of the command; quality is then measured on all of them at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from common import arguments, embtool, figure, finish, kept

CHAINS = {
    "fp16": "cast",
    "int8": "int:bits=8",
    "int4": "int:bits=4",
    "gptq5": "vocab gptq:bits=5 int:bits=6",
    "gptq3": "vocab gptq:bits=3,group=64 int:bits=4,group=64",
    "gptq4-int3": "vocab gptq:bits=4,group=128 int:bits=3,group=32",
    "gptq4-pq": "vocab gptq:bits=4,group=128 pq:budget=0.1 int:bits=8",
}
"""Name of the output to its chain."""


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
            reports[out] = embtool(
                "compress", args.model, *steps, "--texts", *texts, *tune, "-o", out, "--overwrite"
            )
            chains[out] = CHAINS[name] + (" --tune" if tuned else "")
    found = kept(args, list(reports))
    rows: list[list[Any]] = []
    for out, report in reports.items():
        size, resident = figure(report, "weights"), figure(report, "resident")
        rows.append(
            [
                chains[out],
                size / 1e6,
                resident / size,
                figure(report, "cosine mean"),
                figure(report, "neighbour overlap"),
                found[out]["sts kept"],
                found[out]["ndcg kept"],
                report["timings"]["total_seconds"],
            ]
        )
    columns = [
        "chain", "MB", "resident / file", "cosine", "neighbours kept", "STS-B dev kept, %",
        "Cranfield kept, %", "s",
    ]  # fmt: skip
    finish("compress", args.out, {"chains": {o.name: r for o, r in reports.items()}}, columns, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
