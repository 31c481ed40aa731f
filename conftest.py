"""What pytest is told: slow tests run when asked for, and so do tests on a GPU, these alone."""

from __future__ import annotations

import os
from collections import Counter

import pytest

COUNTED = ("kills", "full disks", "spoilt checkpoints", "spoilt recipes")
"""What tests of faults count with `record_property`; the sums are told at the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption(
        "--gpu", action="store_true", help="run the tests marked gpu or anywhere, alone"
    )


CACHES = {
    "XDG_CACHE_HOME": "", "EMBTOOL_STORE": "vectors", "HF_HOME": "huggingface",
    "HF_HUB_CACHE": "huggingface/hub", "HF_DATASETS_CACHE": "huggingface/datasets",
    "MPLCONFIGDIR": "matplotlib", "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
}  # fmt: skip
"""Where libraries keep files between runs, and the folder of `.pytest_cache/caches` for each."""


def pytest_configure(config: pytest.Config) -> None:
    for variable, name in CACHES.items():  # nothing is written to the user's own
        os.environ[variable] = str(config.rootpath / ".pytest_cache" / "caches" / name)
    if not config.getoption("--gpu"):  # the others give the same everywhere: on a CPU
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    import torch

    if not torch.cuda.is_available():
        raise pytest.UsageError(f"--gpu: this torch ({torch.__version__}) finds no CUDA device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        _skip(items, "slow", "slow: run with --slow or `make test-slow`")
    if not config.getoption("--gpu"):
        _skip(items, "gpu", "on a GPU: run with --gpu or `make test-gpu`")
        return
    there = [item for item in items if any(map(item.get_closest_marker, ("gpu", "anywhere")))]
    config.hook.pytest_deselected(items=[item for item in items if item not in there])
    items[:] = there


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    sums: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        if report.when == "call":
            sums.update({k: int(v) for k, v in report.user_properties if k in COUNTED})  # type: ignore[call-overload]
    if sums:
        told = ", ".join(f"{sums[name]:,} {name}" for name in COUNTED if sums[name])
        terminalreporter.write_line(f"faults: {told}")
