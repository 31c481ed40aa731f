"""Small jobs of every command that writes, and what they come to when nothing is in their way."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.forks import ended, fork

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")


def at_files(folder: Path, act: Callable[[], None]) -> None:
    """Let this process act at each change of a file below a folder."""
    below = str(folder)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(args[2], int) or not args[2] & _WRITING:
                return
        elif event not in _CHANGES:
            return
        if str(args[0]).startswith(below):
            act()

    sys.addaudithook(hook)


@dataclass
class Job:
    """A command, the folder that it changes, and what it makes of it."""

    name: str
    folder: Path
    argv: Callable[[Path], list[str]]
    changes: int = 0
    whole: dict[str, bytes] | None = None

    def run(self, folder: Path, *more: str, prepare: Callable[[], None] = lambda: None) -> int:
        return ended(fork([*self.argv(folder), *more], self.log, prepare))

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def first(self) -> None:
        """The run that nothing interrupts; its changes are counted."""
        count = mmap.mmap(-1, 8)

        def act() -> None:
            count[:8] = (int.from_bytes(count[:8], "little") + 1).to_bytes(8, "little")

        folder = self.folder / "whole"
        folder.mkdir()
        code = self.run(folder, prepare=lambda: at_files(folder, act))
        assert code in (0, 3), self.log.read_text()
        self.changes = int.from_bytes(count[:8], "little")
        self.whole = results(folder)
        assert self.whole


def results(folder: Path) -> dict[str, bytes]:
    """Weights and vectors under their names; no other file is left but reports and configs."""
    kept = (".safetensors", ".npy", ".parquet", ".codes.json")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.name.endswith(kept)
        and not {".state", "store"} & {*path.parts}
        and ".partial/" not in f"{path}"
    }


def distill(models: dict[str, Path], texts: str) -> Callable[[Path], list[str]]:
    return lambda folder: [
        "distill", "--teacher", str(models["bert"]), "--student-layers", "1", "--texts", texts,
        "--batch-tokens", "200", "--store", str(folder / "store"), "-o", str(folder / "out"),
    ]  # fmt: skip


def compress(models: dict[str, Path], texts: str) -> Callable[[Path], list[str]]:
    return lambda folder: [
        "compress", str(models["bert"]), "-m", "vocab", "-m", "truncate:dim=16", "-m",
        "pq:budget=0.5", "--texts", texts, "--holdout", "10", "--tune", texts, "--batch-tokens",
        "300", "-o", str(folder / "out"),
    ]  # fmt: skip


def merge(models: dict[str, Path], texts: str) -> Callable[[Path], list[str]]:
    return lambda folder: [
        "merge", str(models["third"]), str(models["other"]), "-m", "dare:density=0.5", "--base",
        str(models["bert"]), "-o", str(folder / "out"),
    ]  # fmt: skip


def extend(models: dict[str, Path], texts: str) -> Callable[[Path], list[str]]:
    return lambda folder: [
        "extend-context", str(models["bert"]), "--to", "96", "-m", "rp", "--tune", texts,
        "-o", str(folder / "out"),
    ]  # fmt: skip


def encode(suffix: str, *more: str) -> Any:
    return lambda models, texts: lambda folder: [
        "encode", str(models["static"]), texts, "-o", str(folder / f"out{suffix}"), *more
    ]  # fmt: skip


def expand(models: dict[str, Path], texts: str) -> Callable[[Path], list[str]]:
    """Over what stands there."""

    def argv(folder: Path) -> list[str]:
        if not [*folder.glob("out*")]:
            (folder / "out").mkdir()
            (folder / "out" / "old").write_text("old")
        return ["expand", str(models["packed"]), "--overwrite", "-o", str(folder / "out")]

    return argv


def recipe(models: dict[str, Path], texts: str) -> Callable[[Path], list[str]]:
    """Two jobs, the second of which reads what the first writes."""

    def argv(folder: Path) -> list[str]:
        path = folder.parent / f"{folder.name}.yaml"
        path.write_text(
            f"jobs:\n- {{name: a, verb: merge, models: [{models['bert']}, {models['other']}],"
            f" method: linear, output: {folder / 'a'}}}\n"
            f"- {{verb: compress, model: '${{a}}', method: 'int:bits=8', output: {folder / 'b'}}}\n"
        )
        return ["run", str(path)]

    return argv


JOBS = {
    "distill": distill, "compress": compress, "merge": merge, "extend-context": extend,
    "encode npy": encode(".npy", "--precision", "int8"), "encode parquet": encode(".parquet"),
    "expand": expand, "run": recipe,
}  # fmt: skip


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
