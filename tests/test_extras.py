"""The four verbs run without the packages of the extras; what needs one is refused before work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emb_tool.install import install
from tests.runs import write_texts

PROGRAM = """
import contextlib, io, json, os, sys
from importlib.metadata import Distribution, PackageNotFoundError

BLOCKED = json.loads(sys.argv[1])
sys.modules |= dict.fromkeys(BLOCKED)  # None: neither found nor imported
from_name = Distribution.from_name

def hidden(name):  # sentence-transformers asks for the metadata
    if name in BLOCKED:
        raise PackageNotFoundError(name)
    return from_name(name)

Distribution.from_name = hidden

import pytest
from emb_tool.cli.app import main
from tests.runs import check_here

check_here(pytest.MonkeyPatch())
for line, environment in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    os.environ |= environment
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line.split())
    for name in environment:
        del os.environ[name]
    print(json.dumps([code, out.getvalue() + err.getvalue(), os.path.exists("out")]))
"""
"""Runs command lines from stdin one after another without some packages."""

OPTIONAL = (
    "accelerate", "bitsandbytes", "compressed_tensors", "datasets", "matplotlib", "peft",
)  # fmt: skip

DISTILL = "distill --teacher MODEL --student-layers 1 --texts texts.jsonl"
TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}

DONE = (
    f"{DISTILL} -o distilled",
    "compress MODEL -m layers:keep=2 -m int:bits=8 -o compressed",
    "merge MODEL OTHER -o merged",
    "extend-context MODEL --to 128 -o extended",
    f"{DISTILL} --stream --limit 40 -o streamed",
    "encode compressed texts.parquet -o v.npy",
    "inspect MODEL --exact",
)
REFUSED = (
    ("compress MODEL -m bnb-int8", {}, "bnb", "-m bnb-int8 needs bitsandbytes>=0.49"),
    ("compress MODEL -m int:bits=8 --texts hub:owner/name", {}, "datasets", "hub:owner/name needs"),
    (f"{DISTILL} hub:owner/name --stream --limit 9", {}, "datasets", "hub:owner/name needs"),
    (
        "distill --teacher MODEL --student-layers 1 --texts texts.parquet --stream --limit 9", {},
        "datasets", "--stream of texts.parquet needs datasets",
    ),
    (DISTILL, TORCHRUN, "distributed", "distill in several processes needs accelerate"),
)  # fmt: skip


@pytest.fixture(scope="module")
def told(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, sentences: list[str]
) -> dict[str, tuple[int, str, bool]]:
    """Exit code and words of every line, and whether the output was written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.conftest import make_bert

    folder = tmp_path_factory.mktemp("extras")
    write_texts(folder / "texts.jsonl", sentences[:40])
    pq.write_table(pa.table({"text": sentences[:40]}), folder / "texts.parquet")
    other = make_bert(folder / "other", hidden=32, layers=4, seed=5)
    lines = [(line, {}) for line in DONE]
    lines += [
        (f"{line} -o out{dry}", environment)
        for line, environment, *_ in REFUSED
        for dry in ("", " --dry-run")
    ]
    names = {"MODEL": str(tiny_bert), "OTHER": str(other)}
    given = [
        (" ".join(names.get(word, word) for word in line.split()), environment)
        for line, environment in lines
    ]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(OPTIONAL)], cwd=folder, text=True,
        input=json.dumps(given), capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return {line: tuple(answer) for (line, _), answer in zip(lines, answers, strict=True)}


@pytest.mark.parametrize("line", DONE)
def test_it_needs_no_extra(told: dict[str, tuple[int, str, bool]], line: str) -> None:
    code, said, _ = told[line]
    assert code == 0, said


@pytest.mark.parametrize("dry", ["", " --dry-run"])
@pytest.mark.parametrize(("line", "environment", "extra", "words"), REFUSED)
def test_it_is_refused_with_the_line_that_installs_the_extra(
    told: dict[str, tuple[int, str, bool]], line: str, environment: dict[str, str], extra: str,
    words: str, dry: str,
) -> None:  # fmt: skip
    code, said, written = told[f"{line} -o out{dry}"]
    assert (code, written) == (2, False), said
    assert words in said
    assert install(extra) in said
