"""Passes replayed from recordings against passes run as they are: the same gradients.

On a CPU a recording is a function called again, which shows the filling up; on a GPU it is a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emb_tool.distill.leaf import Leaf
from emb_tool.runtime.device import Runtime
from emb_tool.training.batches import Batch, DataCursor
from emb_tool.training.cuda_graph_step import CudaGraphStep, Shape, padded_shape
from emb_tool.training.loop import Trainer
from tests.runs import make_trainer, unit_vectors


class Again:
    """What a recorder of a GPU does, by calling the work again."""

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        found = work()

        def replay() -> None:
            losses, rows = work()
            found[0].copy_(losses)
            found[1]._values().copy_(rows._values())
            found[1]._indices().copy_(rows._indices())

        return replay, found


def batch_of(trainer: Trainer, lengths: list[int], seed: int) -> Batch:
    """Texts of so many tokens, some of them the padding's own."""
    rng = np.random.default_rng(seed)
    table = trainer.encoder.token_table()
    assert table is not None
    ids = [rng.integers(0, table.num_embeddings, n).astype(np.int32) for n in lengths]
    targets = unit_vectors(len(ids), trainer.encoder.dim)
    return Batch(np.arange(len(ids)), ids, 2 * len(ids), DataCursor(), targets)


def taken(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Gradients, dense, and none left."""
    named = trainer.student.named_parameters()
    found = {name: p.grad.to_dense().cpu() for name, p in named if p.grad is not None}
    trainer.optimizer.zero_grad()
    return found


def compare(trainer: Trainer, *, prompt: int = 0, near: float = 1e-5) -> CudaGraphStep:
    """Batches of two shapes, replayed and plain."""
    gradients = trainer.gradients
    recorded, gradients.graph_step = gradients.graph_step, None
    assert recorded is not None
    for turn, lengths in enumerate([[9, 12, 7], [11, 10, 9], [16], [10, 9, 12, 3], [14]]):
        batch = batch_of(trainer, lengths, turn)
        gradients.graph_step = recorded
        losses = gradients.add(batch, 1)
        mine = taken(trainer)
        gradients.graph_step = None
        plain = gradients.add(batch, 1)
        other = taken(trainer)
        torch.testing.assert_close(losses, plain, rtol=near, atol=near)
        assert mine.keys() == other.keys()
        top = max(float(value.abs().max()) for value in other.values())
        for name, value in other.items():
            torch.testing.assert_close(mine[name], value, rtol=near, atol=near * top)
    assert list(recorded.graphs) == [Shape(3, 16, prompt), Shape(1, 16, prompt)]
    assert all(recorded.graphs.values())
    gradients.graph_step = recorded
    return recorded


def test_shapes_are_few_and_hold_the_batch() -> None:
    assert padded_shape([9, 12, 7], 0, None) == Shape(3, 16, 0)
    assert padded_shape([13] * 77, 5, None) == Shape(80, 16, 5)
    assert padded_shape([30], 0, 30) == Shape(1, 30, 0)
    assert padded_shape([24] * 42, 0, 512) == padded_shape([19] * 45, 0, 512)
    shapes = {padded_shape([n] * (1024 // n), 0, 512) for n in range(3, 513)}
    assert len(shapes) < 100
    for n in range(3, 513):
        for count in (1, 2, 7, 1024 // n):
            found = padded_shape([n] * count, 0, 512)
            assert n <= found.tokens < n + 8
            assert count <= found.texts <= count * 1.25


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_decoder"])
def test_batches_filled_up_have_the_gradients_of_those_that_are_not(
    model: str, sentences: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    trainer = make_trainer(request.getfixturevalue(model), sentences[:9], tmp_path)
    assert trainer.gradients.graph_step is None  # on a CPU
    trainer.gradients.graph_step = CudaGraphStep(trainer.gradients, Again())  # type: ignore[arg-type]
    compare(trainer)


def test_a_prompt_that_pooling_leaves_out_is_part_of_the_shape(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_bert, sentences[:9], tmp_path, prompt_length=lambda which: 2)
    trainer.gradients.graph_step = CudaGraphStep(trainer.gradients, Again())  # type: ignore[arg-type]
    compare(trainer, prompt=2)


def test_work_that_waits_for_the_device_is_run_as_it_is(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    class Refuses:
        def record(self, work: Callable[[], Any]) -> None:
            raise RuntimeError("operation not permitted when stream is capturing")

    trainer = make_trainer(tiny_bert, sentences, tmp_path / "a")
    trainer.gradients.graph_step = CudaGraphStep(trainer.gradients, Refuses())  # type: ignore[arg-type]
    trainer.run()
    assert trainer.gradients.graph_step.graphs
    assert not any(trainer.gradients.graph_step.graphs.values())
    plain = make_trainer(tiny_bert, sentences, tmp_path / "b")
    plain.run()
    for name, value in trainer.student.state_dict().items():
        assert torch.equal(value, plain.student.state_dict()[name])


def test_where_memory_runs_out_recordings_are_let_go(
    tiny_bert: Path, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tiny_bert, sentences[:60], tmp_path)
    trainer.gradients.graph_step = CudaGraphStep(trainer.gradients, Again())  # type: ignore[arg-type]
    add, calls = trainer.gradients.add, []

    def scarce(*args: Any) -> torch.Tensor:
        calls.append(args)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return add(*args)

    monkeypatch.setattr(trainer.gradients, "add", scarce)
    assert trainer.run().split == 2
    assert trainer.gradients.graph_step is None


@pytest.mark.parametrize("method", [Leaf(gor_weight=0.1), Leaf(dropout=True)])
def test_what_a_recording_would_not_repeat_is_not_recorded(
    method: Leaf, tiny_bert: Path, sentences: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Runtime, "recorder", lambda self: Again())
    assert make_trainer(tiny_bert, sentences[:9], tmp_path / "a").gradients.graph_step is not None
    made = make_trainer(tiny_bert, sentences[:9], tmp_path / "b", method)
    assert made.gradients.graph_step is None
    hooked = make_trainer(tiny_bert, sentences[:9], tmp_path / "c").gradients
    hooked.encoder.model.register_forward_pre_hook(lambda module, args: None)
    assert CudaGraphStep.create(hooked) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_decoder"])
def test_graphs_of_a_gpu(
    model: str, dtype: str, sentences: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    runtime = Runtime.start("cuda", dtype)
    source = request.getfixturevalue(model)
    trainer = make_trainer(source, sentences[:9], tmp_path, runtime=runtime)
    compare(trainer, near=1e-4 if dtype == "fp32" else 5e-2)
    run = make_trainer(
        source, sentences, tmp_path / "run", Leaf(epochs=3, batch_tokens=128), runtime=runtime
    )
    outcome = run.run()
    assert outcome.history[-1]["heldout_loss"] < outcome.history[0]["heldout_loss"]
    assert run.gradients.graph_step is not None
    assert any(run.gradients.graph_step.graphs.values())
