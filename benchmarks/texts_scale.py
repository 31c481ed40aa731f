"""Distillation of streamed texts: does memory stay flat, and how fast is the data path?

Made-up short texts in parquet files, a tiny teacher and a tiny student, `embtool distill --stream`
as a user would call it. Memory of the process is read once a second, and set beside the number of
texts that the run has noted in its metrics.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, finish

from emb_tool.checkpoint.own_files import METRICS

WORDS = 2000
FILES = 64


def make_texts(folder: Path, count: int) -> None:
    """Texts of 3 to 6 numbered words, in parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    words = np.array([f"w{i}" for i in range(WORDS)])
    for file in range(FILES):
        rng = np.random.default_rng(file)
        with pq.ParquetWriter(folder / f"{file:03}.parquet", pa.schema({"text": "string"})) as out:
            for rows in np.array_split(np.arange(count // FILES), 10):
                lengths = rng.integers(3, 7, len(rows))
                chosen = words[rng.zipf(1.3, lengths.sum()) % WORDS]
                pieces = np.split(chosen, np.cumsum(lengths)[:-1])
                out.write_table(pa.table({"text": [" ".join(piece) for piece in pieces]}))


def make_model(folder: Path, seed: int, hidden: int = 16) -> None:
    """A BERT of one layer and few numbers, mean pooling, vectors of norm 1."""
    import torch
    from sentence_transformers import SentenceTransformer, models
    from tokenizers import Tokenizer, pre_tokenizers, processors
    from tokenizers.models import WordLevel
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {w: i for i, w in enumerate(specials + [f"w{i}" for i in range(WORDS)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=32,
    )  # fmt: skip
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=hidden, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=hidden, max_position_embeddings=32,
        initializer_range=0.3,
    )  # fmt: skip
    base = folder.with_name(folder.name + "-base")
    BertModel(config).save_pretrained(base)
    fast.save_pretrained(base)
    modules = [models.Transformer(str(base)), models.Pooling(hidden, "mean"), models.Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))


def resident(pid: int) -> int:
    """Bytes of memory that a process has to itself: mapped files can be given back."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return int(found.get("RssAnon", "0 kB").split()[0]) * 1024


def main() -> int:
    """Write the data, run, watch."""
    parser = arguments(str(__doc__).splitlines()[0], data=False)
    parser.add_argument("--texts", type=int, default=5_000_000)
    parser.add_argument("--batch-tokens", type=int, default=32768)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="store the teacher's vectors")
    args = parser.parse_args()

    folder = args.work / f"texts-{args.texts}"
    if not folder.exists():
        make_texts(folder, args.texts)
    models = args.work / "texts-scale-models"
    if not models.exists():
        models.mkdir(parents=True)
        make_model(models / "teacher", seed=0)
        make_model(models / "student", seed=1)
    out = args.work / "texts-scale-student"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(out.with_name(out.name + ".partial"), ignore_errors=True)
    command = [
        sys.executable, "-m", "emb_tool", "distill", "--stream", "--texts", folder,
        "--teacher", models / "teacher", "--student", models / "student", "--batch-tokens",
        args.batch_tokens, "--epochs", args.epochs, "-o", out, "--json", "--seed", "1",
    ]  # fmt: skip
    store = args.work / "texts-scale-store"
    shutil.rmtree(store, ignore_errors=True)
    command += ["--store", store] if args.keep else []
    began = time.perf_counter()
    with (args.work / "texts-scale.log").open("w") as log:
        child = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=log, text=True,
            env={**os.environ, "EMBTOOL_STORE": str(store)},
        )  # fmt: skip
        seen: list[tuple[float, int, int]] = []  # seconds, texts, bytes
        metrics = out.with_name(out.name + ".partial") / METRICS
        while child.poll() is None:
            texts = 0
            if metrics.exists():
                with metrics.open("rb") as file:
                    file.seek(max(0, metrics.stat().st_size - 500))
                    whole = [line for line in file.read().splitlines() if line.endswith(b"}")]
                texts = json.loads(whole[-1])["texts"] if whole and whole[-1][:1] == b"{" else 0
            try:
                seen.append((time.perf_counter() - began, texts, resident(child.pid)))
            except (FileNotFoundError, ProcessLookupError, KeyError):
                break
            time.sleep(1)
        assert child.stdout is not None
        report: dict[str, Any] = json.loads(child.stdout.read())
    if child.returncode or child.wait():
        raise SystemExit(f"ended with {child.returncode}: {report}")
    rows: list[list[Any]] = []
    for share in (0.02, 0.1, 0.25, 0.5, 0.75, 1.0):
        reached = [entry for entry in seen if entry[1] >= share * args.epochs * args.texts * 0.99]
        if reached:
            at, texts, _ = reached[0]
            high = max(nbytes for when, _, nbytes in seen if when <= at)
            rows.append([f"{texts:,}", round(at), reached[0][2] / 1e6, high / 1e6])
    results = {"texts": args.texts, "seen": seen, "report": report}
    finish("texts_scale", args.out, results, ["texts", "s", "memory MB", "peak MB"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
