from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized import (
    bare,
    decoded,
    make_table,
    rel_error,
    run_step,
    train_steps,
    written,
    zipf,
)
from safetensors.torch import load_file
from sklearn.cluster import KMeans

from emb_tool import packed
from emb_tool.checkpoint.header import read_header
from emb_tool.checkpoint.reader import Checkpoint
from emb_tool.compress.pq import Pq
from emb_tool.editing import CheckpointEditor
from emb_tool.errors import InvalidInput
from emb_tool.hub import expand
from emb_tool.packed.pq import Pq as Packed

TABLE = make_table()
COUNTS = zipf(len(TABLE))


# -- the format ------------------------------------------------------------------------------------


@settings(max_examples=16, deadline=None)
@given(
    bits=st.integers(4, 8), sizes=st.sampled_from([(12, 1), (12, 6), (15, 3), (7, 7)]),
    frequent=st.sampled_from([0, 1, 17, 40]), frequent_bits=st.integers(2, 8),
    factor=st.sampled_from([1.0, 1e-7, 1e6]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.float64]),
)  # fmt: skip
def test_look_up_is_what_the_bytes_say(
    bits: int,
    sizes: tuple[int, int],
    frequent: int,
    frequent_bits: int,
    factor: float,
    dtype: torch.dtype,
) -> None:
    columns, subvectors = sizes
    factor = 1.0 if dtype == torch.float16 else factor
    table = (make_table(40, columns) * factor).to(dtype)
    made = Packed.fit(
        table,
        subvectors=subvectors,
        bits=bits,
        frequent_rows=frequent,
        frequent_bits=frequent_bits,
        iterations=2,
    )
    true = decoded(made)
    ids = torch.tensor([[0, 39], [7, 7], [16, 17]])
    near = 1e-6 * np.abs(true).max()  # c s + m may cancel
    np.testing.assert_allclose(made(ids).numpy(), true[ids.numpy()], rtol=1e-5, atol=near)
    assert torch.equal(made.expand(), made(torch.arange(40)))
    assert made.nbytes == sum(len(b.numpy().tobytes()) for b in made.buffers())
    of_codes = sum(-(-subvectors * part // 8) for part in PARTS[bits])
    of_frequent = sum(-(-columns * part // 8) for part in PARTS[frequent_bits]) + (
        6 if frequent_bits == 8 else 8
    )
    assert (
        made.nbytes == (40 - frequent) * of_codes + 2 * columns * 2**bits + frequent * of_frequent
    )
    if frequent:  # without counts the first rows are the frequent ones
        exact = table.double().numpy()[:frequent]
        low, step = exact.min(1, keepdims=True), np.ptp(exact, axis=1) / (2**frequent_bits - 1)
        plain = low + np.round((exact - low) / step[:, None]) * step[:, None]
        at_most = 1e-4 if frequent_bits == 8 else 1.05 * rel_error(exact, plain) + 1e-5
        assert rel_error(exact, true[:frequent]) < at_most
    assert rel_error(table.double(), true) < 1


PARTS = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def test_a_spec_says_the_bits_of_frequent_rows() -> None:
    made = Packed.fit(TABLE, COUNTS, subvectors=4, bits=5, frequent_rows=30, frequent_bits=8)
    assert {name: part.dtype for name, part in made._parts.items()} == {
        "codes": torch.uint8, "codebooks": torch.float16, "frequent_ids": torch.int32,
        "frequent_values": torch.int8, "frequent_scales": torch.float16,
    }  # fmt: skip
    spec = {key: value for key, value in made.spec.items() if key != "frequent_bits"}
    with pytest.raises(InvalidInput, match="frequent_rows=30 without frequent_bits"):
        packed.empty(spec)
    assert "frequent_bits" not in Packed.resolve_spec((1200, 16), subvectors=4)


def test_other_dtypes_and_roles() -> None:
    made = Packed.fit(TABLE, COUNTS, subvectors=4, frequent_rows=50, role="bag")
    whole = made.expand()
    ids, offsets = torch.tensor([3, 5, 5, 9, 1]), torch.tensor([0, 2, 2])
    dense = torch.nn.EmbeddingBag.from_pretrained(whole, mode="mean")
    torch.testing.assert_close(made(ids, offsets), dense(ids, offsets))
    made.half()
    assert made(ids, offsets).dtype == torch.float16
    linear = Packed.fit(TABLE, subvectors=4, role="linear")
    x = torch.randn(5, 16)
    torch.testing.assert_close(linear(x), x @ linear.expand().T)


def test_deterministic() -> None:
    one, two = (Packed.fit(TABLE, COUNTS, 0.2, seed=4) for _ in range(2))
    assert one.spec == two.spec
    for a, b in zip(one.buffers(), two.buffers(), strict=True):
        assert torch.equal(a, b)


# -- the fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_error_of_scikit_learn(weighted: bool) -> None:
    weights = np.sqrt(np.maximum(COUNTS.numpy(), 1)) if weighted else np.ones(len(TABLE))
    counts = COUNTS if weighted else None
    made = Packed.fit(TABLE, counts, subvectors=8, bits=6, iterations=20)
    peer = []
    for part in TABLE.numpy().reshape(len(TABLE), 8, 2).transpose(1, 0, 2):
        found = KMeans(64, init="random", n_init=1, max_iter=20, random_state=0)
        found.fit(part, sample_weight=weights)
        peer.append(found.cluster_centers_[found.labels_].astype(np.float16))
    theirs = rel_error(TABLE, np.concatenate(peer, axis=1), weights)
    assert rel_error(TABLE, made.expand(), weights) <= 1.03 * theirs


def test_frequent_rows_are_kept_better() -> None:
    plain = Packed.fit(TABLE, subvectors=4, bits=5)
    weighted = Packed.fit(TABLE, COUNTS, subvectors=4, bits=5)
    frequent = Packed.fit(TABLE, COUNTS, subvectors=4, bits=5, frequent_rows=100)
    errors = [rel_error(TABLE, m.expand(), COUNTS) for m in (plain, weighted, frequent)]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.5 * errors[0]
    top = COUNTS.argsort(descending=True)[:100].sort().values
    assert frequent.value("frequent_ids").tolist() == top.tolist()
    mostly_hot = torch.cat([top[:60], torch.arange(40)])
    assert torch.equal(frequent.rows(mostly_hot), frequent.expand()[mostly_hot])


@pytest.mark.parametrize("frequent_bits", [4, 5, 8])
def test_look_ups_are_alike_however_made(frequent_bits: int) -> None:
    """Of ids that come again, of one kind or both, with gradients, and in fp16."""
    made = Packed.fit(
        TABLE, COUNTS, subvectors=4, bits=5, frequent_rows=300, frequent_bits=frequent_bits
    )
    true = torch.from_numpy(decoded(made)).float()
    frequent = made.value("frequent_ids").long()
    some = torch.randint(1200, (700,), generator=torch.Generator().manual_seed(0))
    again = torch.cat([frequent, some]).repeat(2)
    for ids in (again, frequent[:9], some, torch.cat([frequent, some[:40]]), frequent[:0]):
        torch.testing.assert_close(made(ids), true[ids])
    torch.testing.assert_close(made.half()(again), true[again].half(), rtol=2e-3, atol=2e-3)
    (books,) = made.float().unlock()
    found = made(again)
    torch.testing.assert_close(found, true[again])
    found.sum().backward()
    # each of a sub-vector's 4 columns, for each row with codes
    cold = (~torch.isin(again, frequent)).sum()
    assert books.grad.sum() == 16 * cold


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Dynamo detected:UserWarning")
def test_compiled() -> None:
    made = Packed.fit(TABLE, COUNTS, subvectors=4, bits=5, frequent_rows=300)
    ids = torch.arange(1200).repeat(2).view(2, -1)
    compiled = torch.compile(made, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), made(ids))


@pytest.mark.parametrize("budget", [0.1, 0.15, 0.25])
@pytest.mark.parametrize(("counts", "frequent_bits"), [(None, 5), (COUNTS, 5), (COUNTS, 8)])
def test_budget_is_kept_and_used(
    budget: float, counts: torch.Tensor | None, frequent_bits: int
) -> None:
    table = make_table(4000, 16)
    counts = None if counts is None else zipf(4000)
    made = Packed.fit(table, counts, budget, iterations=2, frequent_bits=frequent_bits)
    share = made.nbytes / (4 * table.numel())
    assert share <= budget
    assert (
        made.nbytes <= Packed(Packed.resolve_spec((4000, 16), budget)).nbytes or counts is not None
    )
    if counts is not None:
        assert share > 0.9 * budget  # frequent rows fill it


def test_many_rows_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    from emb_tool.packed import points

    table, counts = make_table(6000, 8), zipf(6000)
    whole = Packed.fit(table, counts, subvectors=4, bits=5)
    monkeypatch.setattr(points.training_rows, "__defaults__", (2000,))
    some = Packed.fit(table, counts, subvectors=4, bits=5)
    weights = counts.clamp(min=1).sqrt()
    assert rel_error(table, some.expand(), weights) < 1.15 * rel_error(
        table, whole.expand(), weights
    )


def test_trainable() -> None:
    made = Packed.fit(TABLE, COUNTS, subvectors=4, bits=4, frequent_rows=10)
    before, after = train_steps(made, TABLE)
    assert after < before
    scratch = Packed(Packed.resolve_spec((1200, 16), subvectors=8, bits=4, frequent_rows=50)).reset(
        seed=1
    )
    assert 0.8 < float(scratch.rows(torch.arange(50)).std()) < 1.2
    assert 0.8 < float(scratch.expand().std()) < 1.2
    before, after = train_steps(scratch, TABLE, 200)
    assert after < 0.8 * before


# -- several tables --------------------------------------------------------------------------------


def test_one_codebook_for_several_tables(tmp_path: Path) -> None:
    whole = make_table(1200, 12)
    a, b = whole[:900].clone(), whole[900:].clone()
    path = bare(tmp_path, users=a, items=b, bias=torch.zeros(7))
    step = Pq(tensor=("users", "items"), shared=True, subvectors=4, bits=6)
    out = written(run_step(step, path, tmp_path / "w"), tmp_path / "out")
    users, items = out.modules["users"], out.modules["items"]
    assert "items.codebooks" not in out.tensors
    assert items.spec["shared_with"] == "users"
    assert items.nbytes == 300 * 3
    np.testing.assert_allclose(users.expand().numpy(), decoded(users), rtol=1e-5)
    assert rel_error(b, items.expand()) < 0.3
    alone = Packed.fit(a, subvectors=4, bits=6)
    assert rel_error(a, users.expand()) < 1.1 * rel_error(a, alone.expand())
    assert torch.equal(out.tensors["bias"], torch.zeros(7))
    plain = load_file(expand(tmp_path / "out", tmp_path / "plain") / "model.safetensors")
    assert torch.equal(plain["items"], items.expand())
    assert torch.equal(plain["users"], users.expand())


def test_tables_of_two_widths_share_nothing(tmp_path: Path) -> None:
    path = bare(tmp_path, a=make_table(300, 8), b=make_table(300, 12))
    draft = CheckpointEditor.of(Checkpoint.open(path))
    with pytest.raises(InvalidInput, match=r"different widths.*a 8, b 12"):
        Pq(tensor=("a", "b"), shared=True).plan(draft)
    Pq(tensor=("a", "b"), subvectors=4).plan(draft)
    assert sorted(draft.packed) == ["a", "b"]


# -- whole models and bare files -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "module", "role"),
    [
        ("tiny_bert", "embeddings.word_embeddings", "table"),
        ("tiny_decoder", "embed_tokens", "table"),
        ("tiny_static", "embedding", "bag"),
    ],
)
def test_token_table_of_a_model(
    model: str,
    module: str,
    role: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    sentences: list[str],
) -> None:
    source = request.getfixturevalue(model)
    step = Pq(subvectors=16, bits=6, frequent_rows=20)
    draft = run_step(step, source, tmp_path / "w", sentences)
    out = written(draft, tmp_path / "out")
    made = out.modules[module]
    assert made.spec["role"] == role
    table = Checkpoint.open(source).tensor(f"{module}.weight").float()
    assert rel_error(table, made.expand()) < 0.3
    # the words of the sentences are the frequent rows
    frequent = made.value("frequent_ids").long()
    assert rel_error(table[frequent], made.rows(frequent)) < 3e-3
    tensors = read_header(tmp_path / "out" / "model.safetensors").tensors
    assert sum(s.nbytes for n, s in tensors.items() if n.startswith(f"{module}.")) == made.nbytes
    assert len(tensors[f"{module}.weight"].shape) == 1
    said = draft.notes[-1]
    assert f"relative error {rel_error(table, made.expand()):.4f}" in said
    assert "weighted by frequency" in said
    assert draft.facts["pq"][f"{module}.weight"]["bytes"] == made.nbytes


def test_bare_file(tmp_path: Path) -> None:
    np.save(tmp_path / "counts.npy", COUNTS.numpy())
    path = bare(tmp_path, items=TABLE, other=torch.ones(3))
    step = Pq(tensor=("it*",), budget=0.4, frequencies=str(tmp_path / "counts.npy"))
    out = written(run_step(step, path, tmp_path / "w"), tmp_path / "out")
    same = Packed.fit(TABLE, COUNTS, 0.4)
    assert out.modules["items"].spec == {**same.spec, "tensor": "items"}
    assert torch.equal(out.modules["items"].expand(), same.expand())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json", "model.safetensors",
    ]  # fmt: skip
    again = Checkpoint.open(tmp_path / "out", need_tokenizer=False)
    assert again.layout.modules == ()
    assert set(again.tensors) > {"items.weight", "items.codebooks", "other"}


def test_integers_with_a_scale(tmp_path: Path) -> None:
    codes = torch.randint(-128, 128, (500, 8), dtype=torch.int8)
    path = bare(tmp_path, items=codes)
    with pytest.raises(InvalidInput, match=r"integers.*scale"):
        Pq().plan(CheckpointEditor.of(Checkpoint.open(path)))
    step = Pq(scale=0.01, subvectors=8)
    out = written(run_step(step, path, tmp_path / "w"), tmp_path / "out")
    assert rel_error(codes.numpy() * 0.01, out.modules["items"].expand()) < 1e-3


def test_large_tables_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from emb_tool.checkpoint import reader
    from emb_tool.ops import rows

    path = bare(tmp_path, items=TABLE, codes=(TABLE * 20).to(torch.int8))
    whole = Packed.fit(TABLE, subvectors=4, bits=6)
    monkeypatch.setattr(reader, "MMAP_BYTES", 1024)
    monkeypatch.setattr(rows, "MMAP_BYTES", 1024)
    monkeypatch.setattr(rows, "CHUNK", 16 * 100)
    step = Pq(tensor=("items",), subvectors=4, bits=6)
    out = written(run_step(step, path, tmp_path / "w"), tmp_path / "out")
    assert torch.equal(out.modules["items"].expand(), whole.expand())
    step = Pq(tensor=("codes",), subvectors=8, bits=6, scale=0.05)
    out = written(run_step(step, path, tmp_path / "w"), tmp_path / "out2")
    assert rel_error(TABLE, out.modules["codes"].expand()) < 0.1
    assert list((tmp_path / "w").iterdir()) == []


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ({"tensor": ("itms",)}, "no tensor 'itms'", "items"),
        ({"tensor": ("items",), "subvectors": 5}, "items: subvectors=5.*width 16", "4, 8"),
        ({"tensor": ("items",), "budget": 0.001}, "items: pq takes", "budget"),
        (
            {"tensor": ("items",), "frequent_rows": 5000},
            "items: frequent_rows=5000.*1,200 rows",
            "1,200",
        ),
        ({"tensor": ("line",)}, r"shape \[7\]", "two dimensions"),
        ({"tensor": ("items",), "scale": 2.0}, "floats", "scale"),
        ({}, "has 2 tables", "tensor="),
    ],
)
def test_refused(settings: dict[str, object], message: str, hint: str, tmp_path: Path) -> None:
    path = bare(tmp_path, items=TABLE, users=TABLE[:9].clone(), line=torch.ones(7))
    with pytest.raises(InvalidInput, match=message) as refused:
        Pq(**settings).plan(CheckpointEditor.of(Checkpoint.open(path)))
    assert hint in (refused.value.hint or "")


@pytest.mark.parametrize(
    ("counts", "message"),
    [("1 2 3", "3.*items has 1,200 rows"), ("-1 " * 1200, "row 0 is -1"), ("a", "frequencies")],
)
def test_faulty_frequencies(counts: str, message: str, tmp_path: Path) -> None:
    path = bare(tmp_path, items=TABLE)
    (tmp_path / "counts.txt").write_text(counts)
    with pytest.raises(InvalidInput, match=message):
        Pq(frequencies=str(tmp_path / "counts.txt")).plan(
            CheckpointEditor.of(Checkpoint.open(path))
        )


def test_rows_that_are_not_finite(tmp_path: Path) -> None:
    table = TABLE.clone()
    table[7, 3], table[900, 0] = float("nan"), float("inf")
    with pytest.raises(InvalidInput, match=r"items: 2 rows.*7, 900"):
        run_step(Pq(subvectors=4), bare(tmp_path, items=table), tmp_path / "w")


def test_packed_twice(tmp_path: Path) -> None:
    draft = CheckpointEditor.of(Checkpoint.open(bare(tmp_path, items=TABLE)))
    Pq(subvectors=4).plan(draft)
    with pytest.raises(InvalidInput, match="packed already"):
        Pq(tensor=("items",), subvectors=4).plan(draft)


def test_lossy(tmp_path: Path) -> None:
    noise = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    path = bare(tmp_path, items=noise)
    with pytest.raises(InvalidInput, match=r"relative error 0\.\d+.*above 0\.3"):
        run_step(Pq(subvectors=1, bits=4), path, tmp_path / "w")
    draft = run_step(Pq(subvectors=1, bits=4, allow_lossy=True), path, tmp_path / "w")
    assert "relative error 0." in draft.notes[-1]
