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

from emb_tool.data.batches import Tokens
from emb_tool.data.streams import Shards
from emb_tool.errors import InvalidInput, RunFailed
from emb_tool.training.batches import Batch, DataCursor
from emb_tool.training.streaming import StreamedTexts, StreamSource

COUNT = 200
QUERIES = 15
BEGINNING = DataCursor()


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


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """As `shards`, numbered from 1000, fewer than a run takes, in two files of unlike sizes."""
    folder = tmp_path_factory.mktemp("queries")
    for start, end in ((1000, 1004), (1004, 1000 + QUERIES)):
        lines = [json.dumps({"text": str(i)}) + "\n" for i in range(start, end)]
        (folder / f"{start}.jsonl").write_text("".join(lines))
    return Shards([str(path) for path in sorted(folder.iterdir())])


def make(shards: Shards, queries: Shards | None = None, **settings: Any) -> StreamedTexts:
    """Text i has i % 7 + 1 tokens and the target [i]; of queries, a quarter."""

    def encode_targets(texts: Sequence[str]) -> np.ndarray:
        return np.array([[int(text)] for text in texts], np.float32).reshape(-1, 1)

    def tokenize(texts: Sequence[str]) -> Tokens:
        ids = [np.full(int(text) % 7 + 1, int(text), np.int32) for text in texts]
        return Tokens(ids, np.array([int(text) % 7 == 6 for text in texts], bool))

    options: dict[str, Any] = {
        "batch_tokens": 30, "epoch_texts": COUNT, "total": 2 * COUNT + 20, "seed": 0, "buffer": 48,
    }  # fmt: skip
    encode_targets = settings.pop("encode_targets", encode_targets)
    sources = [StreamSource(shards, tokenize, encode_targets)]
    if queries:
        sources.append(StreamSource(queries, tokenize, encode_targets, role=1))
        options["share"] = 0.25
    return StreamedTexts(*sources, **{**options, **settings})


def numbers(batch: Batch) -> list[int]:
    assert [int(ids[0]) for ids in batch.ids] == batch.targets[:, 0].astype(int).tolist()
    return [int(ids[0]) for ids in batch.ids]


def together(
    shards: Shards, queries: Shards | None, world: int, place: DataCursor = BEGINNING
) -> list[list[Batch]]:
    """The batches of each of several processes, here threads that tell one another."""
    barrier, told = threading.Barrier(world), [None] * world
    found: list[list[Batch]] = [[] for _ in range(world)]

    def gather(rank: int) -> Callable[[Any], list[Any]]:
        def tell(mine: Any) -> list[Any]:
            told[rank] = json.loads(json.dumps(mine, default=int))
            barrier.wait(20)
            all_of = [({int(k): n for k, n in c.items()}, *x) for c, *x in told]  # type: ignore[misc]
            barrier.wait(20)
            return all_of

        return tell

    def work(rank: int) -> None:
        stream = make(shards, queries, rank=rank, world=world, gather=gather(rank))
        found[rank] = list(stream.prefetched(place))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_each_epoch_takes_every_text_once_in_an_order_of_its_own(shards: Shards) -> None:
    batches = list(make(shards).prefetched(DataCursor()))
    assert batches[-1].next_cursor.texts == 2 * COUNT + 20
    seen = [numbers(batch) for batch in batches]
    flat = [number for batch in seen for number in batch]
    assert sorted(flat[:COUNT]) == sorted(flat[COUNT : 2 * COUNT]) == list(range(COUNT))
    assert flat[:COUNT] != flat[COUNT : 2 * COUNT]
    assert np.abs(np.diff(flat[:COUNT])).mean() > 10  # not as they stand in the files
    for batch, found in zip(batches, seen, strict=True):
        assert len(found) == batch.texts
        assert len(found) == 1 or max(n % 7 + 1 for n in found) * len(found) <= 30
    assert [numbers(b) for b in make(shards, seed=1).prefetched(DataCursor())] != seen


@pytest.mark.parametrize("separate", [False, True])
def test_queries_come_by_in_their_share_each_once_before_any_again(
    shards: Shards, queries: Shards, separate: bool
) -> None:
    batches = list(make(shards, queries, separate=separate).prefetched(DataCursor()))
    seen = [numbers(batch) for batch in batches]
    asked = [n for batch in seen for n in batch if n >= 1000]
    told = [n for batch in seen for n in batch if n < 1000]
    assert len(told) + len(asked) == 2 * COUNT + 20
    assert abs(len(asked) - 0.25 * (2 * COUNT + 20)) <= 12  # the last window is not whole
    # within a window they are shuffled, so count: none is a whole lap ahead of another
    times = [asked.count(n) for n in range(1000, 1000 + QUERIES)]
    assert min(times) >= max(times) - 2 > 3
    assert len(set(told[:150])) == 150
    mixed = 0
    for batch, found in zip(batches, seen, strict=True):
        assert batch.indices.tolist() == [int(n >= 1000) for n in found]
        mixed += len(set(batch.indices.tolist())) > 1
    assert bool(mixed) != separate


def test_each_window_has_its_share_of_queries(queries: Shards, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{i}\n" for i in range(COUNT)))
    shards = Shards([str(tmp_path / "a.txt")])
    counts: dict[int, list[int]] = {}
    for batch in make(shards, queries, buffer=64, epoch_texts=COUNT + 66).prefetched(DataCursor()):
        if batch.next_cursor.epoch == 0:
            ours = counts.setdefault(batch.next_cursor.window, [0, 0])
            ours[0] += int((batch.indices == 0).sum())
            ours[1] += int((batch.indices == 1).sum())
    assert list(counts.values()) == [[48, 16], [48, 16], [48, 16], [48, 16], [8, 2]]


def test_queries_that_are_all_held_out_are_refused(shards: Shards, queries: Shards) -> None:
    with pytest.raises(InvalidInput, match="no query"):
        list(make(shards, queries, include=lambda text: int(text) < 1000).prefetched(DataCursor()))


@pytest.mark.parametrize(
    ("world", "asked"), [(2, False), (3, True), (4, False), (12, True), (32, False), (4, True)]
)
def test_processes_share_the_very_same_batches(
    shards: Shards, queries: Shards, world: int, asked: bool
) -> None:
    second = queries if asked else None
    alone = list(make(shards, second).prefetched(DataCursor()))
    ranks = together(shards, second, world)
    assert {len(batches) for batches in ranks} == {len(alone)}
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert sorted(n for part in parts for n in numbers(part)) == sorted(numbers(whole))
        assert {part.texts for part in parts} == {whole.texts}
        assert all(part.next_cursor == whole.next_cursor for part in parts)


@pytest.mark.parametrize("asked", [False, True])
def test_a_run_is_resumed_at_any_place_by_any_number(
    shards: Shards, queries: Shards, asked: bool
) -> None:
    second = queries if asked else None
    alone = list(make(shards, second).prefetched(DataCursor()))
    for at in (0, 3, len(alone) // 3, len(alone) // 2, len(alone) - 2):
        place = DataCursor(*json.loads(json.dumps(list(alone[at].next_cursor))))
        rest = list(make(shards, second).prefetched(place))
        assert [numbers(b) for b in rest] == [numbers(b) for b in alone[at + 1 :]]
    both = together(shards, second, 2, place)
    assert sorted(n for rank in both for b in rank for n in numbers(b)) == sorted(
        n for b in alone[at + 1 :] for n in numbers(b)
    )


@pytest.mark.parametrize("asked", [False, True])
def test_texts_that_are_cut_are_counted_once(shards: Shards, queries: Shards, asked: bool) -> None:
    """Over epochs, and by a run that is resumed anywhere; processes agree by `Place`, above."""
    second = queries if asked else None
    whole = make(shards, second)
    alone = list(whole.prefetched(DataCursor()))
    first = {
        n for batch in alone if batch.next_cursor.epoch == 0 for n in numbers(batch) if n < 1000
    }
    first |= {n for batch in alone for n in numbers(batch) if n >= 1000}
    long = [n for n in first if n % 7 == 6]
    if not asked:  # else an epoch ends within a window, which is counted whole
        assert list(whole.truncated) == [len(long), 0]
        assert len(first) == COUNT
    assert whole.truncated[1] == sum(n >= 1000 for n in long)
    for at in (0, 3, len(alone) // 3, len(alone) // 2, len(alone) - 1):
        rest = make(shards, second)
        list(rest.prefetched(DataCursor(*json.loads(json.dumps(list(alone[at].next_cursor))))))
        assert list(rest.truncated) == list(whole.truncated)


def test_what_is_held_out_does_not_come_by_and_limits_are_kept(shards: Shards) -> None:
    flat = [n for b in make(shards, include=lambda text: int(text) % 2).prefetched(DataCursor())
            for n in numbers(b)]  # fmt: skip
    assert len(flat) == 2 * COUNT + 20
    assert all(n % 2 for n in flat)
    few = [
        n
        for b in make(shards, epoch_texts=60, total=120).prefetched(DataCursor())
        for n in numbers(b)
    ]
    assert len(few) == 120
    assert len(set(few[:60])) == len(set(few[60:])) == 60
    with pytest.raises(InvalidInput, match="no text"):
        list(make(shards, include=lambda text: False).prefetched(DataCursor()))


def test_a_place_is_reached_without_reading_what_came_before(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each lane opens the one shard that it stands in, not those behind it."""
    whole = list(make(shards).prefetched(DataCursor()))
    late = next(
        b.next_cursor for b in whole if b.next_cursor.epoch == 0 and b.next_cursor.texts > 150
    )
    opened: list[int] = []
    real = Shards.open

    def noted(self: Shards, index: int, state: Any = None) -> Any:
        opened.append(index)
        return real(self, index, state)

    monkeypatch.setattr(Shards, "open", noted)
    stream = make(shards, total=late.texts + 1)
    next(iter(stream.prefetched(late)))
    assert len(opened) < len(shards)


@pytest.mark.parametrize(("window", "kind"), [(1, InvalidInput), (3, RunFailed)])
def test_a_text_at_fault_takes_nothing_with_it_that_is_learnt(
    shards: Shards, window: int, kind: type[Exception]
) -> None:
    """What is refused removes the partial output, a failure keeps it."""
    calls = 0

    def encode_targets(texts: Sequence[str]) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == window:
            raise InvalidInput("row 9 holds 3, not a string", "correct or remove the record")
        return np.zeros((len(texts), 1), np.float32)

    with pytest.raises(kind, match="row 9 holds 3") as caught:
        list(make(shards, encode_targets=encode_targets).prefetched(BEGINNING))
    hint = str(caught.value.hint)  # type: ignore[attr-defined]
    assert hint.startswith("correct or remove the record")
    assert ("--resume" in hint) == (kind is RunFailed)


def test_a_folder_of_texts_is_counted(shards: Shards, tmp_path: Path) -> None:
    assert shards.count() == COUNT + 17  # one empty text a file
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    assert Shards([str(tmp_path / "a.jsonl")]).count() is None


def test_a_text_is_told_by_its_file(shards: Shards) -> None:
    files: dict[str, list[int]] = {}
    for text, where in shards.texts():
        if text.strip():
            files.setdefault(Path(where.partition(":")[0]).stem, []).append(int(text))
    assert {int(name): min(found) for name, found in files.items()} == {
        int(name): int(name) for name in files
    }
    assert len(files) == 17


def test_data_are_told_apart_by_files_shards_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt").write_text("three\n")
    table = pa.table({"text": ["one", "two", "three"]})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=1)
    names = {name: str(tmp_path / name) for name in ("a.txt", "b.txt", "c.parquet")}
    facts = Shards(list(names.values())).facts()
    shards = facts["shards"][names["c.parquet"]]
    assert shards in (1, 3)  # datasets counts groups of rows from version 5 on
    assert facts == {
        "shards": {names["a.txt"]: 1, names["b.txt"]: 1, names["c.parquet"]: shards},
        "bytes": {path: Path(path).stat().st_size for path in names.values()},
    }
