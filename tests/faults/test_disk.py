"""Every command on a disk that is full: told so, nothing half, gone on with when there is room."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.jobs import JOBS, Job, results


def mount(folder: Path, size: int, *more: str) -> bool:
    """A file system of so many bytes in memory; whether one can be had."""
    if os.geteuid() or not shutil.which("mount"):
        return False
    options = ",".join([f"size={size}", *more])
    line = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of a size that can be changed while it is in use."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def of(size: int) -> Path:
        more = ["remount"] if folder.is_mount() else []
        if not mount(folder, size, *more):
            pytest.skip("a tmpfs cannot be mounted here")
        return folder

    yield of
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def taken(folder: Path) -> int:
    return sum(512 * path.lstat().st_blocks for path in folder.rglob("*"))


def check_told(job: Job, folder: Path, code: int) -> bool:
    """Whether the disk was too small; then all is as it should be."""
    said = job.log.read_text()
    if code in (0, 3):
        return False
    assert code == 1, said
    assert "Traceback" not in said
    assert "--resume" in said
    for path, content in results(folder).items():  # of a recipe, the first job may be done
        assert content == job.whole[path], path  # type: ignore[index]
    return True


@pytest.mark.parametrize("trials", [1, pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", JOBS)
def test_full_anywhere(
    job_of: Callable[[str], Job], name: str, trials: int,
    small_disk: Callable[[int], Path], record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    small_disk(1 << 30)
    job = job_of(name)
    rng, full = random.Random(f"{name} {trials}"), 0
    size = taken(job.folder / "whole")
    for trial in range(trials):
        folder = small_disk(max(4096, int(size * rng.uniform(0.05, 0.9)))) / str(trial)
        folder.mkdir()
        was_full = check_told(job, folder, job.run(folder))
        if was_full:
            assert any(word in job.log.read_text() for word in ("no space left", "disk is full"))
        full += was_full
        small_disk(1 << 30)
        code = job.run(folder, "--resume")
        assert code in (0, 3), job.log.read_text()
        assert results(folder) == job.whole
        shutil.rmtree(folder)
    record_property("full disks", full)
    assert full


@pytest.mark.parametrize("name", ["distill", "compress", "merge", "encode npy", "encode parquet"])
def test_files_that_may_not_grow(tmp_path: Path, job_of: Callable[[str], Job], name: str) -> None:
    """`ulimit -f`, and a file system that takes no large files: another error of the kernel's."""
    job = job_of(name)
    limit = max(map(len, job.whole.values())) // 2  # type: ignore[union-attr]
    folder = tmp_path / "out"
    folder.mkdir()
    limited = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
    assert check_told(job, folder, job.run(folder, prepare=limited))
    assert "ulimit -f" in job.log.read_text()
    assert job.run(folder, "--resume") in (0, 3), job.log.read_text()
    assert results(folder) == job.whole
