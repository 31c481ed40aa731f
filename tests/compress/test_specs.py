"""What a stranger's `config.json` may say of a packed module: asked of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from emb_tool import packed
from emb_tool.errors import InvalidInput
from tests.faults.strangers import ODD

ROWS, COLUMNS = 40, 16
SETTINGS: dict[str, dict[str, Any]] = {
    "int": {"group_size": 8}, "float8": {}, "pq": {"subvectors": 4, "bits": 4},
    "opq": {"subvectors": 4, "bits": 4, "frequent_rows": 4},
    "rq": {"stages": 2, "bits": 4, "scale": 2.0},
    "mgqe": {"bits": 4, "tail_bits": 3}, "cce": {"bits": 3}, "svd": {"rank": 3}, "tt": {"rank": 3},
    "hash": {"buckets": 8, "function": "universal"}, "qr": {"quotients": 5}, "robe": {"slots": 50},
    "dhe": {"hashes": 8, "hidden": 8}, "dedup": {"block": 2, "unique": 10}, "mde": {"width": 8},
    "stride": {"original": 16, "first": 2}, "prune": {"keep": 0.5},
}  # fmt: skip


def changed(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A setting gone, or odd, or the first of its list odd."""
    for key, value in spec.items():
        if key != "kind":  # `packed_modules` has looked at it
            yield {k: v for k, v in spec.items() if k != key}
            yield from ({**spec, key: odd} for odd in ODD)
        if isinstance(value, list):
            yield from ({**spec, key: [odd, *value[1:]]} for odd in ODD)


@pytest.mark.parametrize("kind", packed.KINDS)
def test_an_odd_spec_is_refused_or_gives_a_matrix(kind: str) -> None:
    cls = packed.kind(kind)
    made = cls(cls.resolve_spec((ROWS, COLUMNS), **SETTINGS[kind], role="table")).reset()
    stored = made.state_dict()
    sizes = {name: data.shape for name, data in stored.items()}
    kept, refused = 0, 0
    for spec in [made.spec, *changed(made.spec)]:
        try:
            with torch.device("meta"):
                again = packed.empty(spec)
        except InvalidInput:
            refused += 1
            continue
        if {name: data.shape for name, data in again.state_dict().items()} == sizes:
            again.load_state_dict(stored, assign=True)
            assert again.expand().shape == (again.num_embeddings, again.embedding_dim)
            kept += 1
    assert kept >= 1
    assert refused > len(ODD)
