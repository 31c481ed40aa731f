"""Longer inputs of a rotary embedder, which is first made of one with learned positions.

all-MiniLM-L6-v2's weights fit transformers' `jina_embeddings_v3` but for the table of positions.
They are put there, healed by distillation from the model itself (recipes/distill/heal.yaml), and
the result is extended 8 times by every rotary method.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from math import isnan, nan
from pathlib import Path
from typing import Any

from common import arguments, embtool, figure, finish
from extend_context import ROTARY, joined, paragraphs

HEAL = Path(__file__).parent.parent / "recipes" / "distill" / "heal.yaml"
BASELINES = ("truncation", "chunk-and-mean", "untreated")

NAMES = (
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.self\.(query|key|value)\.", lambda found: f".self_attn.{found[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".self_attn.o_proj."),
    (r"\.attention\.output\.LayerNorm\.", ".post_attention_layernorm."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.output\.LayerNorm\.", ".post_mlp_layernorm."),
)
"""BERT's names of tensors to jina_embeddings_v3's, one after the other."""


def transplant(model: Path, folder: Path, length: int, theta: float) -> Path:
    """BERT's weights as `jina_embeddings_v3`: rotary positions in the place of the table.

    The mean of the table's rows, a part of what every token had, goes into the row of the type
    that every token is of.

    Args:
        model: A BERT of sentence-transformers.
        folder: To be.
        length: Tokens that it reads.
        theta: Of the rotary positions.
    """
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import JinaEmbeddingsV3Config

    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder)
    old = json.loads((model / "config.json").read_text("utf-8"))
    tensors = load_file(model / "model.safetensors")
    table = tensors.pop("embeddings.position_embeddings.weight")
    tensors.pop("embeddings.position_ids", None)
    tensors["embeddings.token_type_embeddings.weight"] += table[:length].mean(0)
    for pattern, name in NAMES:
        tensors = {re.sub(pattern, name, key): tensor for key, tensor in tensors.items()}
    same = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
        "intermediate_size", "layer_norm_eps", "type_vocab_size", "pad_token_id",
    )  # fmt: skip
    config = JinaEmbeddingsV3Config(
        **{key: old[key] for key in same}, max_position_embeddings=length,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        bos_token_id=None, eos_token_id=None, architectures=["JinaEmbeddingsV3Model"],
    )  # fmt: skip
    config.save_pretrained(folder)
    tensors = {name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    limit = json.loads((folder / "sentence_bert_config.json").read_text("utf-8"))
    limit["max_seq_length"] = length
    (folder / "sentence_bert_config.json").write_text(json.dumps(limit) + "\n", "utf-8")
    return folder


def heal(args: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Make the embedder; the report of its distillation."""
    began = transplant(Path(args.model), args.work / "transplanted", args.length, args.theta)
    words, texts = round(0.75 * args.length), args.data / "texts.jsonl"
    report = embtool(
        "distill", "-r", HEAL, "--teacher", args.model, "--teacher-max-length", args.length,
        "--student", began, "--texts", texts,
        "--texts", paragraphs(texts, args.work / f"paragraphs-{words}.jsonl", words),
        "--fraction", f"{args.sentences},{args.paragraphs}", "-o", out, "--overwrite",
    )  # fmt: skip
    cosine = figure(report, "cosine mean")
    print(f"healed: cosine {cosine:.3f} to the original on held-out texts", file=sys.stderr)
    return report


def main() -> int:
    """One row a method, the baselines first."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--length", type=int, default=256, help="tokens that it is healed at")
    parser.add_argument("--times", type=int, default=8, help="longer")
    parser.add_argument("--theta", type=float, default=10000.0)
    parser.add_argument("--paragraphs", type=float, default=1.0, help="share of them")
    parser.add_argument("--sentences", type=float, default=0.2, help="share of them")
    parser.add_argument("--healed", type=Path, help="one made before [it is made]")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--methods", nargs="*", default=list(ROTARY))
    args = parser.parse_args()
    work, target = args.work, args.length * args.times
    results: dict[str, Any] = {}
    healed = args.healed or work / "healed"
    if args.healed is None:
        results["heal"] = heal(args, healed)
    models = {name: work / f"rotary-{name}" for name in args.methods}
    for name, out in models.items():
        results[name] = embtool(
            "extend-context", healed, "--to", target, "-m", name, "-o", out, "--overwrite"
        )
    lengths = [args.length << i for i in range(args.times.bit_length())]
    made = f"lengths={','.join(map(str, lengths))},queries={args.queries},window={args.length}"
    tasks = (
        f"passkey:{made}", f"needle:{made}",
        f"long-retrieval:{joined(args.data / 'cranfield', work / 'cranfield-long')},"
        f"window={args.length}",
    )  # fmt: skip
    rows: dict[str, list[Any]] = {name: [name] for name in (*BASELINES, *models)}
    for task in tasks:
        found = results[task] = embtool(
            "eval", *models.values(), "--reference", healed, "--task", task
        )
        retrieval = task.startswith("long")
        names = ["ndcg@10"] if retrieval else [f"accuracy@{n}" for n in lengths]
        for name, row in rows.items():
            model, end = (models[name], "") if name in models else (healed, f" {name}")
            values = [figure(found, n + end, model=str(model), lacking=nan) for n in names]
            row += [None if isnan(value) else value for value in values]
    shown = [f"{n:,}" for n in lengths]
    columns = ["method", *(f"{t} {n}" for t in ("passkey", "needle") for n in shown), "Cranfield"]
    finish("rotary_embedder", args.out, {"reports": results}, columns, list(rows.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
