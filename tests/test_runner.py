"""A verb is a package and a row: a made-up one is planned, run, checked and sealed as any other."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from emb_tool import config, registry
from emb_tool.checkpoint.own_files import PAGE, PROVENANCE, RECIPE, REPORT
from emb_tool.engine import run, runner_class
from emb_tool.errors import InvalidInput
from emb_tool.progress import Progress
from emb_tool.runner import Options
from emb_tool.runtime.host import Host

INIT = """
JOB = ("made_up.job", "CopyJob")
RUNNER = ("made_up.run", "CopyRunner")
METHODS = ()
"""

JOB = """
from typing import Annotated, ClassVar
from pydantic import Field
from emb_tool.config import Job

class CopyJob(Job):
    verb: ClassVar[str] = "copy"
    model: Annotated[str, Field(description="file to copy")]
    output: Annotated[str, Field(description="folder to write")]
"""

RUN = """
import shutil
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.errors import InvalidInput
from emb_tool.evaluate.tensors_check import TensorsCheck
from emb_tool.plan import Plan
from emb_tool.runner import CheckpointRunner
from emb_tool.runtime.host import Host

class CopyRunner(CheckpointRunner):
    distributed = False
    papers = ["arXiv:0000.00000"]

    @property
    def before(self):
        return Checkpoint.open(self.job.model)

    @property
    def inputs(self):
        return {self.job.model: self.before}

    def data(self):
        return {}

    def plan(self):
        return Plan(tuple(self.before.tensors.values()), notes=("a copy",))

    def start(self):
        return Host("cpu", "fp32", 1, self.job.seed)

    def run(self, context):
        shutil.copy(self.job.model, context.folder / "model.safetensors")

    def check(self, context, target):
        return TensorsCheck(target=target)

    def summarize(self, report):
        report.facts["copied"] = True
"""


@pytest.fixture
def _made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package = tmp_path / "site" / "made_up"
    package.mkdir(parents=True)
    for name, text in (("__init__", INIT), ("job", JOB), ("run", RUN)):
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setitem(registry.VERBS, "copy", "made_up")
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "made_up"]:
        del sys.modules[name]


@pytest.mark.usefixtures("_made_up")
def test_a_made_up_verb_is_run(tmp_path: Path, tiny_bert: Path) -> None:
    model, out = tmp_path / "m.safetensors", tmp_path / "out"
    shutil.copy(tiny_bert / "model.safetensors", model)
    job = config.resolve("copy", flags={"model": str(model), "output": str(out)})
    quiet = Options(progress=Progress(0))
    planned = run(job, Options(dry_run=True, progress=Progress(0)))
    assert not out.exists()
    assert planned.facts["plan"]["notes"] == ("a copy",)
    report = run(job, quiet)
    assert report.facts["copied"]
    assert report.value("weights before") == report.value("weights") is not None
    assert (out / "model.safetensors").read_bytes() == model.read_bytes()
    assert all((out / name).is_file() for name in (REPORT, PAGE, PROVENANCE, RECIPE, "README.md"))
    with pytest.raises(InvalidInput, match="not empty"):
        run(job, quiet)
    again = run(job, Options(resume=True, progress=Progress(0)))
    assert again.facts["copied"]


@pytest.mark.usefixtures("_made_up")
def test_what_works_in_one_process_is_refused_in_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = config.resolve("copy", flags={"model": "m", "output": str(tmp_path / "out")})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInput, match="copy runs in one process"):
        run(job, Options(progress=Progress(0)))


@pytest.mark.parametrize("verb", registry.VERBS)
def test_every_verb_names_its_runner(verb: str) -> None:
    cls = runner_class(verb)
    assert not getattr(cls, "__abstractmethods__", None)


def test_a_runtime_without_torch_is_told_apart(tmp_path: Path) -> None:
    from emb_tool.runner import RunContext

    with pytest.raises(TypeError, match="without torch"):
        _ = RunContext(tmp_path, tmp_path, Host("cpu", "fp32", 1, 0)).torch
