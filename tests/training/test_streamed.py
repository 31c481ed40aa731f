"""Streamed texts: the same batches for any number of processes, and from any place on."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from emb_tool.data.streams import Shards
from emb_tool.errors import Failed, Refused
from emb_tool.training.stream import Batch, Place
from emb_tool.training.streamed import StreamedTexts

COUNT = 200
BEGINNING = Place()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Numbered texts in files of unlike sizes, one of several groups of rows; some are empty."""
    folder = tmp_path_factory.mktemp("shards")
    cuts = [0, 5, 6, 40, 41, 100, 101, 130, 131, 150, 170, 171, 180, 190, 195, 196, 198, COUNT]
    for start, end in pairwise(cuts):
        rows = [f" {i} " for i in range(start, end)] + [""]
        table = pa.table({"id": list(range(len(rows))), "text": rows})
        pq.write_table(table, folder / f"{start:03}.parquet", row_group_size=7)
    return Shards([str(path) for path in sorted(folder.iterdir())])


def make(shards: Shards, **settings: Any) -> StreamedTexts:
    """Text i has i % 7 + 1 tokens and the target [i]."""

    def teach(texts: Sequence[str]) -> np.ndarray:
        return np.array([[int(text)] for text in texts], np.float32).reshape(-1, 1)

    def tokenize(texts: Sequence[str]) -> list[np.ndarray]:
        return [np.full(int(text) % 7 + 1, int(text), np.int32) for text in texts]

    options: dict[str, Any] = {
        "tokenize": tokenize, "teach": teach,
        "batch_tokens": 30, "epoch_texts": COUNT, "total": 2 * COUNT + 20, "seed": 0, "buffer": 48,
    }  # fmt: skip
    return StreamedTexts(shards, **{**options, **settings})


def numbers(batch: Batch) -> list[int]:
    assert [int(ids[0]) for ids in batch.ids] == batch.targets[:, 0].astype(int).tolist()
    return [int(ids[0]) for ids in batch.ids]


def together(shards: Shards, world: int, place: Place = BEGINNING) -> list[list[Batch]]:
    """The batches of each of several processes, here threads that tell one another."""
    barrier, told = threading.Barrier(world), [None] * world
    found: list[list[Batch]] = [[] for _ in range(world)]

    def gather(rank: int) -> Callable[[Any], list[Any]]:
        def tell(mine: Any) -> list[Any]:
            told[rank] = json.loads(json.dumps(mine, default=int))
            barrier.wait(20)
            all_of = [(({int(k): n for k, n in c.items()}), x, y) for c, x, y in told]  # type: ignore[misc]
            barrier.wait(20)
            return all_of

        return tell

    def work(rank: int) -> None:
        stream = make(shards, rank=rank, world=world, gather=gather(rank))
        found[rank] = list(stream.ahead(place))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_each_epoch_takes_every_text_once_in_an_order_of_its_own(shards: Shards) -> None:
    batches = list(make(shards).ahead(Place()))
    assert batches[-1].after.texts == 2 * COUNT + 20
    seen = [numbers(batch) for batch in batches]
    flat = [number for batch in seen for number in batch]
    assert sorted(flat[:COUNT]) == sorted(flat[COUNT : 2 * COUNT]) == list(range(COUNT))
    assert flat[:COUNT] != flat[COUNT : 2 * COUNT]
    assert np.abs(np.diff(flat[:COUNT])).mean() > 10  # not as they stand in the files
    for batch, found in zip(batches, seen, strict=True):
        assert len(found) == batch.texts
        assert len(found) == 1 or max(n % 7 + 1 for n in found) * len(found) <= 30
    assert [numbers(b) for b in make(shards, seed=1).ahead(Place())] != seen


@pytest.mark.parametrize("world", [2, 3, 4, 12, 32])
def test_processes_share_the_very_same_batches(shards: Shards, world: int) -> None:
    alone = list(make(shards).ahead(Place()))
    ranks = together(shards, world)
    assert {len(batches) for batches in ranks} == {len(alone)}
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert sorted(n for part in parts for n in numbers(part)) == sorted(numbers(whole))
        assert {part.texts for part in parts} == {whole.texts}
        assert all(part.after == whole.after for part in parts)


def test_a_run_is_taken_up_at_any_place_by_any_number(shards: Shards) -> None:
    alone = list(make(shards).ahead(Place()))
    for at in (0, 3, len(alone) // 3, len(alone) // 2, len(alone) - 2):
        place = Place(*json.loads(json.dumps(list(alone[at].after))))
        rest = list(make(shards).ahead(place))
        assert [numbers(b) for b in rest] == [numbers(b) for b in alone[at + 1 :]]
    both = together(shards, 2, place)
    assert sorted(n for rank in both for b in rank for n in numbers(b)) == sorted(
        n for b in alone[at + 1 :] for n in numbers(b)
    )


def test_what_is_held_out_does_not_come_by_and_limits_are_kept(shards: Shards) -> None:
    flat = [n for b in make(shards, wanted=lambda text: int(text) % 2).ahead(Place())
            for n in numbers(b)]  # fmt: skip
    assert len(flat) == 2 * COUNT + 20
    assert all(n % 2 for n in flat)
    few = [n for b in make(shards, epoch_texts=60, total=120).ahead(Place()) for n in numbers(b)]
    assert len(few) == 120
    assert len(set(few[:60])) == len(set(few[60:])) == 60
    with pytest.raises(Refused, match="no text"):
        list(make(shards, wanted=lambda text: False).ahead(Place()))


def test_a_place_is_reached_without_reading_what_came_before(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lane opens the one shard that it stands in, not those behind it."""
    whole = list(make(shards).ahead(Place()))
    late = next(b.after for b in whole if b.after.epoch == 0 and b.after.texts > 150)
    opened: list[int] = []
    real = Shards.open

    def noted(self: Shards, index: int, state: Any = None) -> Any:
        opened.append(index)
        return real(self, index, state)

    monkeypatch.setattr(Shards, "open", noted)
    stream = make(shards, total=late.texts + 1)
    next(iter(stream.ahead(late)))
    assert len(opened) < len(shards)


@pytest.mark.parametrize(("window", "kind"), [(1, Refused), (3, Failed)])
def test_a_text_at_fault_takes_nothing_with_it_that_is_learnt(
    shards: Shards, window: int, kind: type[Exception]
) -> None:
    """What is refused removes the partial output, a failure keeps it."""
    calls = 0

    def teach(texts: Sequence[str]) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == window:
            raise Refused("row 9 holds 3, not a string", "correct or remove the record")
        return np.zeros((len(texts), 1), np.float32)

    with pytest.raises(kind, match="row 9 holds 3") as caught:
        list(make(shards, teach=teach).ahead(BEGINNING))
    hint = str(caught.value.hint)  # type: ignore[attr-defined]
    assert hint.startswith("correct or remove the record")
    assert ("--resume" in hint) == (kind is Failed)


def test_a_folder_of_texts_is_counted(shards: Shards, tmp_path: Path) -> None:
    assert shards.count() == COUNT + 17  # one empty text a file
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert Shards([str(tmp_path / "a.jsonl")]).count() is None
