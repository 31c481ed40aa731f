"""Values of `embtool merge` against mergekit's, method by method, on the same tensors.

A base and three models near it, float32 and made on the spot. Each method is set to what both mean
by it; where they mean different things (docs/merge.md says which) the difference shows here, at
its largest (weights are of deviation 1: float32 rounds them to 6e-8) and as a share of the change
that the merge makes. What is drawn at random is compared at density 1, where nothing is dropped.

mergekit wants versions of its own: name the interpreter of an environment that has it with --peer.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
from common import arguments, finish
from safetensors.numpy import load_file, save_file

COLUMNS = ["embtool", "mergekit", "differ by 1e-6", "largest difference", "of the change"]

SHAPES = {"table.weight": (2003, 64), "layer.0.w": (128, 64), "layer.1.w": (64, 128), "norm": (64,)}

METHODS: tuple[tuple[str, str, str | None, dict[str, Any]], ...] = (
    ("linear", "linear", None, {"weight": 1.0}),
    ("linear:weights=.5,.3,.2", "linear", None, {"weight": [0.5, 0.3, 0.2]}),
    ("task-arithmetic:scale=0.7", "task_arithmetic", "base", {"weight": 1.0, "lambda": 0.7}),
    ("slerp:t=0.3", "slerp", "m0", {"t": 0.3}),
    ("karcher", "karcher", None, {}),
    ("multislerp", "multislerp", None, {"weight": 1.0}),
    ("multislerp", "multislerp", "base", {"weight": 1.0}),
    ("model-stock", "model_stock", "base", {}),
    ("ties:density=0.2", "ties", "base", {"weight": 1.0, "density": 0.2}),
    ("ties:density=0.2,weights=1,.5,.5", "ties", "base",
     {"density": 0.2, "weight": [1.0, 0.5, 0.5]}),
    ("dare:density=1", "dare_linear", "base", {"weight": 1.0, "density": 1.0}),
    ("dare:density=1,combine=ties", "dare_ties", "base", {"weight": 1.0, "density": 1.0}),
    ("della:density=1,window=0", "della", "base", {"weight": 1.0, "density": 1.0, "epsilon": 0.0}),
    ("breadcrumbs:density=0.9,outliers=0.01", "breadcrumbs", "base",
     {"weight": 1.0, "density": 0.9, "gamma": 0.01}),
    ("sce:density=0.5", "sce", "base", {"select_topk": 0.5}),
)  # fmt: skip
"""Our method, theirs, its base (a model for slerp), its parameters."""

THEIRS = """
import json, sys
from safetensors.torch import load_file, save_file
from mergekit.merge_methods import merge_state_dicts
folder, jobs = sys.argv[1], json.loads(sys.argv[2])
tensors = {name: load_file(f"{folder}/{name}.safetensors") for name in ("base", "m0", "m1", "m2")}
for number, (method, base, parameters) in enumerate(jobs):
    names = [n for n in tensors if n != "base" or base == "base"]
    names = names[:2] if method == "slerp" else names
    given = {
        key: dict(zip([n for n in names if n != "base"], value)) | (
            {"base": 0.0} if "base" in names else {}) if isinstance(value, list) else value
        for key, value in parameters.items()
    }
    try:
        made = merge_state_dicts(
            {n: tensors[n] for n in names}, method, base=base, parameters=given or None)
        made = {name: held.contiguous() for name, held in made.items()}
        save_file(made, f"{folder}/theirs-{number}.safetensors")
    except Exception as error:
        print(method, base, type(error).__name__, str(error)[:200], file=sys.stderr)
"""


def make(folder: Any) -> None:
    """A base and three models."""
    rng = np.random.default_rng(0)
    base = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in SHAPES.items()}
    shared = {n: rng.standard_normal(shape) for n, shape in SHAPES.items()}
    save_file(base, folder / "base.safetensors")
    for number in range(3):
        moved = {n: shared[n] + rng.standard_normal(x.shape) for n, x in base.items()}
        model = {n: (x + 0.03 * moved[n]).astype(np.float32) for n, x in base.items()}
        save_file(model, folder / f"m{number}.safetensors")


def main() -> int:
    """One table."""
    parser = arguments(str(__doc__).splitlines()[0], data=False)
    parser.add_argument("--peer", required=True, help="python of an environment with mergekit")
    args = parser.parse_args()
    folder = args.work / "values"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make(folder)
    jobs = [[theirs, base, parameters] for _, theirs, base, parameters in METHODS]
    subprocess.run([args.peer, "-c", THEIRS, str(folder), json.dumps(jobs)], check=True)

    from emb_tool.cli.app import main as embtool

    first = load_file(folder / "m0.safetensors")
    zero = load_file(folder / "base.safetensors")
    rows: list[list[Any]] = []
    for number, (method, theirs, base, _) in enumerate(METHODS):
        models = [str(folder / f"m{i}.safetensors") for i in range(2 if theirs == "slerp" else 3)]
        given = ["--base", str(folder / "base.safetensors")] if base == "base" else []
        out = folder / f"ours-{number}"
        embtool(["merge", *models, "-m", method, *given, "-o", str(out), "-q"])
        label = f"{theirs}, with a base" if base == "base" and method == "multislerp" else theirs
        if not (folder / f"theirs-{number}.safetensors").exists():
            rows.append([method, label, "fails", None, None])
            continue
        mine = load_file(out / "model.safetensors")
        other = load_file(folder / f"theirs-{number}.safetensors")
        start = zero if base == "base" else first
        off, change, most, unlike, total = 0.0, 0.0, 0.0, 0, 0
        for name, x in mine.items():
            apart = np.abs(x.astype(np.float64) - other[name])
            off += float(np.square(apart).sum())
            change += float(np.square(x.astype(np.float64) - start[name]).sum())
            most = max(most, float(apart.max()))
            unlike, total = unlike + int((apart > 1e-6).sum()), total + x.size
        share = (off / change) ** 0.5
        rows.append([method, label, f"{unlike / total:.2%}", f"{most:.0e}", f"{share:.1e}"])
    finish("merge-values", args.out, {row[0]: row[1:] for row in rows}, COLUMNS, rows)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
