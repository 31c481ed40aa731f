"""`embtool compress`: fewer dimensions, layers, tokens and bits, in one chain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from emb_tool.fields import MADE

if TYPE_CHECKING:
    from emb_tool.api import StrPath
    from emb_tool.compress.kwargs import CompressKwargs
    from emb_tool.report import Report

PANEL = MADE
SUMMARY = "fewer dimensions, layers, tokens and bits"
HELP = """Make a model smaller.

A chain of methods, one read and one write, measured on the files as written.
"""
EXAMPLE = (
    "embtool compress sentence-transformers/all-MiniLM-L6-v2 -m truncate:dim=256 -m int:bits=8"
    " --texts texts.jsonl -o small"
)

JOB = ("emb_tool.compress.job", "CompressJob")
RUNNER = ("emb_tool.compress.run", "CompressRunner")

_SUMMARIES = {
    "layers": "keep some of the layers",
    "vocab": "keep the tokens that texts like yours need",
    "rotate": "turn the space: the first dimensions hold the most (PCA), or bits fit (ITQ)",
    "truncate": "keep the first dimensions, baked into the weights",
    "cast": "all weights in fp16 or bf16",
    "int": "linear layers and tables in groups of 2 to 8 bits, ranges searched",
    "gptq": "linear layers in few bits, rounded so that outputs on your texts change least",
    "float8": "linear layers and tables as float8 with a scale for each row",
    "bnb-int8": "linear layers in bitsandbytes' int8, opened by stock libraries",
    "bnb-nf4": "linear layers in bitsandbytes' NF4, opened by stock libraries",
    "bnb-fp4": "linear layers in bitsandbytes' FP4, opened by stock libraries",
    "pq": "token table by product quantisation, frequent rows as whole numbers",
    "opq": "token table turned, then product-quantised",
    "rq": "token table as sums of codewords",
    "mgqe": "token table by product quantisation, fewer codewords for rare rows",
    "cce": "token table as sums of two codewords for each part of a row",
    "svd": "token table as a product of two thin matrices",
    "tt": "token table as a train of three small tensors",
    "hash": "rows shared by a hash of the id",
    "qr": "rows made of a quotient's and a remainder's row",
    "robe": "rows made of pieces of one shared array",
    "dhe": "rows made by a small network from hashes of the id",
    "dedup": "rows or blocks of rows that are alike, stored once",
    "mde": "fewer dimensions for rarer rows",
    "prune": "the smallest numbers of the table left out",
}
"""Method to what it does, in the order in which one would look for them."""

METHODS = tuple(
    (
        name,
        f"emb_tool.compress.{name.replace('-', '_')}",
        "".join(part.capitalize() for part in name.split("-")),
        summary,
    )
    for name, summary in _SUMMARIES.items()
)


def compress(model: StrPath, **settings: Unpack[CompressKwargs]) -> Report:
    """Make a model smaller by a chain of methods.

    Args:
        model: Folder, hub id, or a bare .safetensors file.
        **settings: The options of `embtool compress`, as `method=["vocab", "int:bits=8"]`, and
            `RunKwargs`.

    Returns:
        The report, as in `report.json`.

    Raises:
        EmbToolError: A setting or an input is at fault, or the work failed: see docs/api.md.
    """
    from emb_tool.api import run_verb

    return run_verb("compress", {"model": model, **settings})
