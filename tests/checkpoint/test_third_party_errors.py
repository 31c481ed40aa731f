"""What is taken for a fault of a checkpoint, and what is let through."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from emb_tool.checkpoint.third_party_errors import translate_errors
from emb_tool.errors import EmbToolError, InvalidInput, RunFailed
from emb_tool.ops.rounding import pack_codes
from emb_tool.packed.hash import Hash


def raised_by(work: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught, translate_errors("m: fails", "restore it"):  # noqa: PT011
        work()
    return caught.value


def test_what_libraries_raise_is_a_refusal_that_keeps_its_cause() -> None:
    found = raised_by(lambda: torch.zeros(3)[5])
    assert isinstance(found, InvalidInput)
    assert found.message.startswith("m: fails: IndexError: index 5 is out of bounds")
    assert isinstance(found.__cause__, IndexError)


def test_a_title_is_told_with_what_it_stands_over() -> None:
    found = raised_by(lambda: exec("raise ValueError('of the validator:\\n  3 is not 4\\n at x')"))
    assert isinstance(found, EmbToolError)
    assert found.message == "m: fails: ValueError: of the validator: 3 is not 4"


def test_packed_bytes_are_the_checkpoints_own() -> None:
    packed = Hash({"shape": [9, 4], "buckets": 2, "function": "mod", "seed": 0})
    assert isinstance(raised_by(lambda: packed.bucket(None)), InvalidInput)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        RunFailed("ours"), KeyboardInterrupt(), SystemExit(3), MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    ],
)  # fmt: skip
def test_what_is_no_fault_of_the_checkpoint_goes_through(error: BaseException) -> None:
    def work() -> None:
        raise error

    assert raised_by(work) is error


def test_a_bug_of_ours_goes_through() -> None:
    found = raised_by(lambda: pack_codes(None, 4))  # type: ignore[arg-type]
    assert not isinstance(found, EmbToolError)
