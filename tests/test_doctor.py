"""`embtool doctor`: what is there, what is missing, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from emb_tool.tools import doctor
from tests.conftest import CliResult

Cli = Callable[..., CliResult]


def test_quick_is_read_without_torch() -> None:
    code = (
        "import sys; from emb_tool.cli.app import main; code = main(['doctor', '--quick']);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for told in ("cores for this process", "disk here, free", "skipped (--quick)"):
        assert told in done.stdout


def test_all_of_it(run_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBTOOL_API_KEY", "very-secret")
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("400000000\n")
    said = run_cli("doctor", "--json")
    assert said.code == 0, said.err
    assert "very-secret" not in said.out
    told = json.loads(said.out)
    torch = told["facts"]["packages"]["torch"]
    assert torch["found"] == metadata.version("torch")
    assert torch["fits"] is True
    assert told["facts"]["devices"]["chosen"]
    assert told["facts"]["broken"] == []
    assert set(told["facts"]["bitsandbytes"].values()) == {"works"}
    measures = {m["name"]: m["value"] for m in told["measures"]}
    assert (measures["memory"], measures["memory free"]) == (1_000_000_000, 600_000_000)
    assert "importing torch" in said.err


def test_what_is_needed_and_not_there_ends_with_1(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"safetensors": "0.1", "tokenizers": None, "matplotlib": None}

    def version(name: str) -> str | None:
        return versions[name] if name in versions else metadata.version(name)

    requires = ["safetensors>=0.6", "torch>=2.6", "tokenizers", 'matplotlib>=3.9; extra == "plot"']
    monkeypatch.setattr(
        doctor, "_version", lambda n: version(n) if n in ("torch", *versions) else None
    )
    monkeypatch.setattr(metadata, "requires", lambda name: requires)
    said = run_cli("doctor", "--quick")
    assert said.code == 1
    assert "gate" not in said.err
    assert "embtool needs safetensors >=0.6 (0.1), tokenizers  (missing)" in said.err
    assert "'./embtool[plot]'" in said.out
    assert "pip install 'safetensors>=0.6' 'tokenizers'" in said.err
    document = run_cli("doctor", "--quick", "--json")
    assert document.code == 1
    assert "safetensors >=0.6 (0.1)" in json.loads(document.out)["facts"]["broken"][0]


def test_what_is_there_and_does_not_work_ends_with_1(
    run_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    said = run_cli("doctor")
    assert said.code == 1
    assert "error: bitsandbytes cannot be imported" in said.err
    monkeypatch.setitem(sys.modules, "emb_tool.runtime.device", None)
    said = run_cli("doctor")
    assert said.code == 1
    assert "error: torch cannot be imported" in said.err
    assert "bitsandbytes cannot" not in said.err
