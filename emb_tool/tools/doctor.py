"""`embtool doctor`: checks of the installation and the machine, and missing packages by feature.

Versions, memory, disk and threads are read in milliseconds. Devices and bitsandbytes kernels
require torch, whose import takes seconds; `quick` skips them.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from emb_tool import registry
from emb_tool.install import PLACE, WHERE
from emb_tool.report import Measure, Report, Table
from emb_tool.training.endpoint_address import KEY_VARIABLE
from emb_tool.training.store import VectorStore
from emb_tool.version import __version__

OPTIONAL = {
    "bitsandbytes": ("bnb", "compress -m bnb-*, and models compressed with it"),
    "datasets": ("datasets", "texts of hub:NAME; distill --stream of parquet files"),
    "accelerate": ("distributed", "several processes (torchrun); compress -m bnb-*"),
    "matplotlib": ("plot", "plots of quality against size: --plot"),
    "compressed-tensors": (
        "compressed-tensors", "compress --format compressed-tensors, verified in transformers",
    ),
    "tensorboard": (None, "training curves: distill --tensorboard"),
    "sentencepiece": (None, "tokenizers without tokenizer.json"),
}  # fmt: skip
"""Optional packages: the extra of pyproject.toml that installs each, and its use."""

CGROUP = Path("/sys/fs/cgroup")
"""Folder of the resource limits of a container."""


class Package(NamedTuple):
    """One distribution: installed version, required version, and whether they match."""

    name: str
    found: str | None
    needed: str
    fits: bool
    optional: bool


def examine(quick: bool = False, say: Callable[[str], None] = lambda sentence: None) -> Report:
    """Run all checks.

    Args:
        quick: Skip the checks that import torch.
        say: Called with a message before a check that takes seconds.

    Returns:
        Facts and tables; the fact `broken` has a sentence for each requirement of embtool that is
        missing or does not work.
    """
    report = Report("doctor")
    packages = list(_packages())
    broken = [p for p in packages if not p.fits and not p.optional]
    report.facts |= {
        "embtool": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {p.name: p._asdict() for p in packages},
        "broken": [],
    }
    report.tables += [_package_table(packages), _machine(report)]
    if quick:
        report.tables.append(Table("devices and kernels: skipped (--quick)\n", []))
    elif any(p.name == "torch" for p in broken):
        report.tables.append(Table("devices and kernels: skipped, torch is missing\n", []))
    else:
        say("importing torch to list devices (some seconds; skipped with --quick)")
        report.tables.append(_devices(report))
        installed = next(p for p in packages if p.name == "bitsandbytes").found is not None
        if installed and not report.facts["broken"]:
            say("testing bitsandbytes kernels")
            report.tables.append(_kernels(report))
    report.tables.append(_missing(report, packages))
    if broken:
        versions = ", ".join(f"{p.name} {p.needed} ({p.found or 'missing'})" for p in broken)
        needed = " ".join(f"'{p.name}{p.needed}'" for p in broken)
        report.facts["broken"].append(f"embtool needs {versions}: pip install {needed}")
    return report


# -- packages --------------------------------------------------------------------------------------


def _packages() -> Iterator[Package]:
    """The requirements of pyproject.toml and the optional packages, as installed."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        requirements = [Requirement(text) for text in metadata.requires("embtool") or ()]
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        requirements = []
    needs: dict[str, str] = {}
    for requirement in requirements:
        marker = str(requirement.marker or "")
        extra = marker.split('"')[1] if "extra" in marker else None
        if extra is None or OPTIONAL.get(requirement.name, ("", ""))[0] == extra:
            needs[requirement.name] = str(requirement.specifier)
    for name in {**needs, **OPTIONAL}:
        installed, needed = _version(name), needs.get(name, "")
        fits = installed is not None and SpecifierSet(needed).contains(installed, prereleases=True)
        yield Package(name, installed, needed, fits, name in OPTIONAL)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package_table(packages: list[Package]) -> Table:
    table = Table("versions", ["", "found", "needed", ""])
    table.rows.append(["embtool", __version__, "", ""])
    table.rows.append(
        ["python", platform.python_version(), ">=3.11", _state(sys.version_info >= (3, 11))]
    )
    for p in packages:
        if not p.optional or p.found is not None:
            state = "" if p.fits else "missing" if p.found is None else "TOO OLD"
            table.rows.append([p.name, p.found or "-", p.needed, state])
    return table


def _state(fits: bool) -> str:
    return "" if fits else "TOO OLD"


# -- the machine -----------------------------------------------------------------------------------


def _machine(report: Report) -> Table:
    """Cores, memory, disks and caches, without torch."""
    total, free = _memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS")
    table = Table("this machine", ["", "", ""])
    table.rows += [
        ["cores for this process", str(cores), f"OMP_NUM_THREADS={threads}" if threads else ""],
        ["memory, of that free", _gb(total), _gb(free)],
    ]
    report.facts |= {"cores": cores, "omp_num_threads": threads}
    report.measures += [Measure("memory", total, "B"), Measure("memory free", free, "B")]
    offline = ", offline" if os.environ.get("HF_HUB_OFFLINE") else ""
    hub = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    paths = {
        "disk here, free": Path.cwd(),
        f"hub cache{offline}, free": hub,
        "teacher vectors, free": VectorStore.default_root(),
        "temporary files, free": Path(os.environ.get("TMPDIR") or "/tmp"),
    }
    for name, path in paths.items():
        space = _free(path)
        table.rows.append([name, _gb(space), str(path)])
        report.measures.append(Measure(name, space, "B"))
    key = "set" if os.environ.get(KEY_VARIABLE) else "not set"
    table.rows.append(["key of an endpoint", key, KEY_VARIABLE])
    return table


def _memory() -> tuple[int | None, int | None]:
    """Total and free bytes, within the limit of the container if there is one."""
    try:
        lines = dict(
            line.split(":", 1)
            for line in Path("/proc/meminfo").read_text().splitlines()
            if ":" in line
        )
        total, free = (int(lines[k].split()[0]) * 1024 for k in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
        except (ValueError, OSError):
            return None, None
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or no limit
        return total, free
    return min(total, limit), min(free, max(limit - used, 0))


def _free(path: Path) -> int | None:
    """Free bytes on the disk of a folder that may not exist yet."""
    for parent in (path, *path.parents):
        if parent.exists():
            return shutil.disk_usage(parent).free
    return None


def _gb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e9:,.1f} GB"


# -- through torch ---------------------------------------------------------------------------------


def _devices(report: Report) -> Table:
    table = Table("devices", ["", ""])
    started = time.perf_counter()
    try:
        from emb_tool.runtime.device import Runtime
    except Exception as error:
        report.facts["broken"].append(f"torch cannot be imported: {error}")
        return Table(report.facts["broken"][-1], [])
    report.timings["import_torch_seconds"] = time.perf_counter() - started
    devices = Runtime.describe()
    report.facts["devices"] = devices
    for name, value in devices.items():
        table.rows.append([name, ", ".join(value) if isinstance(value, list) else str(value)])
    table.rows.append(["torch imported in", f"{report.timings['import_torch_seconds']:.1f} s"])
    return table


def _kernels(report: Report) -> Table:
    """Test quantization and dequantization with bitsandbytes on the default device."""
    from emb_tool.progress import quiet

    table = Table("bitsandbytes", ["", "", ""])
    results: dict[str, str] = {}
    try:
        with quiet():
            import torch
            from bitsandbytes import functional

            from emb_tool.runtime.device import Runtime

            device = Runtime.start().device
            weight = torch.linspace(-1, 1, 64 * 64, device=device).view(64, 64)
    except Exception as error:
        results = dict.fromkeys(_bnb_methods(), f"cannot be imported: {error}")
        report.facts["broken"].append(f"bitsandbytes cannot be imported: {error}")
    for name in _bnb_methods() if not results else ():
        try:
            if name.endswith("int8"):
                codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
                back = codes.float() * scales[:, None] / 127
            else:
                kind = name.rpartition("-")[2]
                back = functional.dequantize_4bit(
                    *functional.quantize_4bit(weight, quant_type=kind)
                )
            max_error = float((back - weight).abs().max())
            results[name] = "works" if max_error < 0.2 else f"wrong by {max_error:.2g}"
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    table.rows = [[f"-m {name}", result] for name, result in results.items()]
    table.columns = table.columns[:2]
    report.facts["bitsandbytes"] = results
    return table


def _bnb_methods() -> list[str]:
    return [name for name in registry.methods("compress") if name.startswith("bnb")]


# -- what is missing -------------------------------------------------------------------------------


def _missing(report: Report, packages: list[Package]) -> Table:
    rows: list[list[str]] = []
    for p in packages:
        if p.optional and not p.fits:
            extra, use = OPTIONAL[p.name]
            rows.append([p.name, use, f"'{PLACE}[{extra}]'" if extra else p.name])
    for name, result in report.facts.get("bitsandbytes", {}).items():
        if result != "works":
            rows.append(["bitsandbytes", f"compress -m {name}: {result}", ""])
    devices: dict[str, Any] = report.facts.get("devices", {})
    if devices.get("chosen") == "cpu":
        rows.append(["a GPU", "optional; training and encoding are faster", ""])
    report.facts["missing"] = [row[0] for row in rows]
    if not rows:
        return Table("nothing is missing", [])
    title = "missing"
    if any(PLACE in row[2] for row in rows):
        title += f"\n({WHERE})"
    return Table(title, ["package", "purpose", "pip install"], rows)
