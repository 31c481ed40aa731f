"""`embtool compress`: reduce dimensions, layers, vocabulary and bits in one chain of steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from emb_tool.fields import MADE

if TYPE_CHECKING:
    from emb_tool.api import StrPath
    from emb_tool.compress.kwargs import CompressKwargs
    from emb_tool.report import Report

PANEL = MADE
SUMMARY = "reduce dimensions, layers, vocabulary and bits"
HELP = """Make a model smaller.

Applies a chain of methods to one checkpoint and measures the result on the written files.
"""
EXAMPLE = (
    "embtool compress sentence-transformers/all-MiniLM-L6-v2 -m truncate:dim=256 -m int:bits=8"
    " --texts texts.jsonl -o small"
)

JOB = ("emb_tool.compress.job", "CompressJob")
RUNNER = ("emb_tool.compress.run", "CompressRunner")

_SUMMARIES = {
    "layers": "keep a subset of the layers",
    "vocab": "keep the tokens that the given texts need",
    "rotate": "rotate the vectors by PCA (before truncate) or ITQ (for binary codes)",
    "truncate": "keep the first dimensions (Matryoshka), folded into the weights",
    "cast": "all weights in fp16 or bf16",
    "int": "linear layers and tables as 2 to 8-bit integers in groups, with searched ranges",
    "gptq": "linear layers as 2 to 8-bit integers by GPTQ, calibrated on texts",
    "float8": "linear layers and tables as float8 with a scale per row",
    "bnb-int8": "linear layers in bitsandbytes' int8, readable by stock libraries",
    "bnb-nf4": "linear layers in bitsandbytes' NF4, readable by stock libraries",
    "bnb-fp4": "linear layers in bitsandbytes' FP4, readable by stock libraries",
    "pq": "token table by product quantization, frequent rows as integers",
    "opq": "token table by optimized product quantization (rotation, then pq)",
    "rq": "token table by residual quantization (sums of codewords)",
    "mgqe": "token table by product quantization, fewer codewords for rare rows",
    "cce": "token table by clustered compositional embeddings (two codewords per subvector)",
    "svd": "token table as a low-rank product of two matrices",
    "tt": "token table as a tensor train of three cores",
    "hash": "rows shared by a hash of the id",
    "qr": "rows composed of a quotient row and a remainder row",
    "robe": "rows composed of blocks of one shared array",
    "dhe": "rows computed by a small network from hashes of the id",
    "dedup": "equal or similar blocks of rows, stored once",
    "mde": "fewer dimensions for rarer rows",
    "prune": "entries of the smallest magnitude removed",
}
"""Summary of each method, in the order of `embtool methods compress`."""

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
    """Compress a model by a chain of methods.

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
