"""What the installed wheel does: `make dist-test` runs this in a clean environment.

The current folder is empty, and the repository is not on the path. The model is made here, so that
nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

WORDS = (
    "the a river bridge old green train station winter snow light music piano small letter".split()
)
RECIPES = Path(sys.prefix, "share", "embtool", "recipes")
SCRIPTS = Path(sys.executable).parent

OPEN = """
import emb_tool.hub
import torch
from emb_tool.packed.base import Packed
from sentence_transformers import SentenceTransformer

small, student = SentenceTransformer("small"), SentenceTransformer("student")
assert any(isinstance(module, Packed) for module in small.modules())
texts = ["the old bridge", "winter light and snow"]
vectors = [model.encode(texts, convert_to_tensor=True) for model in (small, student)]
cosines = torch.cosine_similarity(*vectors)
assert float(cosines.min()) > 0.999, cosines
print("packed and plain vectors agree: cosines", cosines.tolist())
"""
"""Stock sentence-transformers opens the packed model."""


def run(*argv: str, code: int = 0) -> str:
    """A command that must end with a code; what it printed."""
    print("$", *argv, flush=True)
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode != code:
        sys.exit(f"ended with {done.returncode}, not {code}:\n{said}")
    return said


def embtool(*argv: str, code: int = 0) -> str:
    """The installed command."""
    return run(str(SCRIPTS / "embtool"), *argv, code=code)


def make_model(folder: str) -> None:
    """A BERT of two layers as a sentence-transformers folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Normalize, Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    wordlevel = Tokenizer(
        models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    wordlevel.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=wordlevel, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained("base")
    tokenizer.save_pretrained("base")
    body = Transformer("base", max_seq_length=32)
    model = SentenceTransformer(modules=[body, Pooling(32), Normalize()], device="cpu")
    model.save_pretrained(folder)


def main() -> None:
    """Install, distill, compress, open."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "EMBTOOL_STORE": str(Path("store").resolve())}
    import emb_tool

    package = Path(emb_tool.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package} is not the installed package"
    assert (package / "py.typed").is_file()
    shipped = [p.relative_to(RECIPES).as_posix() for p in RECIPES.rglob("*") if p.is_file()]
    assert sorted(shipped) == sorted(sys.argv[1:]), shipped

    print(embtool("--version"), embtool("doctor"))
    make_model("teacher")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(400)]
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    Path("texts.jsonl").write_text("".join(lines), encoding="utf-8")
    distill = ("distill", "--teacher", "teacher", "--student-layers", "1", "--texts", "texts.jsonl")
    embtool(*distill, "-o", "student")
    embtool("compress", "student", "-m", "int:bits=8", "-o", "small")
    print(run(sys.executable, "-c", OPEN).splitlines()[-1])
    embtool("run", "student", "--overwrite", "--dry-run")
    refused = embtool("compress", "student", "-m", "bnb-int8", "-o", "other", code=2)
    assert "./embtool[bnb]" in refused, refused


if __name__ == "__main__":
    main()
