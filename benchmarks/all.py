"""All benchmarks, one after another, each in its own process, then their summary.

`make bench DATA=folder`; some hours on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

SCRIPTS = {
    "startup": False,
    "encode": True,
    "store": True,
    "stream_store": True,
    "texts_scale": False,
    "train_step": False,
    "distill_vs_trainer": True,
    "distill_quality": True,
    "compress": True,
    "target": True,
    "precision": True,
    "tables": True,
    "compress_peers": True,
    "merge": False,
    "merge_quality": True,
    "extend_context": True,
    "rotary_embedder": True,
    "growth": False,
    "distill_curve": True,
    "gpu": True,
}
"""Script, and whether it reads the data.

`merge_values.py`, which needs mergekit, and `recipes.py`, which needs a second version of embtool,
are left out.
"""


def main() -> int:
    """Run them; the number of those that failed is the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the data, see README.md")
    parser.add_argument("--out", default="benchmarks/results", help="folder of the results")
    args = parser.parse_args()
    failed = 0
    for name, reads in SCRIPTS.items():
        script = Path(__file__).with_name(f"{name}.py")
        command = [sys.executable, str(script), "--out", args.out, "--work", f"{args.out}/work"]
        if reads:
            command += ["--data", args.data]
        print(f"== {name}", file=sys.stderr, flush=True)
        failed += subprocess.run(command, check=False).returncode != 0
    print("== summary", file=sys.stderr, flush=True)
    summary = [sys.executable, str(Path(__file__).with_name("summary.py")), "--out", args.out]
    return failed + (subprocess.run(summary, check=False).returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
