"""`embtool inspect` of hub models: only headers and small files are downloaded."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import load_file, save_file

from emb_tool.checkpoint import hub_headers
from emb_tool.checkpoint.source import resolve_source
from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.report import Report
from emb_tool.tools.inspect import inspect
from tests.conftest import CliResult

COMMIT = "0123456789" * 4
LARGE = 200_000


class Hub(ThreadingHTTPServer):
    """The parts of the Hub's API that download one model, `org/tiny`.

    Args:
        model: Folder with the files of the model at `COMMIT`, the only commit.

    Attributes:
        sent: Bytes of the bodies of answers to GET by path of the file.
        ranges: Whether byte ranges are supported.
        denied: Paths of files that need a permission.
    """

    daemon_threads = True

    def __init__(self, model: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = model
        self.sent: Counter[str] = Counter()
        self.ranges = True
        self.denied: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: object) -> None:
        """Clients may close connections early."""


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = "/api/models/org/tiny/"
        if not path.startswith((api, "/api/models/org/tiny", "/org/tiny/")):
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        known = ("main", "v1", COMMIT)
        kind, _, rest = path.removeprefix(api).removeprefix("/org/tiny/").partition("/")
        revision, _, name = rest.partition("/")
        if kind in ("revision", "tree", "resolve") and revision not in known:
            return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = sorted(p for p in self.server.model.rglob("*") if p.is_file())
        names = [str(p.relative_to(self.server.model)) for p in files]
        if kind == "tree":
            tree: list[dict[str, Any]] = [
                {"type": "file", "path": n, "size": p.stat().st_size, "oid": f"{i:040x}"}
                for i, (n, p) in enumerate(zip(names, files, strict=True))
            ]
            tree += [
                {"type": "directory", "path": name, "oid": "0" * 40}
                for name in {n.rpartition("/")[0] for n in names if "/" in n}
            ]
            return self.answer(200, json.dumps(tree).encode())
        if kind != "resolve":
            info = {"id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            return self.answer(200, json.dumps(info).encode())
        if name in self.server.denied:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        if name not in names:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = (self.server.model / name).read_bytes()
        headers = {"ETag": f'"{names.index(name):040x}"', "X-Repo-Commit": COMMIT}
        asked = self.headers.get("Range")
        if asked and self.server.ranges:
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.answer(206, content[first : last + 1], headers, name)
        return self.answer(200, content, headers, name)

    def answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, name: str = ""
    ) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        for start in range(0, len(body) if self.command == "GET" else 0, 1 << 14):
            self.wfile.write(body[start : start + (1 << 14)])
            self.server.sent[name] += len(body[start : start + (1 << 14)])


@pytest.fixture
def model(tiny_bert: Path, tmp_path: Path) -> Path:
    """`tiny_bert` with a larger vocabulary and a Dense module: both weight files are large."""
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    table = torch.ones(20_000, tensors["embeddings.word_embeddings.weight"].shape[1])
    save_file(tensors | {"embeddings.word_embeddings.weight": table}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 20_000}))
    dense = folder / "3_Dense"
    dense.mkdir()
    (dense / "config.json").write_text(json.dumps({
        "in_features": 32, "out_features": 4096, "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }))  # fmt: skip
    save_file({"linear.weight": torch.ones(4096, 32)}, dense / "model.safetensors")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({
        "idx": len(modules), "name": str(len(modules)), "path": "3_Dense",
        "type": "sentence_transformers.models.Dense",
    })  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


@pytest.fixture
def hub(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server of `model`, an empty cache and an empty folder for temporary files."""
    server = Hub(model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = "huggingface_hub.constants."
    monkeypatch.setattr(constants + "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants + "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants + "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants + "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path / "work")
    yield server
    server.shutdown()
    server.server_close()
    assert [*(tmp_path / "temporary").iterdir()] == []


def shown(report: Report, name: str) -> str:
    """A report as JSON, without the name and the commit of the model."""
    report.facts["commit"] = None
    return json.dumps(report.to_json()).replace(name, "NAME")


def weights_in(cache: Path) -> list[Path]:
    return [*cache.rglob("*.safetensors")]


@pytest.mark.parametrize("source", ["org/tiny", "org/tiny@v1", f"org/tiny@{COMMIT}"])
def test_as_the_local_folder(hub: Hub, model: Path, tmp_path: Path, source: str) -> None:
    report = inspect(source)
    assert report.facts["model"] == source
    assert report.facts["commit"] == COMMIT
    assert shown(report, source) == shown(inspect(str(model)), str(model))
    assert report.value("weights") == sum(p.stat().st_size for p in model.rglob("*.safetensors"))
    for name in ("model.safetensors", "3_Dense/model.safetensors"):
        assert (model / name).stat().st_size > LARGE
        assert 0 < hub.sent[name] < LARGE
    assert weights_in(tmp_path / "cache") == []


def test_exact_as_the_local_folder(hub: Hub, model: Path, tmp_path: Path) -> None:
    report = inspect("org/tiny", exact=True)
    assert report.facts["faults"] == []
    assert shown(report, "org/tiny") == shown(inspect(str(model), exact=True), str(model))
    assert weights_in(tmp_path / "cache") == []


def test_exact_downloads_quantized_weights(hub: Hub, model: Path, tmp_path: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "unknown"}
    (model / "config.json").write_text(json.dumps(config))
    report = inspect("org/tiny", exact=True)
    assert shown(report, "org/tiny") == shown(inspect(str(model), exact=True), str(model))
    assert len(weights_in(tmp_path / "cache")) == 2


def test_shards(hub: Hub, model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    table = "embeddings.word_embeddings.weight"
    save_file({table: tensors.pop(table)}, model / names[0])
    save_file(tensors, model / names[1])
    index = {"weight_map": {table: names[0]} | dict.fromkeys(tensors, names[1])}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    report = inspect("org/tiny")
    assert report.facts["files"][:2] == names
    assert shown(report, "org/tiny") == shown(inspect(str(model)), str(model))
    assert 0 < hub.sent[names[0]] < LARGE
    (model / names[1]).unlink()
    with pytest.raises(InvalidInput, match=f"lists {names[1]}, which does not exist") as caught:
        inspect("org/tiny")
    assert caught.value.message.startswith("org/tiny/model.safetensors.index.json")


def test_a_header_longer_than_the_first_request(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_headers, "FIRST_BYTES", 50)
    report = inspect("org/tiny")
    assert shown(report, "org/tiny") == shown(inspect(str(model)), str(model))
    assert hub.sent["model.safetensors"] < LARGE


def test_a_server_without_byte_ranges(hub: Hub, model: Path) -> None:
    hub.ranges = False
    tensors = {"linear.weight": torch.ones(200_000, 32)}  # more than the buffers of a connection
    save_file(tensors, model / "3_Dense/model.safetensors")
    config = json.loads((model / "3_Dense/config.json").read_text())
    (model / "3_Dense/config.json").write_text(json.dumps(config | {"out_features": 200_000}))
    report = inspect("org/tiny")
    assert shown(report, "org/tiny") == shown(inspect(str(model)), str(model))
    size = (model / "3_Dense/model.safetensors").stat().st_size
    assert hub.sent["3_Dense/model.safetensors"] < size / 2


def test_pickles_and_other_formats(hub: Hub, model: Path) -> None:
    shutil.rmtree(model / "3_Dense")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    report = inspect("org/tiny")
    assert "the weights are pickled: opened only with --allow-pickle" in report.facts["odd"]
    assert shown(report, "org/tiny") == shown(inspect(str(model)), str(model))
    assert hub.sent["pytorch_model.bin"] == 0
    (model / "pytorch_model.bin").rename(model / "model.gguf")
    with pytest.raises(InvalidInput, match=r"org/tiny has only GGUF weights \(model.gguf\)"):
        inspect("org/tiny")


def test_faults_name_the_model(
    hub: Hub, model: Path, run_cli: Callable[..., CliResult], tmp_path: Path
) -> None:
    (model / "tokenizer.json").unlink()
    (model / "vocab.txt").unlink(missing_ok=True)
    odd = "\n".join(inspect("org/tiny").facts["odd"])
    assert "org/tiny: no tokenizer" in odd
    (model / "3_Dense/model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    done = run_cli("inspect", "org/tiny@v1")
    assert done.code == 2
    assert "org/tiny@v1/3_Dense/model.safetensors is a git-LFS pointer" in done.err
    assert str(tmp_path) not in done.err + odd


def test_what_the_hub_refuses(hub: Hub) -> None:
    with pytest.raises(InvalidInput, match="RepositoryNotFoundError"):
        inspect("org/other")
    with pytest.raises(InvalidInput, match="org/tiny has no revision 'v9' on the hub"):
        inspect("org/tiny@v9")
    hub.denied = {"config.json"}
    with pytest.raises(InvalidInput, match=r"nor a model to be had from the hub \(GatedRepoError"):
        inspect("org/tiny")
    hub.denied = {"model.safetensors"}
    with pytest.raises(InvalidInput, match=r"header of model\.safetensors \(GatedRepoError"):
        inspect("org/tiny")


def test_the_cache(hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspect("org/tiny")
    with monkeypatch.context() as offline:
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(InvalidInput, match="not in the local cache, and HF_HUB_OFFLINE is set"):
            inspect("org/tiny")
    resolve_source("org/tiny")  # downloads all of it
    hub.sent.clear()
    report = inspect("org/tiny")
    assert hub.sent["model.safetensors"] == 0
    assert report.facts["commit"] == COMMIT
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline_report = inspect("org/tiny")
    assert shown(report, "org/tiny") == shown(offline_report, "org/tiny")
    assert shown(report, "org/tiny") == shown(inspect(str(model)), str(model))


def test_a_full_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.copyfile", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(RunFailed, match=r"cannot be written to .* \(No space left on device\)"):
        inspect("org/tiny")
