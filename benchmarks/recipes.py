"""Run every recipe in two checkouts and compare what they write: tensors, config.json, seconds.

    python benchmarks/recipes.py --data DATA --before OLD_CHECKOUT

A change of names alone must not change a tensor. `renamed_settings.json` maps the names of the
older checkout to those of the newer one: settings (`hot_bits`), tensors and keys of `config.json`.
The data are small parts of `--data`, so the quality of these outputs means nothing; the seconds
include the start of the process and the check of the written files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common import alternate, arguments, documents, finish, seconds, write_texts

ROOT = Path(__file__).parent.parent
NAMES: dict[str, dict[str, str]] = json.loads(
    (Path(__file__).parent / "renamed_settings.json").read_text(encoding="utf-8")
)
WEIGHTS = ".safetensors"

COMMANDS = {
    "distill/quick": "distill --teacher {model} --texts texts.jsonl --{num-evals} 2",
    "distill/heal": "distill --teacher {model} --student quick --texts texts.jsonl --holdout 50",
    "distill/leaf": "distill --teacher {model} --student quick --texts few.jsonl",
    "compress/index": "compress {model} --texts texts.jsonl",
    "compress/small": "compress {model} --texts texts.jsonl",
    "compress/tiny": "compress {model} --texts texts.jsonl",
    "merge/soup": "merge heal leaf",
    "merge/ties": "merge heal leaf --base quick",
    "merge/sphere": "merge heal leaf --base quick",
    "extend-context/learned": "extend-context {model} --tune paragraphs.jsonl",
    "extend-context/rotary": "extend-context {rotary} --original-length 512",
    "extend-context/keep-short": "extend-context {rotary} --original-length 512",
}
"""Each recipe's arguments; outputs have the name of their recipe, later ones read earlier ones."""


def renamed(text: str) -> str:
    """A text of the older checkout (YAML, names) with the names of the newer one."""
    for old, new in NAMES["settings"].items():
        text = re.sub(rf"(?m)^(\s*(?:- )?){old}:", rf"\1{new}:", text)
    return text


def embtool(checkout: Path, folder: Path, *argv: str) -> None:
    """Run a command of one checkout in a folder; its whole output is shown if it fails."""
    command = [sys.executable, "-m", "emb_tool", *argv, "--quiet"]
    environment = os.environ | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(command)}\n{done.stdout}{done.stderr}")


def tensors(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Dtype, shape and bytes of every tensor below a folder, by its file and name."""
    result = {}
    for path in sorted(folder.rglob(f"*{WEIGHTS}")):
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        for name, about in json.loads(content[8 : 8 + size]).items():
            if name != "__metadata__":
                start, end = (8 + size + offset for offset in about["data_offsets"])
                key = f"{path.relative_to(folder)}:{name}"
                result[key] = about["dtype"], about["shape"], content[start:end]
    return result


def with_new_names(value: Any, names: Mapping[str, str]) -> Any:
    """A JSON document with renamed keys, at any depth."""
    if isinstance(value, dict):
        return {names.get(key, key): with_new_names(item, names) for key, item in value.items()}
    return [with_new_names(item, names) for item in value] if isinstance(value, list) else value


def differences(before: Path, after: Path) -> Iterator[str]:
    """What differs between two outputs but for the map of names."""
    old = {}
    for key, tensor in tensors(before).items():
        stem, dot, last = key.rpartition(".")
        old[stem + dot + NAMES["tensors"].get(last, last)] = tensor
    new = tensors(after)
    yield from (f"tensor {name}" for name in sorted({*old, *new}) if old.get(name) != new.get(name))
    configs = ({path.relative_to(f) for path in f.rglob("config.json")} for f in (before, after))
    for path in sorted(set.union(*configs)):
        pair = [
            json.loads((folder / path).read_text()) if (folder / path).exists() else None
            for folder in (before, after)
        ]
        if with_new_names(pair[0], NAMES["config.json"]) != pair[1]:
            yield str(path)


def prepare(folder: Path, args: Any) -> None:
    """The inputs that the recipes read, small."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    texts = documents(args.data)
    write_texts(folder / "texts.jsonl", texts[:400])
    write_texts(folder / "few.jsonl", texts[400:560])
    write_texts(folder / "new.jsonl", texts[600:700])
    write_texts(
        folder / "paragraphs.jsonl", (" ".join(texts[i : i + 40]) for i in range(0, 2000, 40))
    )
    source, small = args.data / "cranfield", folder / "beir"
    (small / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        lines = (source / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (small / name).write_text("".join(lines[:120]), encoding="utf-8")


def main() -> None:
    """Both checkouts in turns, recipe by recipe."""
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--before", type=Path, required=True, help="checkout to compare with")
    parser.add_argument("--only", default="", help="recipes whose name has this in it")
    args = parser.parse_args()
    checkouts = {"before": args.before.resolve(), "after": ROOT}
    work = args.work.resolve() / "recipes"
    names = {"model": args.model, "rotary": str((args.data / "stories260K").resolve())}
    for name in checkouts:
        prepare(work / name, args)
    rows: list[list[Any]] = []
    wrong: list[str] = []
    for recipe in [*COMMANDS, "merge/boom"]:
        if args.only not in recipe:
            continue
        old = (args.before / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
        now = (ROOT / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
        runs = {}
        for name, text in (("before", old), ("after", renamed(old))):
            settings = {"num-evals": "num-evals" if name == "after" else "scores"}
            path = work / name / f"{recipe.replace('/', '-')}.yaml"
            text = text.replace("sentence-transformers/all-MiniLM-L6-v2", args.model)
            path.write_text(text, encoding="utf-8")
            stem = recipe.rpartition("/")[2]
            argv = ["run", path.name]
            if recipe in COMMANDS:
                line = COMMANDS[recipe].format(**names, **settings)
                argv = [*line.split(), "-r", path.name, "-o", stem, "--overwrite"]
            runs[name] = partial(seconds, partial(embtool, checkouts[name], work / name, *argv))
        took, _ = alternate(runs, 1)
        different = list(differences(work / "before" / stem, work / "after" / stem))
        same = with_new_names(load(old), NAMES["settings"]) == load(now)
        count = len(tensors(work / "after" / stem))
        if not same:
            different.append("the recipe's settings")
        wrong += [f"{recipe}: {difference}" for difference in different]
        row = [recipe, count, "no" if different else "yes", took["before"], took["after"]]
        rows.append([*row, took["after"] / took["before"]])
        print(*rows[-1], flush=True)
    columns = ("recipe", "tensors", "identical", "before, s", "after, s", "ratio")
    finish("recipes", args.out, {"different": wrong}, columns, rows)
    if wrong:
        raise SystemExit("\n".join(wrong))


def load(text: str) -> Any:
    """A recipe as settings."""
    import yaml

    return yaml.safe_load(text)


if __name__ == "__main__":
    main()
