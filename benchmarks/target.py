"""`embtool compress --target`: the chain that it finds against a fixed grid of chains.

Each chain is one call of the command, and what it keeps is measured on the written files, on texts
that neither calibrated nor chose. A chain of the grid counts where its files fit the target. The
grid's chains that trim the vocabulary are left out where the search leaves that out, too: with few
texts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from common import Ratio, arguments, embtool, figure, finish

GRID = (
    "int:bits=4",
    "int:bits=3",
    "int:bits=4,tables=0 pq:budget=0.08 int:bits=8",
    "gptq:bits=5 pq:budget=0.05 int:bits=8",
    "gptq:bits=4,group_size=128 int:bits=3,group_size=32",
    "gptq:bits=4 pq:budget=0.07 int:bits=8",
    "gptq:bits=3 pq:budget=0.1 int:bits=8",
    "gptq:bits=3 int:bits=3",
    "gptq:bits=2,group_size=32 int:bits=4",
    "vocab gptq:bits=5 int:bits=6",
    "vocab gptq:bits=4,group_size=128 int:bits=3,group_size=32",
    "vocab gptq:bits=4,group_size=128 pq:budget=0.1 int:bits=8",
    "vocab gptq:bits=3,group_size=64 int:bits=4,group_size=64",
)
"""Chains that one would type, of 8 to 15 MB where the model is all-MiniLM-L6-v2."""


class Made(NamedTuple):
    """What a run wrote: its chain, bytes of its weights, share of the ten neighbors kept."""

    chain: str
    size: float
    kept: float
    seconds: float

    @classmethod
    def of(cls, chain: str, report: dict[str, Any]) -> Made:
        """From the report of a run."""
        size, kept = figure(report, "weights"), figure(report, "neighbor overlap")
        return cls(chain, size, kept, report["timings"]["total_seconds"])


def main() -> int:
    """One row a target, then one a chain of the grid."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--targets", nargs="+", type=float, default=[10.0, 13.0], help="MB")
    parser.add_argument("--limit", type=int, help="texts read [all]")
    args = parser.parse_args()
    texts = ["--texts", args.data / "texts.jsonl", args.data / "cranfield" / "corpus.jsonl"]
    texts += ["--limit", args.limit] if args.limit else []

    def compress(name: str, *given: object) -> dict[str, Any]:
        out: Path = args.work / f"target-{name}"
        return embtool("compress", args.model, *given, *texts, "-o", out, "--overwrite")

    found: dict[float, Made] = {}
    trims = False
    for target in args.targets:
        report = compress(f"{target:g}MB", "--target", f"{target:g}MB")
        search = report["facts"]["search"]
        trims |= any("-m vocab" in tried["chain"] for tried in search["tried"])
        found[target] = Made.of(search["chosen"], report)
    grid = []
    for number, chain in enumerate(chain for chain in GRID if trims or "vocab" not in chain):
        steps = [word for step in chain.split() for word in ("-m", step)]
        grid.append(Made.of(" ".join(steps), compress(f"grid-{number}", *steps)))
    rows: list[list[Any]] = []
    ratios = []
    for target, made in found.items():
        best = max((g for g in grid if g.size <= target * 1e6), key=lambda g: g.kept)
        what = f"{target:g} MB: {made.chain}"
        rows.append([what, made.size / 1e6, made.kept, 100 * (made.kept - best.kept), made.seconds])
        name = f"neighbor overlap at {target:g} MB"
        ratios.append(Ratio(name, "best chain of a fixed grid", made.kept / best.kept, higher=True))
    rows += [[g.chain, g.size / 1e6, g.kept, None, g.seconds] for g in sorted(grid, key=by_size)]
    columns = ["chain", "MB", "neighbors kept", "points above the grid's best that fits", "s"]
    facts = {
        "found": {f"{target:g} MB": made._asdict() for target, made in found.items()},
        "grid": [made._asdict() for made in grid],
        "limit": args.limit,
    }
    finish("target", args.out, facts, columns, rows, ratios)
    return 0


def by_size(made: Made) -> float:
    """The key that rows are sorted by."""
    return made.size


if __name__ == "__main__":
    sys.exit(main())
