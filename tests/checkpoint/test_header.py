"""safetensors headers: what safetensors writes is read, and nothing damaged passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from emb_tool.checkpoint.header import SAFETENSORS_DTYPES, read_header
from emb_tool.errors import InvalidInput

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool]
IN_ONE_FOLDER = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    count = len(text) if length is None else length
    path.write_bytes(count.to_bytes(8, "little") + text + data)
    return path


@IN_ONE_FOLDER
@given(
    shapes=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
        st.tuples(st.lists(st.integers(0, 4), max_size=3), st.sampled_from(DTYPES)),
        max_size=5,
    )
)
def test_round_trip(tmp_path: Path, shapes: dict) -> None:
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"format": "pt"}
    assert {n: (s.shape, s.dtype) for n, s in header.tensors.items()} == {
        n: (tuple(t.shape), SAFETENSORS_DTYPES[str(t.dtype).removeprefix("torch.")])
        for n, t in tensors.items()
    }
    assert header.size == (tmp_path / "x.safetensors").stat().st_size


def small(path: Path) -> bytes:
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b.w": torch.ones(4, dtype=torch.int8)}, path)
    return path.read_bytes()


@IN_ONE_FOLDER
@given(st.data())
def test_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Truncation and flipped bytes: refused, or as safetensors' own reader sees the file."""
    path = tmp_path / "x.safetensors"
    good = small(path)
    bad = bytearray(good[: data.draw(st.integers(0, len(good)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if bad:
            bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bad)
    try:
        header = read_header(path)
    except InvalidInput:
        return
    try:
        with safe_open(path, "pt") as file:
            assert set(file.keys()) == set(header.tensors)
    except SafetensorError as error:
        pytest.fail(f"safetensors refuses what was accepted: {error}")


A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"a": A}, b"1234", "truncated: its header describes 8 bytes of tensors, but there are 4"),
        ({"a": A}, b"0" * 9, "1 bytes follow the last tensor"),
        ({"a": {**A, "shape": [3]}}, b"0" * 8, "does not fill the 8 bytes"),
        ({"a": {**A, "dtype": "Q4"}}, b"0" * 8, "unknown dtype 'Q4'"),
        ({"a": {**A, "shape": [-2]}}, b"0" * 8, "has the shape [-2]"),
        ({"a": {**A, "data_offsets": [0, 2**70]}}, b"", "has the byte range"),
        ({"a": A, "b": A}, b"0" * 8, "overlaps"),
        ({"a": {**A, "data_offsets": [4, 12]}}, b"0" * 12, "has a gap"),
        ({"a": [1]}, b"", "is not described"),
        ({"__metadata__": {"x": 1}}, b"", "__metadata__"),
        (b'{"a":1,"a":1}', b"", "occurs twice"),
        (b"[" * 100_000, b"", "not JSON"),
        (b'{"a":' * 100_000, b"", "nested too deeply"),
    ],
)  # fmt: skip
def test_refusals_name_the_fault(tmp_path: Path, header: object, data: bytes, says: str) -> None:
    path = raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(InvalidInput) as refused:
        read_header(path)
    assert says in refused.value.message
    assert str(path) in refused.value.message


def test_absurd_length_is_not_allocated(tmp_path: Path) -> None:
    path = raw(tmp_path / "x.safetensors", b"{}", b"0" * 100, length=2**60)
    with pytest.raises(InvalidInput, match="claims 1,152,921,504,606,846,976 bytes"):
        read_header(path)


def test_length_that_looks_like_a_pickle(tmp_path: Path) -> None:
    """A length of 0x80 begins with the byte that pickles begin with."""
    path = raw(tmp_path / "x.safetensors", b"{}" + b" " * 126)
    assert read_header(path).tensors == {}


def test_lfs_pointer_and_pickle(tmp_path: Path) -> None:
    pointer = tmp_path / "model.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 90868376\n")
    with pytest.raises(InvalidInput, match="git-LFS pointer") as refused:
        read_header(pointer)
    assert "git lfs pull" in str(refused.value.hint)
    torch.save({"a": torch.ones(2)}, pointer)
    with pytest.raises(InvalidInput, match="pickle"):
        read_header(pointer)
