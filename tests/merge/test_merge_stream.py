"""The stream: the same bytes however it is cut up, and what it refuses on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from emb_tool import registry
from emb_tool.checkpoint.elements import FLOATS, all_finite, from_float64, to_float64
from emb_tool.errors import Interrupted, InvalidInput
from emb_tool.merge import write
from emb_tool.merge.base import Merge
from emb_tool.merge.weight_search import DataDrivenMerge
from tests.merge.siblings import make_files, merge

METHODS = list(registry.methods("merge"))
DATA_FREE = [n for n in METHODS if not issubclass(registry.load("merge", n), DataDrivenMerge)]


@pytest.mark.parametrize("name", DATA_FREE)
def test_bytes_do_not_depend_on_threads_chunks_or_order(tmp_path: Path, name: str) -> None:
    cls = registry.load("merge", name)
    assert issubclass(cls, Merge)
    models, base = make_files(tmp_path, cls.max_models or 3, step=0.04)
    given = base if cls.uses_base else None
    first = merge(tmp_path / "a", name, models, given, threads=1)
    second = merge(tmp_path / "b", name, models, given, threads=3, chunk=1 << 16)
    files = [(tmp_path / x / "model.safetensors").read_bytes() for x in "ab"]
    assert files[0] == files[1]
    assert all(np.isfinite(x).all() for x in second.values())
    if cls.symmetric:
        merge(tmp_path / "c", name, models[::-1], given)
        assert (tmp_path / "c" / "model.safetensors").read_bytes() == files[0]
    assert any(not np.array_equal(first[n], load_file(models[0])[n]) for n in first)


def test_bytes_do_not_depend_on_the_seed_of_hashes(tmp_path: Path) -> None:
    models, base = make_files(tmp_path, 2, step=0.04)
    code = f"""if True:
        import sys
        from pathlib import Path
        from tests.merge.siblings import merge
        from emb_tool import registry
        for name in {DATA_FREE}:
            base = {base!r} if registry.load("merge", name).uses_base else None
            merge(Path(sys.argv[1]) / name, name, {models}, base)
    """
    for seed in "12":
        command = [sys.executable, "-c", code, str(tmp_path / seed)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    for name in DATA_FREE:
        files = [(tmp_path / seed / name / "model.safetensors").read_bytes() for seed in "12"]
        assert files[0] == files[1], name


@pytest.mark.parametrize("name", DATA_FREE)
def test_merging_a_model_with_itself_changes_no_bit(tmp_path: Path, name: str) -> None:
    cls = registry.load("merge", name)
    assert issubclass(cls, Merge)
    x = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    x[7], x[8] = -0.0, 1e-40
    names = []
    for number in range(2):
        names.append(str(tmp_path / f"{number}.safetensors"))
        save_file({"x": x}, names[-1])
    base = None
    if cls.needs_base:
        base = str(tmp_path / "base.safetensors")
        save_file({"x": x}, base)
    assert merge(tmp_path / "o", name, names, base)["x"].tobytes() == x.tobytes()


def test_bfloat16_is_rounded_once_to_nearest_even() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(20000) * 10.0 ** rng.integers(-42, 38, 20000)
    ties = (np.arange(1, 4000, dtype=np.uint32) << 16 | 0x8000).view(np.float32).astype(np.float64)
    x = np.concatenate([x, ties, ties * (1 + 1e-12), ties * (1 - 1e-12), [0.0, -0.0, np.inf, 4e38]])
    got = to_float64(from_float64(x, "BF16"), "BF16")
    bits = torch.tensor(got).to(torch.bfloat16)
    assert torch.equal(bits.double(), torch.tensor(got))  # they are bfloat16 numbers
    finite = np.isfinite(got)
    near = bits.view(torch.int16).numpy()[finite].astype(np.int32)
    for step in (-1, 1):  # no neighbor is nearer
        other = torch.tensor((near + step).astype(np.int16)).view(torch.bfloat16).double().numpy()
        same = np.isfinite(other) & (np.sign(other) * np.sign(got[finite]) >= 0)
        off, theirs = np.abs(got[finite] - x[finite]), np.abs(other - x[finite])
        assert (off <= theirs)[same].all()
        assert (near[same & (off == theirs)] % 2 == 0).all()
    single = rng.standard_normal(20000).astype(np.float32)
    want = torch.tensor(single).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(from_float64(single.astype(np.float64), "BF16"), want)


def test_whole_numbers_are_the_same_in_all_models_or_refused(tmp_path: Path) -> None:
    names = []
    for number in range(3):
        names.append(str(tmp_path / f"{number}.safetensors"))
        save_file({"x": np.ones(4, np.float32), "ids": np.arange(4) + number // 2}, names[-1])
    assert merge(tmp_path / "a", "linear", names[:2])["ids"].tolist() == [0, 1, 2, 3]
    with pytest.raises(InvalidInput, match="ids is I64"):
        merge(tmp_path / "b", "linear", names[1:])


def test_dtypes_out_are_the_widest_in_unless_asked(tmp_path: Path) -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    names = []
    for number, dtype in enumerate((torch.bfloat16, torch.float16)):
        names.append(str(tmp_path / f"{number}.safetensors"))
        save_torch({"x": (x + number).to(dtype)}, names[-1])
    assert merge(tmp_path / "a", "linear", names)["x"].dtype == np.float32
    assert merge(tmp_path / "b", "linear", names, out_dtype="fp16")["x"].dtype == np.float16


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(tmp_path: Path, value: float) -> None:
    models, base = make_files(tmp_path)
    broken = load_file(models[1])
    broken["table.weight"].reshape(-1)[70_001] = value
    save_file(broken, models[1])
    for method in ("linear", "ties"):
        with pytest.raises(InvalidInput, match=r"m1.*table.weight, element 70,001") as caught:
            merge(tmp_path / method, method, models, base if method == "ties" else None)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_number_that_is_not_finite_is_seen(dtype: str) -> None:
    numbers = [0.0, -1.0, 65504.0, -65504.0, 6e-8, -6e-8]
    stored = from_float64(np.array(numbers), dtype)
    assert all_finite(stored, dtype)
    assert all_finite(stored[:0], dtype)
    for bad in (np.inf, -np.inf, np.nan, -np.nan):
        assert not all_finite(from_float64(np.array([*numbers, bad]), dtype), dtype)


def test_a_signal_while_the_flushing_thread_starts_does_not_leave_it_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    submit = ThreadPoolExecutor.submit

    def interrupted(pool: ThreadPoolExecutor, *given: Any) -> Any:
        submit(pool, *given)
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    flushed: list[int] = []

    def flush() -> None:
        flushed.append(1)
        raise OSError  # or it would go on, and this test with it

    writer: Any = SimpleNamespace(flush=flush)
    with pytest.raises(Interrupted), write._flushed(writer):
        pass
    assert not flushed
