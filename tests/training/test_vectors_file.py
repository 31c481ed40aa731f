"""Teacher vectors in files that users bring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from emb_tool.data.corpus import Corpus
from emb_tool.errors import InvalidInput
from emb_tool.training.vectors_file import FileVectors, read_shape

DOCUMENTS = ["a", "", "b", "a", "c"]
QUERIES = ["c", "d", "d", "e"]
VECTORS = np.arange(1, 9 * 6 + 1, dtype=np.float32).reshape(9, 6) / 4
KEPT = [0, 2, 4, 5, 6, 8]  # records that are neither empty nor duplicates


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    paths = []
    for name, texts in (("documents", DOCUMENTS), ("queries", QUERIES)):
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Corpus.build(tmp_path / "corpus", [str(paths[0])], [str(paths[1])])


def write(path: Path, vectors: Any, **columns: Any) -> Path:
    """A file of the kind that the suffix says."""
    if path.suffix == ".npy":
        np.save(path, vectors)
    elif path.suffix == ".safetensors":
        save_file({"vectors": vectors, **columns}, path)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = vectors if isinstance(vectors, pa.Array) else pa.array(list(vectors))
        pq.write_table(pa.table({"vector": rows, **columns}), path, row_group_size=4)
    return path


def fixed(vectors: np.ndarray) -> Any:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet", ".fixed"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rows_belong_to_records(corpus: Corpus, tmp_path: Path, suffix: str, dtype: str) -> None:
    vectors = VECTORS.astype(dtype)
    path = tmp_path / f"v{suffix.replace('fixed', 'parquet')}"
    write(path, fixed(vectors) if suffix == ".fixed" else vectors)
    assert read_shape(path) == (9, 6)
    targets = FileVectors(path, corpus)
    read = targets.read(np.arange(6)[::-1])
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, VECTORS[KEPT][::-1])
    assert (targets.dim, targets.normalizes) == (6, False)
    np.testing.assert_array_equal(
        FileVectors(path, corpus, dims=4).read(np.array([1])), VECTORS[[2], :4]
    )


def test_other_layouts_of_npy(corpus: Corpus, tmp_path: Path) -> None:
    for vectors in (np.asfortranarray(VECTORS), VECTORS.astype(">f4")):
        path = write(tmp_path / "v.npy", vectors)
        np.testing.assert_array_equal(FileVectors(path, corpus).read(np.array([5])), VECTORS[[8]])


def test_a_prefix_of_unit_vectors_is_scaled(corpus: Corpus, tmp_path: Path) -> None:
    unit = (VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)).astype(np.float16)
    path = write(tmp_path / "v.npy", unit)
    targets = FileVectors(path, corpus, dims=3)
    assert targets.normalizes
    cut = unit[KEPT, :3].astype(np.float32)
    np.testing.assert_allclose(
        targets.read(np.arange(6)), cut / np.linalg.norm(cut, axis=1, keepdims=True), rtol=1e-6
    )


def test_zero_vectors_are_told(corpus: Corpus, tmp_path: Path) -> None:
    vectors = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    vectors[[4, 7]] = 0
    warned: list[str] = []
    path = write(tmp_path / "v.npy", vectors)
    targets = FileVectors(path, corpus, dims=3, on_warning=warned.append)
    assert targets.normalizes
    assert "2 vectors are zero, the first in row 4" in warned[0]
    assert not targets.read(np.array([2])).any()


def test_columns_and_tensors_by_name(corpus: Corpus, tmp_path: Path) -> None:
    import pyarrow as pa

    parquet = write(tmp_path / "v.parquet", VECTORS, other=pa.array(list(VECTORS * 2)),
                    text=pa.array(list("abcdefghi")))  # fmt: skip
    tensors = write(tmp_path / "v.safetensors", VECTORS, other=VECTORS * 2, norms=VECTORS[:, 0])
    for path in (parquet, tensors):
        targets = FileVectors(path, corpus, column="other")
        np.testing.assert_array_equal(targets.read(np.array([0])), 2 * VECTORS[[0]])
        with pytest.raises(InvalidInput, match=r"vector.*other|other, vectors"):
            FileVectors(path, corpus)
        with pytest.raises(InvalidInput, match=r"no .* 'none'; it h"):
            FileVectors(path, corpus, column="none")
    with pytest.raises(InvalidInput, match="'text' is string, not a list"):
        FileVectors(parquet, corpus, column="text")


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".parquet"])
def test_counts_and_values_are_checked(corpus: Corpus, tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"v{suffix}", VECTORS[:8])
    with pytest.raises(InvalidInput, match=f"v{suffix}: 8 vectors for 9 texts"):
        FileVectors(path, corpus)
    for value in (np.nan, np.inf):
        bad = VECTORS.copy()
        bad[7, 3] = value
        with pytest.raises(InvalidInput, match=f"v{suffix}: row 7 .*NaN or infinity"):
            FileVectors(write(path, bad), corpus)
    with pytest.raises(InvalidInput, match=r"--teacher-dim 7: .* 6 dimensions"):
        FileVectors(write(path, VECTORS), corpus, dims=7)
    with pytest.raises(InvalidInput, match=r"int32|0 columns|not float16"):
        FileVectors(write(path, VECTORS.astype(np.int32)), corpus)


def test_numbers_beyond_float32_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    bad = VECTORS.astype(np.float64)
    bad[3, 0] = 1e300
    with pytest.raises(InvalidInput, match=r"row 3 .*NaN or infinity"):
        FileVectors(write(tmp_path / "v.npy", bad), corpus)


def test_parquet_rows_must_be_whole(corpus: Corpus, tmp_path: Path) -> None:
    rows: list[Any] = [list(map(float, row)) for row in VECTORS]
    for row, value, sentence in (
        (6, None, r"row 6 \(counted from 0\) has no vector"),
        (6, rows[6][:5], "row 6 .* has 5 dimensions, the first row 6"),
        (6, [*rows[6][:5], None], "row 6 .*NaN"),
    ):
        import pyarrow as pa

        bad = pa.array([*rows[:row], value, *rows[row + 1 :]])
        with pytest.raises(InvalidInput, match=sentence):
            FileVectors(write(tmp_path / "v.parquet", bad), corpus)


def test_files_of_other_kinds_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", VECTORS)
    (tmp_path / "z.npy").write_bytes((tmp_path / "v.npz").read_bytes())
    np.save(tmp_path / "o.npy", np.array([{"a": 1}] * 9, dtype=object))
    np.save(tmp_path / "flat.npy", VECTORS.reshape(-1))
    write(tmp_path / "cut.npy", VECTORS)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-9])
    (tmp_path / "v.parquet").write_bytes(b"PAR1")
    for name, sentence in (
        ("absent.npy", "no such file"),
        ("v.npz", "are read from .npy"),
        ("z.npy", "not a .npy file"),
        ("o.npy", "not a complete .npy file of numbers"),
        ("flat.npy", r"shape \(54,\)"),
        ("cut.npy", "not a complete .npy file"),
        ("v.parquet", "not a parquet file"),
    ):
        with pytest.raises(InvalidInput, match=sentence):
            FileVectors(tmp_path / name, corpus)


def test_the_copy_of_a_parquet_column_leaves_no_file(corpus: Corpus, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    targets = FileVectors(write(tmp_path / "v.parquet", VECTORS), corpus, scratch=scratch)
    assert not list(scratch.iterdir())
    np.testing.assert_array_equal(targets.read(np.array([0])), VECTORS[[0]])
