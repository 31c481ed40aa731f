"""The jobs that faults are tried on, each carried out once without any."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.faults.jobs import JOBS, Job
from tests.runs import one_thread, write_texts


@pytest.fixture(scope="module")
def alike() -> Iterator[None]:
    """One thread; states as often as can be, small blocks and shards; the check in the process."""
    from emb_tool.encode import run
    from emb_tool.merge.job import MergeJob
    from emb_tool.training import loop
    from emb_tool.training.teacher import CheckpointTeacher

    with one_thread() as patch:
        patch.setattr(loop, "SAVE_SECONDS", 0.0)
        patch.setattr(run, "SAVE_SECONDS", 0.0)
        patch.setattr(run, "BLOCK_TEXTS", 10)
        patch.setattr(CheckpointTeacher, "shard_texts", 16)
        patch.setattr(MergeJob, "max_shard", property(lambda job: 30_000))
        yield


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_static: Path
) -> dict[str, Path]:
    from emb_tool.cli.app import main

    folder = tmp_path_factory.mktemp("models")
    for name, share in (("other", 0.01), ("third", 0.02)):
        shutil.copytree(tiny_bert, folder / name)
        weights = folder / name / "model.safetensors"
        save_file({key: x + share * x[::-1] for key, x in load_file(weights).items()}, weights)
    packed = folder / "packed"
    assert main(["compress", str(tiny_bert), "-m", "int:bits=8", "-o", str(packed), "-q"]) in (0, 3)
    ours = {name: folder / name for name in ("other", "third", "packed")}
    return {"bert": tiny_bert, "static": tiny_static, **ours}


@pytest.fixture(scope="module")
def job_of(
    tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path], sentences: list[str],
    alike: None,
) -> Callable[[str], Job]:  # fmt: skip
    """A job by its name, already carried out once."""

    @functools.cache
    def job(name: str) -> Job:
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        texts = write_texts(folder / "texts.jsonl", sentences[:60])
        made = Job(name, folder, JOBS[name](models, texts))
        made.first()
        return made

    return job
