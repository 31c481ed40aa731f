"""The summary of all results: a table in docs/benchmarks.md and a picture beside it.

Reads the `ratios` of every `*.json` in the results folder; nothing is measured here. A ratio above
1 favors embtool: it is the other figure divided by embtool's for seconds, bytes and errors, and
embtool's divided by the other for throughput, retention and recall.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

BEGIN, END = "<!-- summary -->", "<!-- end of summary -->"

ORDER = (
    "distill_vs_trainer", "train_step", "gpu-steps", "store", "compress_peers", "tables-fits",
    "tables-lookups", "tables-texts", "target", "merge", "encode", "precision",
)  # fmt: skip
"""Results in the order of the page, by verb; any other result comes last, by name."""


class Line(NamedTuple):
    """One ratio; `ahead` is above 1 where embtool is better."""

    what: str
    peer: str
    ahead: float
    script: str
    machine: str


def collect(folder: Path) -> list[Line]:
    """The ratios of every result: results in `ORDER`, ratios in the order of their script."""

    def position(path: Path) -> tuple[int, str]:
        return ORDER.index(path.stem) if path.stem in ORDER else len(ORDER), path.stem

    found = []
    for path in sorted(folder.glob("*.json"), key=position):
        document = json.loads(path.read_text(encoding="utf-8"))
        where = told(document["machine"])
        for ratio in document.get("ratios", ()):
            value = ratio["value"]
            ahead = value if ratio["higher"] else 1 / value
            found.append(Line(ratio["what"], ratio["peer"], ahead, path.stem, where))
    return found


def told(machine: dict[str, Any]) -> str:
    """Where a result is from, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    place = f"{machine['gpu'] or machine['cpu']}, {machine['threads']} threads"
    return f"{place}; {versions}; {machine['date'].partition(' ')[0]}"


def table(lines: Sequence[Line]) -> str:
    """Markdown: one row a line, and the machines below."""
    machines = list(dict.fromkeys(line.machine for line in lines))
    rows = ["| measurement | compared with | ratio | script |", "| --- | --- | --- | --- |"]
    for line in lines:
        mark = f" ({machines.index(line.machine) + 1})" if len(machines) > 1 else ""
        bold = "**" if line.ahead >= 1 else ""
        shown = f"{bold}{figure(line.ahead)}{bold}"
        rows.append(f"| {line.what} | {line.peer} | {shown} | `{line.script}`{mark} |")
    notes = [
        f"{f'({number}) ' if len(machines) > 1 else ''}{machine}"
        for number, machine in enumerate(machines, 1)
    ]
    return "\n".join([*rows, "", *notes])


def figure(ahead: float) -> str:
    """With two decimals, small ones with two digits."""
    return f"{ahead:.2f}" if ahead >= 0.1 else f"{ahead:.2g}"


def put(page: Path, text: str, picture: str) -> None:
    """Write the table between its marks, the picture above it.

    Raises:
        SystemExit: The page has no such marks.
    """
    old = page.read_text(encoding="utf-8")
    if BEGIN not in old or END not in old:
        raise SystemExit(f"{page}: {BEGIN} and {END} are missing")
    before, _, rest = old.partition(BEGIN)
    after = rest.partition(END)[2]
    shown = f"![Ratio of embtool to each alternative; above 1, embtool is better]({picture})"
    page.write_text(f"{before}{BEGIN}\n{shown}\n\n{text}\n{END}{after}", encoding="utf-8")


def draw(lines: Sequence[Line], target: Path) -> None:
    """A dot a line on a logarithmic scale, by script."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context({"font.size": 9}):
        drawn, axis = pyplot.subplots(figsize=(9, 1 + 0.27 * len(lines)), layout="constrained")
        places = range(len(lines))
        colors = ["C0" if line.ahead >= 1 else "C1" for line in lines]
        axis.hlines(places, 1, [line.ahead for line in lines], color=colors, linewidth=2.5)
        axis.scatter([line.ahead for line in lines], places, color=colors, s=30, zorder=3)
        for place, line in zip(places, lines, strict=True):
            side = 1 if line.ahead >= 1 else -1
            axis.annotate(
                figure(line.ahead), (line.ahead, place), (7 * side, 0), va="center",
                textcoords="offset points", ha="left" if side > 0 else "right", fontsize=8,
            )  # fmt: skip
        axis.set_yticks(places, [f"{line.what}  |  {line.peer}" for line in lines])
        axis.set_ylim(len(lines) - 0.5, -0.5)
        axis.set_xscale("log")
        axis.margins(x=0.2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.axvline(1, color="0.3", linewidth=1)
        axis.grid(axis="x", color="0.9", zorder=0)
        axis.set_axisbelow(True)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("ratio, log scale\n(above 1, blue: embtool is better)")
        drawn.savefig(target, dpi=130, metadata={"Software": None})
        pyplot.close(drawn)


def main() -> int:
    """Table and picture of a folder of results."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--page", type=Path, help="page to update [print the table]")
    args = parser.parse_args()
    lines = collect(args.out)
    if not lines:
        print(f"{args.out}: no result has ratios", file=sys.stderr)
        return 2
    if args.page:
        draw(lines, args.page.with_name("summary.png"))
        put(args.page, table(lines), "summary.png")
    else:
        draw(lines, args.out / "summary.png")
        print(table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
