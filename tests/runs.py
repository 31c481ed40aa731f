"""What several test files share: texts in files, small students in training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emb_tool.distill.leaf import Leaf
from emb_tool.method import Training
from emb_tool.model.encoder import Encoder
from emb_tool.progress import Progress
from emb_tool.report import Report
from emb_tool.runtime.check_process import Check
from emb_tool.runtime.device import Runtime
from emb_tool.training.batches import BatchStream, TokenCache
from emb_tool.training.loop import Trainer
from emb_tool.training.outcome import Score


def write_texts(path: Path, texts: Sequence[str]) -> str:
    """A jsonl file of texts."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def unit_vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Random vectors of norm 1."""
    vectors = np.random.default_rng(seed).standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_trainer(
    model: Path,
    texts: Sequence[str],
    folder: Path,
    method: Training | None = None,
    *,
    targets: np.ndarray | None = None,
    score: Callable[[Encoder], Score] | None = None,
    runtime: Runtime | None = None,
    **options: Any,
) -> Trainer:
    """A run of `model` on `texts` towards `targets` (random ones of norm 1 unless given)."""
    runtime = runtime or Runtime.start("cpu")
    method = method or Leaf(batch_tokens=128)
    encoder = Encoder.open(model, runtime, training=True)
    goal = unit_vectors(len(texts), encoder.dim) if targets is None else targets
    folder.mkdir(parents=True, exist_ok=True)
    cache = TokenCache(
        folder / "tokens.bin", len(texts), lambda which: encoder.tokens([texts[i] for i in which])
    )
    stream = BatchStream(
        [np.arange(len(texts))],
        cache,
        lambda indices: goal[indices],
        batch_tokens=method.batch_tokens,
        total=round(method.epochs * method.cycles * len(texts)),
        seed=0,
    )
    settings: dict[str, Any] = {
        "scores": 2,
        "progress": lambda texts, loss: None,
        "on_warning": lambda sentence: None,
        "metrics": folder / "metrics.jsonl",
        **options,
    }

    def measure() -> Score:
        if score is not None:
            return score(encoder)
        loss = float(np.square(encoder.encode(list(texts)) - goal).sum(1).mean())
        return Score(-loss, {"heldout_loss": loss})

    return Trainer(encoder, method, stream, runtime, folder / "state", score=measure, **settings)


def check_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs check their output in this process: a child of its own takes seconds to start."""

    def ask(check: Check, progress: Progress, process: object) -> Report:
        from emb_tool.evaluate.check import REQUEST

        sent = REQUEST.validate_json(check.model_dump_json())
        assert sent == check
        target = check.target.model_copy(update={"device": "cpu", "dtype": "fp32"})
        with pytest.MonkeyPatch.context() as patch:  # the child is one process, too
            patch.setenv("WORLD_SIZE", "1")
            patch.setenv("RANK", "0")
            report = check.model_copy(update={"target": target}).run(progress)
        return Report.from_json(json.loads(json.dumps(report.to_file())))

    monkeypatch.setattr("emb_tool.runtime.check_process.ask", ask)
    monkeypatch.setattr(
        "emb_tool.runtime.check_process.start_check_process", lambda *_: nullcontext()
    )


@contextmanager
def one_thread() -> Iterator[pytest.MonkeyPatch]:
    """One thread, in this process and its forks; outputs are checked in it, see `check_here`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        check_here(patch)
        yield patch
    torch.set_num_threads(threads)


def weight_files(folder: Path) -> dict[str, bytes]:
    """Every weight file of an output, by relative name."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}
    assert found
    return found
