"""What pytest is told: slow tests run when asked for, GPU tests where there is one."""

from __future__ import annotations

from collections import Counter

import pytest

COUNTED = ("kills", "full disks", "spoilt checkpoints", "spoilt recipes")
"""What tests of faults count with `record_property`; the sums are told at the end."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        _skip(items, "slow", "slow: run with --slow or `make test-slow`")
    if any(item.get_closest_marker("gpu") for item in items):
        import torch

        if not torch.cuda.is_available():
            _skip(items, "gpu", "needs a CUDA device")


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
