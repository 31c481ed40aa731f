"""Look-up of codewords."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
"""Dtype with the bytes of a sub-vector."""


def gather(codes: Tensor, codebooks: Tensor) -> Tensor:
    """The codewords of each sub-vector, summed over stages: (n · sub-vectors, width) floats.

    Float16 codewords with the width of a wider dtype are gathered as elements of it.

    Args:
        codes: (n, sub-vectors · stages).
        codebooks: (sub-vectors, stages, k, width).
    """
    columns, (stages, k, width) = codes.shape[1], codebooks.shape[1:]
    index = codes.to(torch.int32)
    index += torch.arange(0, columns * k, k, dtype=torch.int32, device=codes.device)
    books = codebooks.reshape(-1, width)
    if stages > 1:
        index = index.view(-1, stages)
        return functional.embedding_bag(index, books.float(), mode="sum")
    word = WORDS.get(2 * width) if codebooks.dtype == torch.float16 else None
    if word is None or (word.is_complex and codes.device.type != "cpu"):
        return functional.embedding(index.view(-1), books)
    words = books.view(word).view(-1)
    return words.index_select(0, index.view(-1)).view(torch.float16).view(-1, width)
