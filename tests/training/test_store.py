"""The vector store: round trips, damage, two writers, kills, a full disk, pruning."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import SPACE, fill, keys_of, open_space, run_python, shards_of, vectors_of

from emb_tool.errors import InvalidInput
from emb_tool.training.shards import TEMPORARY, remove_temporary_files
from emb_tool.training.store import VectorStore, store_report

numbers = st.lists(st.integers(0, 40), max_size=12)


@settings(max_examples=30, deadline=None)
@given(st.lists(numbers, max_size=5), numbers, st.sampled_from(["float16", "float32"]))
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[int]], asked: list[int], dtype: str
) -> None:
    root = tmp_path_factory.mktemp("store")
    space = replace(SPACE, dtype=dtype)
    writer = fill(root, *shards, space=space)
    held = {number for shard in shards for number in shard}
    for store in (writer, open_space(root, space)):
        missing = store.missing(keys_of(asked))
        assert missing.tolist() == [number not in held for number in asked]
        there = [number for number in asked if number in held]
        read = store.read(store.rows(keys_of(there)))
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, vectors_of(there))  # exact in float16 too
        if missing.any():
            with pytest.raises(
                InvalidInput, match=f"{missing.sum()} of {len(asked)} texts have no"
            ):
                store.rows(keys_of(asked))


def test_rows_stay_valid_while_others_write(tmp_path: Path) -> None:
    mine = fill(tmp_path, range(10))
    rows = mine.rows(keys_of(range(10)))
    fill(tmp_path, range(20, 30), [3])
    assert mine.missing(keys_of([25])).all()
    assert mine.refresh() == 2
    assert mine.refresh() == 0
    np.testing.assert_array_equal(mine.read(rows), vectors_of(range(10)))
    np.testing.assert_array_equal(mine.read(mine.rows(keys_of([25, 3]))), vectors_of([25, 3]))
    np.testing.assert_array_equal(mine.read(rows, 2), vectors_of(range(10))[:, :2])


def test_a_shard_is_a_plain_safetensors_file(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    fill(tmp_path, [5, 2, 9, 2])
    (path,) = shards_of(tmp_path)
    tensors = load_file(path)
    np.testing.assert_array_equal(tensors["keys"], keys_of([2, 5, 9]))
    np.testing.assert_array_equal(tensors["vectors"], vectors_of([2, 5, 9]))


def test_everything_a_vector_depends_on_names_its_space() -> None:
    others = [
        replace(SPACE, **{name: value})
        for name, value in {
            "teacher": "x", "prompt": "", "pooling": "cls", "max_length": None, "dtype": "float16",
            "dim": 8, "normalized": True, "compute": "bf16",
        }.items()
    ]  # fmt: skip
    assert len({space.id for space in [SPACE, *others]}) == 9


@pytest.mark.parametrize("where", ["header", "keys", "vectors", "truncated", "empty"])
def test_a_damaged_shard_is_set_aside_and_made_again(tmp_path: Path, where: str) -> None:
    fill(tmp_path, range(100), range(100, 150))
    path = max(shards_of(tmp_path), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    start = len(data) - 100 * 16 - 100 * 16
    at = {"header": 40, "keys": start + 800, "vectors": len(data) - 801}
    if where in at:
        data[at[where]] ^= 0x10
    path.write_bytes(data[: {"truncated": len(data) // 2, "empty": 0}.get(where)])

    warned: list[str] = []
    store = open_space(tmp_path, warn=warned)
    missing = store.missing(keys_of(range(150)))
    assert missing.tolist() == [True] * 100 + [False] * 50
    assert len(warned) == 1
    assert path.name in warned[0]
    assert path.with_name(path.name + ".corrupt").exists()
    assert not path.exists()
    store.append(keys_of(range(100)), vectors_of(range(100)))
    for again in (store, open_space(tmp_path)):
        read = again.read(again.rows(keys_of(range(150))))
        np.testing.assert_array_equal(read, vectors_of(range(150)))


def test_damage_elsewhere_is_not_looked_for(tmp_path: Path) -> None:
    """Only shards that hold what is asked for are read whole."""
    fill(tmp_path, range(10), range(20, 30))
    data = bytearray(shards_of(tmp_path)[0].read_bytes())
    data[-1] ^= 1
    shards_of(tmp_path)[0].write_bytes(data)
    warned: list[str] = []
    store = open_space(tmp_path, warn=warned)
    assert store.missing(keys_of(range(1000, 1010))).all()
    assert not warned
    assert store.missing(keys_of(range(30))).sum() == 20
    assert len(warned) == 1


def test_a_shard_of_another_width_is_set_aside(tmp_path: Path) -> None:
    wide = replace(SPACE, dim=8)
    fill(tmp_path, range(5), space=wide)
    fill(tmp_path, range(5))
    (stray,) = shards_of(tmp_path, wide)
    stray.rename(tmp_path / SPACE.id / "shard-00.safetensors")
    warned: list[str] = []
    assert len(open_space(tmp_path, warn=warned)) == 5
    assert "shard-00.safetensors" in warned[0]


@pytest.mark.parametrize(
    ("value", "dtype"), [(np.nan, "float32"), (np.inf, "float32"), (1e6, "float16")]
)
def test_what_is_not_finite_is_refused(tmp_path: Path, value: float, dtype: str) -> None:
    store = open_space(tmp_path, replace(SPACE, dtype=dtype))
    vectors = vectors_of(range(5))
    vectors[3, 1] = value
    with pytest.raises(InvalidInput, match="vector 3 of 5 is not finite"):
        store.append(keys_of(range(5))[::-1], vectors)
    assert not tmp_path.joinpath(store.space.id).exists()


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    code = """
        store = open_space(Path(sys.argv[1]))
        first = int(sys.argv[2])
        for i in range(30):
            numbers = range(first + 50 * i, first + 50 * i + 100)
            keys = keys_of(numbers)
            store.refresh()
            lacking = store.missing(keys)
            store.append(keys[lacking], vectors_of(numbers)[lacking])
    """
    writers = [run_python(code, tmp_path, first, wait=False) for first in (0, 750)]
    errors = [writer.communicate(timeout=300)[1] for writer in writers]
    assert errors == ["", ""]
    warned: list[str] = []
    store = open_space(tmp_path, warn=warned)
    every = range(750 + 1550)
    np.testing.assert_array_equal(store.read(store.rows(keys_of(every))), vectors_of(every))
    assert not warned
    assert not list(tmp_path.rglob(TEMPORARY + "*"))


def test_a_kill_at_any_moment_loses_one_shard_at_most(tmp_path: Path) -> None:
    code = """
        store = open_space(Path(sys.argv[1]), replace(SPACE, dim=2000))
        for i in range(int(sys.argv[2]), 10_000):
            numbers = range(100 * i, 100 * i + 100)
            store.append(keys_of(numbers), vectors_of(numbers, 2000))
            print(i, flush=True)
    """
    space = replace(SPACE, dim=2000)
    rng = random.Random(0)
    done: list[int] = []
    for _ in range(3):
        writer = run_python(code, tmp_path, len(done), wait=False)
        assert writer.stdout is not None
        told = [int(writer.stdout.readline())]
        time.sleep(rng.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        done += told
        warned: list[str] = []
        store = open_space(tmp_path, space, warn=warned)
        held = len(store) // 100
        assert held in (len(done), len(done) + 1)  # the last may be written and not yet told
        every = range(100 * held)
        np.testing.assert_array_equal(
            store.read(store.rows(keys_of(every))), vectors_of(every, 2000)
        )
        assert not warned
        assert not list(tmp_path.rglob(TEMPORARY + "*"))  # swept when the space was opened
        done = list(range(held))


def test_a_kill_before_the_rename_leaves_no_shard(tmp_path: Path) -> None:
    code = """
        store = open_space(Path(sys.argv[1]))
        store.append(keys_of([1]), vectors_of([1]))
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        store.append(keys_of([2]), vectors_of([2]))
    """
    assert run_python(code, tmp_path).returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob(TEMPORARY + "*"))) == 1
    store = open_space(tmp_path)
    assert store.missing(keys_of([1, 2])).tolist() == [False, True]
    assert not list(tmp_path.rglob(TEMPORARY + "*"))


def test_temporary_files_of_living_writers_are_left_alone(tmp_path: Path) -> None:
    held, old = tmp_path / f"{TEMPORARY}1-a", tmp_path / f"{TEMPORARY}1-b"
    for path in (held, old):
        path.touch()
    with held.open("rb") as first, old.open("rb") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_EX)
        os.utime(old, (0, time.time() - 2 * 86400))
        remove_temporary_files(tmp_path)
        assert held.exists()
        assert not old.exists()
    remove_temporary_files(tmp_path)
    assert not held.exists()


def test_a_full_disk_ends_resumable(tmp_path: Path) -> None:
    code = """
        import resource
        from emb_tool.errors import RunFailed
        store = open_space(Path(sys.argv[1]))
        store.append(keys_of([1]), vectors_of([1]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            store.append(keys_of(range(10_000)), vectors_of(range(10_000)))
        except RunFailed as error:
            print(error, "|", error.hint, "|", error.exit_code)
    """
    process = run_python(code, tmp_path)
    assert process.stdout is not None
    said, hint, exit_code = process.stdout.read().strip().split(" | ")
    assert "the disk is full (0.3 MB" in said
    assert "--resume" in hint
    assert exit_code == "1"
    assert [path.name[:6] for path in (tmp_path / SPACE.id).iterdir()].count("shard-") == 1
    assert not list(tmp_path.rglob(TEMPORARY + "*"))


def test_a_pruned_folder_is_made_again(tmp_path: Path) -> None:
    store = fill(tmp_path, range(5))
    rows = store.rows(keys_of(range(5)))
    VectorStore(tmp_path).prune()
    np.testing.assert_array_equal(store.read(rows), vectors_of(range(5)))  # still mapped
    store.append(keys_of([7]), vectors_of([7]))
    assert open_space(tmp_path).missing(keys_of([1, 7])).tolist() == [True, False]


def test_prune_takes_what_is_old_and_its_own(tmp_path: Path) -> None:
    old, new = replace(SPACE, prompt="old"), replace(SPACE, prompt="new")
    fill(tmp_path, range(50), space=old)
    fill(tmp_path, range(60), space=new)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / old.id / "notes.txt").write_text("mine")
    month = time.time() - 30 * 86400
    os.utime(tmp_path / old.id / "space.json", (month, month))

    store = VectorStore(tmp_path)
    sizes = {entry.id: entry.nbytes for entry in store.spaces()}
    assert [(entry.id, entry.texts) for entry in store.spaces()] == [(new.id, 60), (old.id, 50)]
    assert sizes[new.id] > 60 * 32
    assert store.prune(older_than_days=7, dry_run=True) == sizes[old.id]
    assert store.prune(older_than_days=7, space=new.id) == 0
    assert store.prune(older_than_days=7) == sizes[old.id]
    assert [entry.id for entry in store.spaces()] == [new.id, old.id]
    assert not shards_of(tmp_path, old)
    assert len(list(tmp_path.rglob("notes.txt"))) == 2
    with pytest.raises(InvalidInput, match="no space 'ffff'"):
        store.prune(space="ffff")
    assert store.prune(space=new.id) == sizes[new.id]
    assert not (tmp_path / new.id).exists()


def test_opening_a_space_counts_as_use(tmp_path: Path) -> None:
    fill(tmp_path, range(5))
    os.utime(tmp_path / SPACE.id / "space.json", (0, 0))
    assert VectorStore(tmp_path).prune(older_than_days=1, dry_run=True) > 0
    open_space(tmp_path)
    assert VectorStore(tmp_path).prune(older_than_days=1, dry_run=True) == 0


def test_report_lists_and_prunes(tmp_path: Path) -> None:
    VectorStore(tmp_path).space(SPACE, "some/teacher").append(keys_of([1, 2]), vectors_of([1, 2]))
    report = store_report(tmp_path)
    (row,) = report.tables[0].rows
    assert row[:5] == [SPACE.id, "some/teacher", "'query: '", "128", "4"]
    assert report.value("vectors", SPACE.id) == 2
    total = report.value("total size")
    assert store_report(tmp_path, prune_days=0, dry_run=True).value("would be freed") == total
    pruned = store_report(tmp_path, prune_days=0)
    assert pruned.value("freed") == total
    assert pruned.value("total size") == 0
    assert store_report(tmp_path / "nowhere").value("total size") == 0


def test_default_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBTOOL_STORE", "/a/b")
    assert VectorStore.default_root() == Path("/a/b")
    monkeypatch.delenv("EMBTOOL_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert VectorStore.default_root() == Path("/cache/embtool/vectors")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert VectorStore.default_root() == Path.home() / ".cache/embtool/vectors"


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="is not a folder"):
        VectorStore(tmp_path / "file")
