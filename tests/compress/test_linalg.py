"""Linear algebra in slices, and hashes, against numpy and whole numbers of Python."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emb_tool.compress import rotation
from emb_tool.ops import rows
from emb_tool.packed import hashing, linalg
from tests.tables import table


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rows, linalg):
        monkeypatch.setattr(module, "CHUNK", 64)


def test_gram_of_all_and_of_some_weighted_rows():
    x = table(50, 7)
    values = x.double().numpy()
    np.testing.assert_allclose(linalg.gram(x), values.T @ values, rtol=1e-5, atol=1e-4)
    ids, w = torch.tensor([3, 9, 10, 49]), torch.tensor([1.0, 2.0, 0.5, 3.0])
    own = values[ids.numpy()]
    wanted = own.T @ (w.double().numpy()[:, None] * own)
    np.testing.assert_allclose(linalg.gram(x, w, ids), wanted, rtol=1e-5, atol=1e-4)


def test_eigenvectors_descend_and_have_one_sign():
    x = table(40, 6).double()
    values, vectors = linalg.top_eigenvectors(x.T @ x, 4)
    wanted = np.linalg.svd(x.numpy(), compute_uv=False)[:4] ** 2
    np.testing.assert_allclose(values, wanted, rtol=1e-10)
    np.testing.assert_allclose((x.T @ x) @ vectors, vectors * values, atol=1e-8)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


def test_a_random_rotation_is_uniform_by_the_signs_of_r():
    """Q of a QR decomposition alone is not: its signs are those of a convention."""
    gaussian = torch.randn(9, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    q = rotation.random(9, 3)
    torch.testing.assert_close(q.T @ q, torch.eye(9, dtype=torch.float64))
    r = q.T @ gaussian
    torch.testing.assert_close(r.tril(-1), torch.zeros(9, 9, dtype=torch.float64))
    assert (r.diagonal() > 0).all()


def test_low_rank_is_the_truncated_svd():
    x = table(60, 9)
    left, right = linalg.low_rank(x, 4)
    u, s, v = np.linalg.svd(x.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(left.float() @ right, (u[:, :4] * s[:4]) @ v[:4], atol=5e-3)
    sizes = left.float().square().mean(0).sqrt()
    np.testing.assert_allclose(sizes, right.norm(dim=1), rtol=1e-2)  # shared out evenly


def test_a_table_of_zeros_has_factors():
    left, right = linalg.low_rank(torch.zeros(5, 3), 2)
    assert torch.equal(left.float() @ right, torch.zeros(5, 3))


def test_splitmix_gives_the_published_numbers():
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert hashing.splitmix(1234567, 3) == wanted


def test_hashes_are_their_formulas_in_whole_numbers():
    p = 2**31 - 1
    ids = [0, 1, 77, 20_000_000, p - 1]
    a, b = hashing.coefficients(5, 2).tolist()
    wanted = [(a * i + b) % p % 1000 for i in ids]
    assert hashing.universal(torch.tensor(ids), 1000, 5).tolist() == wanted
    a, b, c, d = hashing.coefficients(6, 4).tolist()
    others = [p - 1, 4, 0, 99, p - 1]
    xs = [(a * i + b * j + d) % p for i, j in zip(ids, others, strict=True)]
    wanted = [(c * x * x + x) % p for x in xs]
    assert hashing.universal_pairs(torch.tensor(ids), torch.tensor(others), 6).tolist() == wanted


def test_hashes_fill_buckets_evenly():
    grid = torch.arange(3000).unsqueeze(1), torch.arange(20)
    counts = torch.bincount((hashing.universal_pairs(*grid, 0) % 3000).flatten(), minlength=3000)
    assert 0.85 < float(counts.double().var()) / 20 < 1.15  # Poisson: variance = mean
    codes = hashing.universal_codes(torch.arange(2000), 16, 1_000_000, 3)
    assert codes.shape == (2000, 16)
    assert codes.min() >= -1
    assert codes.max() <= 1
    assert codes.std().item() == pytest.approx(3**-0.5, rel=0.02)
