"""`embtool merge` against mergekit, sentence-transformers' own merge and plain copies.

Checkpoints of XLM-R's size (560 M parameters) are made on the spot: a base, and models that differ
from it by a few per cent everywhere. Each contender is a whole command in a process of its own;
seconds are wall time, memory is the peak of what the process allocated itself (RssAnon, read twenty
times a second), the check that embtool makes of its written files apart. "Copies" reads all inputs
once and writes one output, forced to disk: what no merge can be quicker than.

mergekit wants versions of its own: name the interpreter of an environment that has it, and
sentence-transformers, with --peer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import Ratio, arguments, finish

from emb_tool.checkpoint.own_files import REPORT

COLUMNS = [
    "merge", "by", "s", "s without the check", "over copies", "over embtool's", "peak MB",
]  # fmt: skip

SIZES = {
    "xlm-r": {"vocab": 250_002, "hidden": 1024, "layers": 24, "heads": 16, "inner": 4096},
    "small": {"vocab": 20_000, "hidden": 256, "layers": 4, "heads": 4, "inner": 1024},
}

CHUNK = 1 << 24

ST_MERGE = """
import sys
from sentence_transformers import SentenceTransformer
method, base, out, *models = sys.argv[1:]
merged = SentenceTransformer.merge(
    models, method=method, base_model=base or None, device="cpu",
    parameters=({"density": 0.2} if method == "ties" else None),
)
merged.save_pretrained(out)
"""


def make(folder: Path, size: dict[str, int], count: int) -> list[Path]:
    """A base and `count` models near it, as sentence-transformers saves them.

    Args:
        folder: Where; what is there already is taken.
        size: Of `SIZES`.
        count: Models beside the base.
    """
    made = [folder / "base", *(folder / f"model-{i}" for i in range(count))]
    if all((path / "modules.json").exists() for path in made):
        return made
    import torch
    from safetensors.torch import load_file, save_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(
        vocab_size=size["vocab"], hidden_size=size["hidden"], num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"], intermediate_size=size["inner"],
        max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [(piece, 0.0) for piece in special]
    pieces += [(f"▁{i}", -float(i)) for i in range(size["vocab"] - len(pieces))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    plain = folder / "plain"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", mask_token="<mask>", cls_token="<s>", sep_token="</s>",
        model_max_length=512,
    ).save_pretrained(plain)  # fmt: skip
    torch.manual_seed(0)
    XLMRobertaModel(config).save_pretrained(plain)
    module = Transformer(str(plain))
    model = SentenceTransformer(modules=[module, Pooling(size["hidden"], "mean")], device="cpu")
    model.save_pretrained(str(made[0]), create_model_card=False)
    shutil.rmtree(plain)
    weights = load_file(made[0] / "model.safetensors")
    for number, path in enumerate(made[1:], 1):
        shutil.copytree(made[0], path, ignore=shutil.ignore_patterns("*.safetensors"))
        generator = torch.Generator().manual_seed(number)
        moved = {
            name: w + 0.03 * w.std().nan_to_num() * torch.randn(w.shape, generator=generator)
            for name, w in weights.items()
        }
        save_file(moved, path / "model.safetensors", metadata={"format": "pt"})
    return made


def watched(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and peak anonymous MB of a command, not counting processes that it starts.

    Raises:
        SystemExit: It failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    started = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **quiet, env=os.environ | {"HF_HUB_OFFLINE": "1"})  # type: ignore[call-overload]
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            anonymous = next(x for x in status.splitlines() if x.startswith("RssAnon"))
            peak = max(peak, int(anonymous.split()[1]))
        except (OSError, StopIteration):
            pass
        time.sleep(0.05)
    took = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\n{process.stderr.read().decode()}")
    return took, peak * 1024 / 1e6  # the kernel's kB has 1,024 bytes


def copies(inputs: list[Path], out: Path) -> float:
    """Seconds to read all inputs and write one output."""
    out.mkdir(parents=True, exist_ok=True)
    buffer = bytearray(CHUNK)
    started = time.perf_counter()
    with (out / "copy").open("wb") as target:
        for number, path in enumerate(inputs):
            with (path / "model.safetensors").open("rb", buffering=0) as source:
                while read := source.readinto(buffer):
                    if number == 0:
                        target.write(memoryview(buffer)[:read])
        target.flush()
        os.fsync(target.fileno())
    return time.perf_counter() - started


def contenders(
    args: argparse.Namespace, method: str, base: Path, models: list[Path]
) -> dict[str, Callable[[], tuple[float, float, float]]]:
    """Seconds of the whole command, of it until the files are written, and peak MB, by name."""
    out = args.work / "merged"
    with_base = method == "ties"
    settings = ":density=0.2" if with_base else ""
    ours = [
        sys.executable, "-m", "emb_tool", "merge", *map(str, models), "-m", method + settings,
        *(["--base", str(base)] if with_base else []), "-o", str(out), "--json",
    ]  # fmt: skip
    recipe = args.work / f"{method}.yaml"
    parameters = {"weight": 1.0, **({"density": 0.2} if with_base else {})}
    recipe.write_text(
        json.dumps({
            "merge_method": method,
            **({"base_model": str(base)} if with_base else {}),
            "models": [{"model": str(path), "parameters": parameters} for path in models],
            "dtype": "float32",
        }),
        encoding="utf-8",
    )  # fmt: skip

    def embtool() -> tuple[float, float, float]:
        took, peak = watched(ours, out)
        timings = json.loads((out / REPORT).read_text(encoding="utf-8"))["timings"]
        return took, took - timings["check_seconds"], peak

    def peer(command: list[str]) -> Callable[[], tuple[float, float, float]]:
        def run() -> tuple[float, float, float]:
            took, peak = watched(command, out)
            return took, took, peak

        return run

    found: dict[str, Callable[[], tuple[float, float, float]]] = {"embtool": embtool}
    if args.peer and "mergekit" in args.peers:
        mergekit = str(Path(args.peer).parent / "mergekit-yaml")
        found["mergekit"] = peer([mergekit, str(recipe), str(out)])
    if args.peer and "sentence-transformers" in args.peers:
        found["sentence-transformers"] = peer(
            [args.peer, "-c", ST_MERGE, method, str(base) if with_base else "", str(out)]
            + [str(path) for path in models]
        )
    return found


def main() -> int:
    """One table, methods below one another."""
    parser = arguments(str(__doc__).splitlines()[0], data=False)
    parser.add_argument("--size", choices=SIZES, default="xlm-r")
    parser.add_argument("--methods", nargs="+", default=["linear", "ties"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rounds", type=int, default=1, help="of the slow ones")
    parser.add_argument("--peer", help="python of an environment with mergekit")
    names = ("mergekit", "sentence-transformers")
    parser.add_argument("--peers", nargs="*", default=list(names), choices=names)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    base, *models = make(args.work / args.size, SIZES[args.size], 3)
    floor = median(copies(models, args.work / "merged") for _ in range(args.rounds))
    rows: list[list[Any]] = [["", "copies", floor, floor, 1.0, None, None]]
    results: dict[str, Any] = {"copies": floor}
    ratios: list[Ratio] = []
    for method in args.methods:
        mine = memory = 0.0
        for name, run in contenders(args, method, base, models).items():
            rounds = args.rounds if name == "embtool" else args.peer_rounds
            turns = np.array([run() for _ in range(rounds)])
            took, written, peak = np.median(turns, axis=0).tolist()
            if name == "embtool":
                mine, memory = written, peak
                ratios.append(Ratio(f"merge, {method}, s", "file copy", written / floor))
            else:
                ratios.append(Ratio(f"merge, {method}, s", name, mine / written))
                ratios.append(Ratio(f"merge, {method}, memory", name, memory / peak))
            results[f"{method} {name}"] = turns.tolist()
            rows.append([method, name, took, written, written / floor, written / mine, peak])
            finish("merge", args.out, results, COLUMNS, rows, ratios)
    shutil.rmtree(args.work / "merged", ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
