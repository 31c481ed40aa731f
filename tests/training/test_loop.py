"""The training loop: schedule, gradients, splitting, what is kept, and the way out of trouble."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from emb_tool.distill.leaf import Leaf
from emb_tool.errors import Interrupted, InvalidInput, RunFailed
from emb_tool.method import Training
from emb_tool.model.encoder import Encoder
from emb_tool.training.batches import Batch, DataCursor
from emb_tool.training.loop import Trainer, learning_rate
from emb_tool.training.outcome import Score
from tests.runs import make_trainer, unit_vectors


def first_batch(trainer: Trainer) -> Batch:
    return next(iter(trainer.stream.batches(DataCursor())))


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in trainer.student.named_parameters() if p.grad is not None}
    return {name: g.to_dense().clone() if g.is_sparse else g.clone() for name, g in found.items()}


def accumulate(trainer: Trainer, batch: Batch, *of_all: Any) -> torch.Tensor:
    return trainer.gradients.add(batch, trainer.outcome.split, *of_all)


def moment(trainer: Trainer, batch: Batch) -> tuple[Any, ...]:
    split = trainer.outcome.split
    if not trainer.gradients.needs_moment(split):
        return ()
    return trainer.gradients.moment(batch, split), batch.texts


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.student.state_dict().items()}


def lines(trainer: Trainer) -> list[dict[str, Any]]:
    assert trainer.metrics is not None
    return [json.loads(line) for line in trainer.metrics.read_text().splitlines()]


# -- the learning rate ----------------------------------------------------------------------------


@pytest.mark.parametrize("cycles", [1, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_rate_rises_and_falls_in_each_cycle(cycles: int, warmup: float) -> None:
    method = Training(lr=2e-3, cycles=cycles, warmup=warmup)
    for cycle in range(cycles):

        def at(x: float, cycle: int = cycle) -> float:
            return learning_rate(method, (cycle + x) / cycles)

        assert at(warmup) == pytest.approx(2e-3, rel=1e-6)
        assert at(warmup + (1 - warmup) / 2) == pytest.approx(1e-3)
        assert at(1 - 1e-9) == pytest.approx(0, abs=1e-8)
        if warmup:
            assert at(0) == pytest.approx(0, abs=1e-8)
            assert at(warmup / 4) == pytest.approx(5e-4)
    assert learning_rate(method, 1.0) == 0


# -- a run --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "lr"), [("tiny_bert", 3e-3), ("tiny_decoder", 3e-3), ("tiny_static", 0.1)]
)
def test_a_run_lowers_the_loss(
    family: str, lr: float, request: pytest.FixtureRequest, sentences: list[str], tmp_path: Path
) -> None:
    trainer = make_trainer(
        request.getfixturevalue(family), sentences[:60], tmp_path,
        Leaf(batch_tokens=128, epochs=3, lr=lr),
    )  # fmt: skip
    outcome = trainer.run()
    history = outcome.history
    assert history[0]["texts"] == 0
    assert history[-1]["texts"] == outcome.texts == 180
    assert history[-1]["heldout_loss"] < 0.9 * history[0]["heldout_loss"]
    assert outcome.best == 180
    assert outcome.tokens == 3 * sum(map(len, trainer.encoder.tokenize(sentences[:60])))
    assert outcome.tokens <= outcome.padded < 1.3 * outcome.tokens
    told = lines(trainer)
    assert [x["heldout_loss"] for x in told if "heldout_loss" in x] == [
        h["heldout_loss"] for h in history
    ]
    assert [x for x in told if "loss" in x][-1]["step"] == outcome.steps


def test_a_run_of_one_step_learns(tiny_bert: Path, sentences: list[str], tmp_path: Path) -> None:
    trainer = make_trainer(tiny_bert, sentences[:4], tmp_path, Leaf(batch_tokens=1000))
    outcome = trainer.run()
    assert outcome.steps == 1
    assert outcome.history[1]["heldout_loss"] < outcome.history[0]["heldout_loss"]


def test_same_seed_same_weights_and_the_pooler_is_left_alone(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    runs = [make_trainer(tiny_bert, sentences[:40], tmp_path / str(i)) for i in range(2)]
    before = weights(runs[0])
    for trainer in runs:
        trainer.run()
    after = weights(runs[0])
    for name, value in weights(runs[1]).items():
        assert torch.equal(value, after[name]), name
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    poolers = {name for name in after if ".pooler." in name}
    assert poolers
    assert not changed & poolers
    trained = {name for name, p in runs[0].student.named_parameters() if p.requires_grad}
    assert trained == changed == {n for n, _ in runs[0].student.named_parameters()} - poolers


def test_dropout_is_off_unless_asked_for(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    losses = {}
    for dropout in (False, True):
        method = Leaf(batch_tokens=10_000, dropout=dropout)
        trainer = make_trainer(tiny_bert, sentences[:20], tmp_path / str(dropout), method)
        batch = first_batch(trainer)
        losses[dropout] = []
        for _ in range(2):
            losses[dropout].append(float(accumulate(trainer, batch).sum()))
    assert losses[False][0] == losses[False][1]
    assert losses[True][0] != losses[True][1]


# -- splitting ----------------------------------------------------------------------------------


def split_run(model: Path, texts: list[str], folder: Path, room: int) -> tuple[Trainer, list[str]]:
    """A trainer in whose memory `room` texts fit."""
    said: list[str] = []
    trainer = make_trainer(
        model, texts, folder, Leaf(batch_tokens=10_000, max_grad_norm=0.0), on_warning=said.append
    )
    real = trainer.gradients._losses

    def scarce(module: Any, ids: list[np.ndarray], *rest: Any) -> torch.Tensor:
        losses = real(module, ids, *rest)
        if len(ids) > room:
            losses.sum().backward()  # what is there of the gradients must not count
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't "
                               "allocate memory: you tried to allocate 1 bytes")  # fmt: skip
        return losses

    trainer.gradients._losses = scarce  # type: ignore[method-assign]
    return trainer, said


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_static"])
def test_what_does_not_fit_is_split_and_counts_the_same(
    family: str, request: pytest.FixtureRequest, sentences: list[str], tmp_path: Path
) -> None:
    model = request.getfixturevalue(family)
    found = {}
    for room in (10**6, 11):
        trainer, said = split_run(model, sentences[:30], tmp_path / str(room), room)
        real, seen = trainer.optimizer._clip, []
        trainer.optimizer._clip = lambda real=real, seen=seen, t=trainer: (
            real(),
            seen.append(gradients(t)),
        )  # type: ignore[method-assign, misc]
        for _ in range(2):
            trainer._step(first_batch(trainer))
        found[room] = seen
        assert said == (
            []
            if room > 30
            else [f"memory ran out: steps are now split into {n} parts" for n in (2, 4)]
        )
    for whole, parts in zip(found[10**6], found[11], strict=True):
        assert whole.keys() == parts.keys()
        for name in whole:
            torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-6)


def test_accumulate_is_a_split_from_the_start(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    found = []
    for parts in (1, 3):
        method = Leaf(batch_tokens=10_000, grad_accumulation=parts)
        trainer = make_trainer(tiny_bert, sentences[:20], tmp_path / str(parts), method)
        accumulate(trainer, first_batch(trainer))
        found.append(gradients(trainer))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-6)


def test_a_loss_over_pairs_is_that_of_the_whole_step_in_any_parts(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    found, sums = [], []
    for parts in (1, 3, 20):
        method = Leaf(batch_tokens=10_000, grad_accumulation=parts, gor_weight=20.0)
        trainer = make_trainer(tiny_bert, sentences[:20], tmp_path / str(parts), method)
        batch = first_batch(trainer)
        of_all = moment(trainer, batch)
        sums.append(float(accumulate(trainer, batch, *of_all).sum()))
        found.append(gradients(trainer))
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-5)
    for other in found[1:]:
        for name in found[0]:
            torch.testing.assert_close(found[0][name], other[name], rtol=1e-4, atol=1e-5)
    plain = make_trainer(tiny_bert, sentences[:20], tmp_path / "plain", Leaf(batch_tokens=10_000))
    assert float(accumulate(plain, first_batch(plain)).sum()) < 0.9 * sums[0]


def test_gradients_that_overflow_are_left_out_and_scaled_down(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    """What fp16 does on GPUs without bf16; the scale goes through a resume."""
    method = Leaf(batch_tokens=60, lr=1e-2)
    trainer = make_trainer(tiny_bert, sentences[:40], tmp_path, method)
    assert not trainer.optimizer.scaler.is_enabled()
    start = weights(trainer)
    trainer.optimizer.scaler = torch.amp.GradScaler("cpu")
    accumulate(trainer, first_batch(trainer))
    assert trainer.optimizer.dense[0].grad is not None
    trainer.optimizer.dense[0].grad[0] = torch.inf
    trainer.optimizer.step(1e-2)
    assert all(torch.equal(value, start[name]) for name, value in weights(trainer).items())
    assert trainer.optimizer.scaler.get_scale() == 2.0**15
    trainer.optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    outcome = trainer.run()
    assert outcome.history[-1]["heldout_loss"] < outcome.history[0]["heldout_loss"]
    again = make_trainer(tiny_bert, sentences[:40], tmp_path, method)
    again.optimizer.scaler = torch.amp.GradScaler("cpu")
    again.run()
    assert again.optimizer.scaler.get_scale() == 2.0**20


def test_no_room_for_one_text_is_a_failure_that_can_be_resumed(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    trainer, _ = split_run(tiny_bert, sentences[:8], tmp_path, room=0)
    with pytest.raises(RunFailed, match=r"memory ran out for one text of \d+ tokens") as caught:
        trainer.run()
    assert "--max-length" in str(caught.value.hint)
    assert "--resume" in str(caught.value.hint)


def test_other_errors_are_not_taken_for_memory(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_bert, sentences[:8], tmp_path)
    trainer.gradients._losses = lambda *args: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        trainer.run()


# -- gradients and weights ----------------------------------------------------------------------


def test_a_student_that_fails_on_later_texts_keeps_what_it_has_learnt(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    trainer = make_trainer(tiny_bert, sentences[:64], tmp_path)
    body = trainer.encoder.model[0].auto_model
    real, calls = body.forward, 0

    def fails(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(*args, **kwargs) if calls < 4 else torch.zeros(2)[torch.tensor(5)]

    body.forward = fails
    with pytest.raises(RunFailed, match=r"its forward pass fails .*IndexError") as caught:
        trainer.run()
    assert "--resume" in str(caught.value.hint)


def test_clipping_is_torchs_over_dense_and_sparse_alike(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    trainer = make_trainer(
        tiny_bert, sentences[:30], tmp_path, Leaf(batch_tokens=10_000, max_grad_norm=0.05)
    )
    accumulate(trainer, first_batch(trainer))
    assert trainer.optimizer.rows.grad.is_sparse
    copies = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients(trainer).values()]
    for copy, gradient in zip(copies, gradients(trainer).values(), strict=True):
        copy.grad = gradient.double().float()
    norm = torch.nn.utils.clip_grad_norm_(copies, 0.05)
    assert norm > 0.1  # else there is nothing to clip
    trainer.optimizer.prepare()
    for copy, gradient in zip(copies, gradients(trainer).values(), strict=True):
        torch.testing.assert_close(gradient, copy.grad, rtol=1e-5, atol=1e-9)


def test_a_table_that_two_modules_look_up_in_is_trained_as_any_matrix(
    sentences: list[str], tmp_path: Path
) -> None:
    """T5's: `shared` is a module of its own beside the encoder's."""
    from transformers import T5Config, T5EncoderModel

    from tests.conftest import bert_tokenizer, save_model

    tokenizer = bert_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4
    )
    torch.manual_seed(0)
    model = T5EncoderModel(config).eval()
    save_model(tmp_path / "t5", model, tokenizer, pooling="mean", max_length=32, prompts={})
    trainer = make_trainer(tmp_path / "t5", sentences[:32], tmp_path / "run")
    before = weights(trainer)
    table = trainer.encoder.token_table()
    assert table is not None
    assert sum(m._parameters.get("weight") is table.weight for m in trainer.student.modules()) == 2
    assert trainer.optimizer.rows is None
    trainer.run()
    changed = {name for name, value in weights(trainer).items() if (value != before[name]).any()}
    assert any("embed_tokens" in name for name in changed)


@pytest.mark.parametrize("clip", [0, 1e6])
def test_gradients_stay_without_clipping_and_below_its_norm(
    clip: float, tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    method = Leaf(batch_tokens=10_000, max_grad_norm=clip)
    trainer = make_trainer(tiny_bert, sentences[:9], tmp_path, method)
    accumulate(trainer, first_batch(trainer))
    before = gradients(trainer)
    trainer.optimizer.prepare()
    for name, value in gradients(trainer).items():
        torch.testing.assert_close(value, before[name])


@pytest.mark.parametrize("family", ["tiny_bert", "tiny_static"])
def test_steps_are_adams_written_out(
    family: str, request: pytest.FixtureRequest, sentences: list[str], tmp_path: Path
) -> None:
    """AdamW in float64, and for the token table Adam in the rows that occur, without decay."""
    method = Leaf(batch_tokens=60, lr=1e-2, weight_decay=0.1, max_grad_norm=0.0)
    trainer = make_trainer(request.getfixturevalue(family), sentences[:40], tmp_path, method)
    named = dict(trainer.student.named_parameters())
    table = next(n for n, p in named.items() if p is trainer.optimizer.rows)
    steps: list[tuple[float, dict[str, np.ndarray]]] = []
    real = trainer.optimizer._clip

    def spy() -> None:
        real()
        found = {n: g.double().numpy() for n, g in gradients(trainer).items()}
        steps.append((trainer._lr, found))

    trainer.optimizer._clip = spy  # type: ignore[method-assign]
    value = {n: p.detach().double().numpy().copy() for n, p in named.items()}
    trainer.run()
    assert len(steps) > 5
    first = {n: np.zeros_like(v) for n, v in value.items()}
    second = {n: np.zeros_like(v) for n, v in value.items()}
    for step, (lr, gradient) in enumerate(steps, 1):
        for name, g in gradient.items():
            rows = np.flatnonzero(g.any(1)) if name == table else slice(None)
            if name != table and g.ndim > 1:
                value[name] *= 1 - lr * 0.1
            first[name][rows] = 0.9 * first[name][rows] + 0.1 * g[rows]
            second[name][rows] = 0.999 * second[name][rows] + 0.001 * g[rows] ** 2
            m = first[name][rows] / (1 - 0.9**step)
            v = second[name][rows] / (1 - 0.999**step)
            # SparseAdam adds epsilon before the second moment's correction
            epsilon = 1e-8 / np.sqrt(1 - 0.999**step) if name == table else 1e-8
            value[name][rows] -= lr * m / (np.sqrt(v) + epsilon)
    moved = np.abs(value[table] - named[table].detach().numpy())
    assert np.flatnonzero(steps[0][1][table].any(1)).size < 0.5 * len(value[table])  # few rows
    for name, p in named.items():
        if ".pooler." not in name and "key.bias" not in name:  # those biases have no gradient
            np.testing.assert_allclose(p.detach().numpy(), value[name], atol=2e-4, err_msg=name)
    assert np.quantile(moved, 0.99) < 1e-5


# -- what is kept -------------------------------------------------------------------------------


def test_the_best_state_is_the_one_taken(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def score(encoder: Encoder) -> Score:
        seen.append({n: v.clone() for n, v in encoder.model.state_dict().items()})
        return Score([0.1, 0.3, 0.9, 0.2, 0.9][len(seen) - 1], {"score": float(len(seen))})

    trainer = make_trainer(tiny_bert, sentences[:60], tmp_path, score=score, scores=4)
    outcome = trainer.run()
    assert len(seen) == 5
    assert outcome.best == outcome.history[2]["texts"]
    trainer.take_best()
    for name, value in trainer.encoder.model.state_dict().items():
        assert torch.equal(value, seen[2][name])
    (file,) = (tmp_path / "state").glob("best-*")
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    with pytest.raises(InvalidInput, match=r"best-\d+.safetensors: the saved state is damaged"):
        trainer.take_best()


def test_with_nothing_measured_the_last_state_is_kept(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    trainer = make_trainer(
        tiny_bert, sentences[:60], tmp_path, score=lambda encoder: Score(None, {})
    )
    outcome = trainer.run()
    last = weights(trainer)
    assert outcome.best == 60
    trainer.take_best()
    assert all(torch.equal(value, last[name]) for name, value in weights(trainer).items())


# -- trouble ------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_text(
    tiny_bert: Path, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target that is NaN: found by its step's own losses, though they are read later."""
    monkeypatch.setattr("emb_tool.training.loop.SAVE_SECONDS", 1e9)
    targets = unit_vectors(60, 32)
    targets[17] = np.nan
    trainer = make_trainer(
        tiny_bert, sentences[:60], tmp_path, targets=targets, text_at=lambda i: sentences[i]
    )
    trainer.score = lambda: Score(0.0, {"score": 0.0})
    with pytest.raises(RunFailed, match="loss is not finite after") as caught:
        trainer.run()
    assert f"is not finite for text 17 '{sentences[17][:60]}' (counted" in str(caught.value)
    assert "--lr" in str(caught.value.hint)


def test_a_step_that_breaks_the_weights_is_named_and_the_state_before_it_kept(
    tiny_bert: Path, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own losses are finite: those of all texts after it are not."""
    monkeypatch.setattr("emb_tool.training.loop.SAVE_SECONDS", 0.0)
    trainer = make_trainer(tiny_bert, sentences[:60], tmp_path, text_at=lambda i: sentences[i])
    trainer.score = lambda: Score(0.0, {"score": 0.0})
    step, taken = trainer._step, []

    def breaks(batch: Any) -> None:
        step(batch)
        taken.append(batch)
        if len(taken) == 3:
            monkeypatch.setattr("emb_tool.training.loop.SAVE_SECONDS", 1e9)
            next(trainer.student.parameters()).data.fill_(float("inf"))

    trainer._step = breaks  # type: ignore[method-assign]
    with pytest.raises(RunFailed, match="the weights diverged in step 3, with text") as caught:
        trainer.run()
    assert f"with text {taken[2].indices[0]} '" in str(caught.value)
    before = taken[1].next_cursor.texts
    assert f"the state after {before} texts is saved" in str(caught.value)
    again = make_trainer(tiny_bert, sentences[:60], tmp_path)
    facts = again.states.load(again.student, again.optimizer.optimizers)
    assert facts is not None
    assert facts["cursor"][3] == before
    assert all(bool(value.isfinite().all()) for value in weights(again).values())


def test_a_state_with_nan_is_never_saved(
    tiny_bert: Path, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emb_tool.training.loop.SAVE_SECONDS", 0.0)
    targets = unit_vectors(60, 32)
    targets[17] = np.nan
    trainer = make_trainer(tiny_bert, sentences[:60], tmp_path, targets=targets)
    trainer.score = lambda: Score(0.0, {"score": 0.0})
    with pytest.raises(RunFailed, match="weights are not finite after"):
        trainer.run()
    again = make_trainer(tiny_bert, sentences[:60], tmp_path)
    again.states.load(again.student, again.optimizer.optimizers)
    assert all(bool(value.isfinite().all()) for value in weights(again).values())


def test_of_streamed_texts_the_words_are_told(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    """Their indices are places in a window."""
    targets = unit_vectors(60, 32)
    targets[17] = np.nan
    trainer = make_trainer(tiny_bert, sentences[:60], tmp_path, targets=targets)
    trainer.score = lambda: Score(0.0, {"score": 0.0})
    with pytest.raises(RunFailed, match="is not finite for text '") as caught:
        trainer.run()
    told = str(caught.value).partition("for text '")[2].partition("'")[0]
    assert told == trainer.encoder.text(trainer.encoder.tokenize([sentences[17]])[0])[:60]
    assert "counted" not in str(caught.value)


@pytest.fixture
def _handlers() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        assert signal.getsignal(number) == handler


@pytest.mark.usefixtures("_handlers")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("dropout", [False, True])
def test_a_signal_saves_and_the_resumed_run_ends_in_the_same_bits(
    tiny_bert: Path, sentences: list[str], tmp_path: Path, number: int, dropout: bool
) -> None:
    method = Leaf(batch_tokens=128, epochs=2, dropout=dropout)

    def start(folder: str, **options: Any) -> Trainer:
        return make_trainer(tiny_bert, sentences[:60], tmp_path / folder, method, **options)

    whole = start("whole")
    end = whole.run()
    done = 0

    def interrupt(texts: int, loss: float) -> None:
        nonlocal done
        done += texts
        if done - texts < 70 <= done:  # in the second epoch
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        start("broken", progress=interrupt).run()
    assert caught.value.exit_code == 128 + number
    resumed = start("broken")
    outcome = resumed.run()
    assert outcome.resumed_at == done < 120
    expected = weights(whole)
    for name, value in weights(resumed).items():
        assert torch.equal(value, expected[name]), name
    assert outcome.history == end.history
    assert (outcome.texts, outcome.tokens, outcome.steps) == (end.texts, end.tokens, end.steps)
    told = [x for x in lines(resumed) if "heldout_loss" in x]
    assert told == [x for x in lines(whole) if "heldout_loss" in x]


def test_metrics_of_a_sitting_that_left_no_state_are_dropped(
    tiny_bert: Path, sentences: list[str], tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"texts": 0, "step": 0, "heldout_loss": 1}\n{"te')
    trainer = make_trainer(tiny_bert, sentences[:20], tmp_path)
    trainer.run()
    assert [x["texts"] for x in lines(trainer) if "heldout_loss" in x] == [0, 20]


def test_a_kill_between_two_states_leaves_one(
    tiny_bert: Path, sentences: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tiny_bert, sentences[:20], tmp_path)
    trainer.run()
    kept = weights(trainer)
    for name in ("save_tensors", "write_atomically"):

        def killed(*args: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(f"emb_tool.training.state.{name}", killed)
            with pytest.raises(KeyboardInterrupt):
                trainer._save()
        again = make_trainer(tiny_bert, sentences[:20], tmp_path)
        assert again.states.load(again.student, again.optimizer.optimizers)
        assert all(torch.equal(value, kept[n]) for n, value in weights(again).items())


def test_rate_is_finite_everywhere() -> None:
    method = Training(lr=1e-3, warmup=0.0, cycles=7)
    assert all(math.isfinite(learning_rate(method, x)) for x in np.linspace(0, 1, 101))
