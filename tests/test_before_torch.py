"""What flags, headers and first records can refuse is refused before torch is imported."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import write_texts

HEAVY = (
    "torch", "transformers", "sentence_transformers", "sklearn", "pyarrow", "scipy", "datasets",
    "accelerate", "matplotlib",
)  # fmt: skip

PROGRAM = f"""
import contextlib, importlib.machinery, io, json, os, shutil, sys

class Heavy(Exception):
    pass

class Blocked:  # what is there can be looked up, not imported
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        raise Heavy(spec.name)

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Blocked())
from emb_tool.cli.app import main

for line in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(line)
        except Heavy as error:
            code = f"imported {{error}}"
    if os.path.exists("out.partial"):
        code = f"{{code}}, and left out.partial"
        shutil.rmtree("out.partial")
    print(json.dumps([code, out.getvalue() + err.getvalue()]))
"""
"""Runs command lines from stdin one after another; what is heavy cannot be imported."""

DISTILL = "distill --teacher MODEL --student-layers 1 --texts texts.jsonl -o out"
COMPRESS = "compress MODEL -m truncate:dim=16 -m int:bits=8 -o out"
MERGE = "merge MODEL OTHER -o out"
EXTEND = "extend-context MODEL --to 128 -o out"
EVAL = "eval MODEL --task sts:pairs.tsv"
ENCODE = "encode MODEL texts.jsonl -o v.npy"
EXPAND = "expand MODEL -o out"
JOBS = (DISTILL, COMPRESS, MERGE, EXTEND, EVAL, ENCODE)

CASES: list[tuple[str, str]] = [
    # every command that runs a job
    *((f"{job} {flag}", said)
      for job in JOBS
      for flag, said in (
          ("--device gpu", "--device"), ("--device cuda:first", "--device"),
          ("--dtype float8", "--dtype"), ("--seed -1", "--seed"), ("--set nonsense=1", "nonsense"),
          ("--set nonsense", "not key=value"), ("-r none.yaml", "none.yaml: no such recipe"),
          ("-r broken.yaml", "broken.yaml:2: not YAML"), ("-r .", "recipe.yaml: no such recipe"),
          ("-r two.yaml", "is not a single"), ("--nonsense", "--nonsense"),
      )),
    *((f"{job} {flag}", said)
      for job in (DISTILL, COMPRESS, MERGE, EXTEND)
      for flag, said in (
          ("-o full", "is not empty"), ("-o texts.jsonl", "is a file"),
          ("-m nonsense", "unknown"), ("--eval sts:none.tsv", "none.tsv: not found"),
          ("--eval sts:empty.tsv", "is empty"), ("--eval sts:wrong.tsv", "wrong.tsv:1"),
          ("--eval sts:.", "not a file of pairs"), ("--eval sts", "has no path"),
          ("--eval retrieval:none", "none: not found"), ("--eval retrieval:.", "no corpus.jsonl"),
          ("--eval nonsense:x", "unknown eval method 'nonsense'"),
          ("--eval sts:pairs.tsv,depth=2", "unknown setting 'depth'"),
      )),
    *((job.replace("MODEL", model), said)
      for job in (DISTILL, COMPRESS, MERGE, EXTEND, EVAL, ENCODE, EXPAND)
      for model, said in (
          ("./none", "does not exist"), ("no/such", "neither a local folder"),
          ("bad//id", "does not exist"), ("empty", "no model.safetensors"),
          ("texts.jsonl", "is a data file"),
          ("unconfigured", "no config.json"), ("unshard", "which does not exist"),
          ("cut", "cut"),
      )),
    *((f"{job} {flag}", said)
      for job, flags in (
          (DISTILL, ("--texts", "--queries")), (COMPRESS, ("--texts", "--tune")),
          (EXTEND, ("--tune",)), (f"{ENCODE} --precision int8", ("--calibrate",)),
      )
      for flag, said in (
          *((f"{name} none.jsonl", "none.jsonl: not found") for name in flags),
          *((f"{name} empty.jsonl", "empty.jsonl is empty") for name in flags),
          *((f"{name} empty", "no file of a known type") for name in flags),
          *((f"{name} model.bin", "model.bin: not found") for name in flags),
          *((f"{name} texts.jsonl --text-field body", "no field 'body'") for name in flags),
          *((f"{name} table.tsv", "table.tsv:1: the first line does not name") for name in flags),
          *((f"{name} wide.txt", "wide.txt is UTF-16") for name in flags),
          *((f"{name} texts.jsonl --delimiter hash", "expected tab, comma, ") for name in flags),
          *((f"{name} wrong.jsonl", "wrong.jsonl:1: not JSON") for name in flags),
      )),
    *((f"{job} --prompt-name nonsense", "no prompt named 'nonsense'")
      for job in (DISTILL, COMPRESS, EXTEND, EVAL, ENCODE)),
    # distill
    ("distill", "--teacher"),
    ("distill --teacher MODEL --texts texts.jsonl -o out", "no student"),
    (DISTILL.replace("--texts texts.jsonl", ""), "no texts"),
    (f"{DISTILL} --student-layers 9", "--student-layers 9"),
    (f"{DISTILL} --dims 999", "--dims 999"),
    (f"{DISTILL} --lr fast", "--lr"),
    (f"{DISTILL} --teacher-dim 999", "--teacher-dim 999"),
    (f"{DISTILL} --max-length 999", "--max-length 999"),
    (f"{DISTILL} --min-retention 0.9", "nothing to retain"),
    (f"{DISTILL} --query-share 0.5", "nothing to share"),
    (f"{DISTILL} --fraction 2", "--fraction"),
    (f"{DISTILL} --head nonsense", "--head"),
    ("distill --teacher none.npy --student MODEL --texts texts.jsonl -o out", "none.npy"),
    ("distill --teacher texts.npy --student MODEL --texts texts.jsonl -o out", "not a .npy"),
    ("distill --teacher http://h/v1 --student MODEL --texts texts.jsonl -o out", "model is miss"),
    # compress
    ("compress MODEL -o out", "no method"),
    (f"{COMPRESS} -m rotate", "wrong order"),
    (f"{COMPRESS} -m int:bits=99", "bits"),
    ("compress MODEL -m truncate:dim=999 -m int:bits=8 -o out", "999"),
    ("compress MODEL --target much -o out", "--target"),
    ("compress MODEL --target 1MB --plot p.txt -o out", "--plot"),
    ("compress MODEL --target 1MB --plot none/p.png -o out", "--plot"),
    (f"{COMPRESS} --plot p.png", "--plot"),
    (f"{COMPRESS} --partner none", "none"),
    (f"{COMPRESS} --holdout 1", "--holdout"),
    (f"{COMPRESS} --min-retention 5", "--min-retention"),
    # merge
    ("merge MODEL -o out", ""),
    ("merge MODEL MODEL -o out", "given twice"),
    ("merge MODEL OTHER", "-o/--output"),
    (f"{MERGE} --weights .5,.5,.5", "weights"),
    (f"{MERGE} --weights a", "weights"),
    (f"{MERGE} -m ties", "base"),
    (f"{MERGE} --base third", "does not use a base"),
    (f"{MERGE} --copy-from nonsense=1", "nonsense"),
    (f"{MERGE} --dev sts:pairs.tsv", "does not use --dev"),
    (f"{MERGE} -m greedy-soup", "needs data"),
    (f"{MERGE} -m greedy-soup --dev sts:none.tsv", "none.tsv"),
    (f"{MERGE} -m fisher --pairs none.jsonl", "none.jsonl"),
    (f"{MERGE} -m fisher --texts none.jsonl", "none.jsonl"),
    # extend-context
    ("extend-context MODEL -o out", "--to"),
    ("extend-context MODEL --to 2 -o out", "--to 2"),
    (f"{EXTEND} -m yarn", "-m yarn"),
    (f"{EXTEND} --original-length 9999", "--original-length 9999"),
    # eval
    ("eval MODEL", "--task"),
    (f"{EVAL} --task nonsense", "unknown eval method"),
    (f"{EVAL} --task sts:none.tsv", "none.tsv: not found"),
    (f"{EVAL} --task sts:pairs.tsv,header=maybe", "expected true or false"),
    (f"{EVAL} --reference MODEL --task agreement:table.tsv", "table.tsv:1: the first line"),
    (f"{EVAL} --task agreement:texts.jsonl", "--reference"),
    (f"{EVAL} --reference none", "none"),
    (f"{EVAL} --query-model none", "none"),
    (f"{EVAL} --reference MODEL --task agreement:none.jsonl", "none.jsonl"),
    (f"{EVAL} --task speed:none.jsonl", "none.jsonl"),
    (f"{EVAL} --task passkey:haystack=none.txt", "none.txt"),
    (f"{EVAL} --task perplexity:none.txt", "none.txt"),
    (f"{EVAL} --task long-retrieval:none", "none"),
    (f"{EVAL} --plot none/p.png", "--plot"),
    (f"{EVAL} --plot p.txt", "--plot"),
    (f"{EVAL} --min-retention .9", "nothing to retain"),
    (f"{EVAL} --precision int8", "--precision"),
    (f"{EVAL} --max-length 9999", "--max-length 9999"),
    # encode
    ("encode MODEL -o v.npy", "TEXTS"),
    ("encode MODEL texts.jsonl", "-o/--output"),
    ("encode MODEL none.jsonl -o v.npy", "none.jsonl: not found"),
    ("encode MODEL empty.jsonl -o v.npy", "empty.jsonl is empty"),
    ("encode MODEL texts.jsonl -o v.txt", "ends in"),
    ("encode MODEL texts.jsonl -o full.npy", "exists already"),
    ("encode MODEL texts.jsonl -o none/v.npy", "there is no folder"),
    (f"{ENCODE} --max-length 9999", "--max-length 9999"),
    (f"{ENCODE} --precision int9", "unknown precision"),
    (f"{ENCODE} --precision int8 --ranges none.json", "none.json"),
    (f"{ENCODE} --ranges none.json", "needs no ranges"),
    # expand
    (EXPAND, "holds no packed weights"),
    (f"{EXPAND} --dtype int8", "dtype"),
    ("expand MODEL", "--output"),
    # run
    ("run", "RECIPE"),
    ("run none.yaml", "no such recipe"),
    ("run broken.yaml", "broken.yaml:2"),
    ("run missing.yaml", "none.jsonl: not found"),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, sentences: list[str]) -> Path:
    """A folder with everything that the cases name."""
    folder = tmp_path_factory.mktemp("refusals")
    write_texts(folder / "texts.jsonl", sentences[:20])
    (folder / "pairs.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2\n")
    (folder / "empty.jsonl").touch()
    (folder / "empty.tsv").touch()
    (folder / "wrong.jsonl").write_text("no JSON\n")
    (folder / "wrong.tsv").write_text("one\ttwo\n")
    (folder / "table.tsv").write_text("1\tone\n2\ttwo\n")
    (folder / "wide.txt").write_text("one\ntwo\n", encoding="utf-16")
    (folder / "texts.npy").write_text("no array")
    (folder / "full.npy").touch()
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    (folder / "empty").mkdir()
    (folder / "broken.yaml").write_text("verb: [1\nlr: 2\n")
    (folder / "two.yaml").write_text("jobs: [{verb: eval}, {verb: eval}]\n")
    (folder / "missing.yaml").write_text(
        f"verb: encode\nmodel: {tiny_bert}\ntexts: [none.jsonl]\noutput: v.npy\n"
    )
    for name in ("unconfigured", "unshard", "cut"):
        shutil.copytree(tiny_bert, folder / name)
    (folder / "unconfigured" / "config.json").unlink()
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    (folder / "unshard" / "model.safetensors").unlink()
    (folder / "unshard" / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"embeddings.word_embeddings.weight": "model-1.safetensors"}})
    )
    for name in ("other", "third"):
        shutil.copytree(tiny_bert, folder / name)
    return folder


@pytest.fixture(scope="module")
def told(place: Path, tiny_bert: Path) -> dict[str, tuple[object, str]]:
    """Exit code and words of every case, from one process that cannot import what is heavy."""
    names = {"MODEL": str(tiny_bert), "OTHER": "other"}
    lines = [[names.get(word, word) for word in line.split()] for line, _ in CASES]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=place, input=json.dumps(lines), capture_output=True,
        text=True, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return {line: (code, said) for (line, _), (code, said) in zip(CASES, answers, strict=True)}


@pytest.mark.parametrize(("line", "words"), CASES)
def test_it_is_refused_without_torch(
    told: dict[str, tuple[object, str]], line: str, words: str
) -> None:
    code, said = told[line]
    assert code == 2, said
    assert words in said
