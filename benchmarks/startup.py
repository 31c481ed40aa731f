"""How soon the command answers: help, methods, `inspect` (also of a 10 GB model), and refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

from common import alternate, arguments, finish, seconds


def large_model(folder: Path, gigabytes: int = 10, shards: int = 3) -> Path:
    """A model of true headers and sparse data, which takes no disk: a Llama of many layers."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    width, inner, vocabulary = 2048, 8192, 32000
    layer = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (width, width),
        "self_attn.v_proj": (width, width), "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner), "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
    }  # fmt: skip
    tensors = {"embed_tokens.weight": (vocabulary, width), "norm.weight": (width,)}
    layers = 0
    while sum(2 * _count(shape) for shape in tensors.values()) < gigabytes * 10**9:
        tensors |= {f"layers.{layers}.{name}.weight": shape for name, shape in layer.items()}
        layers += 1
    names = list(tensors)
    index: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        header, end = {}, 0
        for name in names[shard::shards]:
            start, end = end, end + 2 * _count(tensors[name])
            header[name] = {
                "dtype": "BF16", "shape": tensors[name], "data_offsets": [start, end]
            }  # fmt: skip
            index[name] = file
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            out.truncate(8 + len(text) + end)
    total = sum(2 * _count(shape) for shape in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    config = {
        "model_type": "llama", "architectures": ["LlamaModel"], "hidden_size": width,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": vocabulary, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _count(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def main() -> int:
    """Medians of whole processes, in turns."""
    parser = arguments(str(__doc__).splitlines()[0], data=False)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()

    script = Path(sysconfig.get_path("scripts")) / "embtool"
    start = [str(script)] if script.exists() else [sys.executable, "-m", "emb_tool"]
    large = large_model(args.work / "large")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "embtool --help": [*start, "--help"],
        "embtool distill --help": [*start, "distill", "--help"],
        "embtool methods": [*start, "methods"],
        "embtool inspect MiniLM": [*start, "inspect", args.model],
        "embtool inspect, 10 GB in 3 shards": [*start, "inspect", str(large)],
    }
    out, none = str(args.work / "out"), str(args.work / "none")
    distill = ["distill", "--teacher", args.model, "--student", args.model, "-o", out]
    compress = ["compress", args.model, "-m", "int:bits=8", "-o", out]
    evaluate = ["eval", args.model, "--task"]
    refused = {
        "refused: embtool eval --task sts:none.tsv": [*evaluate, f"sts:{none}.tsv"],
        "refused: embtool distill --texts none.jsonl": [*distill, "--texts", f"{none}.jsonl"],
        "refused: embtool compress --eval sts:none.tsv": [*compress, "--eval", f"sts:{none}.tsv"],
        "refused: embtool encode none.jsonl": ["encode", args.model, none, "-o", f"{out}.npy"],
    }
    commands |= {name: [*start, *words] for name, words in refused.items()}

    def once(command: list[str], code: int) -> None:
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == code, done.stderr

    def runner(command: list[str], code: int) -> float:
        return seconds(partial(once, command, code))

    timers = {
        name: partial(runner, command, 2 if name in refused else 0)
        for name, command in commands.items()
    }
    for timer in timers.values():
        timer()
    times, turns = alternate(timers, args.rounds)
    rows = [[name, took] for name, took in times.items()]
    finish("startup", args.out, {"seconds": turns}, ["command", "median s"], rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
