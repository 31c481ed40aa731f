"""What longer inputs are worth: passkeys, joined abstracts and perplexity, by method.

all-MiniLM-L6-v2 by every method for learned positions, beside truncation and chunk-and-mean, and
with --tune; a causal rotary checkpoint (`stories260K`) by every rotary method.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from common import arguments, embtool, figure, finish, write_texts

LEARNED = ("rp", "hierarchical", "gp", "pi")
ROTARY = ("pi", "ntk", "yarn", "longrope", "self-extend")
JOINED = 8
"""Abstracts of a long document."""

LENGTHS = (512, 1024, 2048, 4096)
"""Tokens of the texts that hide a passkey: the first is what the model was trained for."""


def joined(cranfield: Path, folder: Path) -> Path:
    """Cranfield with 8 abstracts a document: a query's answer stands somewhere in one."""

    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(x) for x in (cranfield / name).read_text("utf-8").splitlines()]

    corpus = read("corpus.jsonl")
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    long: dict[str, str] = {}
    lines = []
    # every 175th: neighbors are of like subjects, and would answer the same queries
    count = -(-len(corpus) // JOINED)
    for start in range(count):
        rows = corpus[start::count]
        texts = [f"{row.get('title', '')} {row['text']}".strip() for row in rows]
        long |= {row["_id"]: f"L{start}" for row in rows}
        lines.append(json.dumps({"_id": f"L{start}", "text": " ".join(texts)}) + "\n")
    (folder / "corpus.jsonl").write_text("".join(lines), "utf-8")
    (folder / "queries.jsonl").write_bytes((cranfield / "queries.jsonl").read_bytes())
    best: dict[tuple[str, str], int] = {}
    for line in (cranfield / "qrels" / "test.tsv").read_text("utf-8").splitlines()[1:]:
        query, document, score = line.split("\t")
        key = (query, long[document])
        best[key] = max(best.get(key, 0), int(score))
    judged = "".join(f"{q}\t{d}\t{s}\n" for (q, d), s in best.items())
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, "utf-8")
    return folder


def paragraphs(texts: Path, out: Path, words: int = 150) -> Path:
    """Sentences in their order, joined to about 200 tokens: short ones teach few positions."""
    made: list[str] = []
    held: list[str] = []
    for line in texts.open(encoding="utf-8"):
        held += json.loads(line)["text"].split()
        if len(held) >= words:
            made.append(" ".join(held))
            held = []
    return write_texts(out, made)


def main() -> int:
    """One row a method and target; the baselines first."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--to", type=int, nargs="+", default=[2048])
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--methods", nargs="*", default=list(LEARNED))
    parser.add_argument("--tune", nargs="*", default=["rp"], help="methods that are tuned, too")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--limit", type=int, help="paragraphs of --tune [all]")
    parser.add_argument("--causal", type=Path, help="[stories260K of the data]")
    parser.add_argument("--rotary", nargs="*", default=list(ROTARY))
    args = parser.parse_args()
    long = joined(args.data / "cranfield", args.work / "cranfield-long")
    tune = paragraphs(args.data / "texts.jsonl", args.work / "paragraphs.jsonl")
    rows: list[list[Any]] = []
    results: dict[str, Any] = {}
    for target in args.to:
        lengths = [n for n in LENGTHS if n <= target]
        asked = f"lengths={','.join(map(str, lengths))},queries={args.queries},window=512"
        outs: dict[str, Path] = {}
        for name in args.methods:
            for tuned in (False, True)[: 1 + (name in args.tune)]:
                label = name + (" --tune" if tuned else "")
                outs[label] = args.work / f"extend-{name}-{target}{'-tuned' if tuned else ''}"
                more = ["--tune", tune, "--epochs", args.epochs] if tuned else []
                more += ["--limit", args.limit] if tuned and args.limit else []
                results[f"{label} {target}"] = embtool(
                    "extend-context", args.model, "--to", target, "-m", name, *more,
                    "-o", outs[label], "--overwrite",
                )  # fmt: skip
        found = embtool(
            "eval", *outs.values(), "--reference", args.model, "--task", f"passkey:{asked}",
            "--task", f"long-retrieval:{long},window=512",
        )  # fmt: skip
        results[f"eval {target}"] = found
        measures = {(m.get("model"), m["name"]): m["value"] for m in found["measures"]}
        models = {"": args.model, **{label: str(out) for label, out in outs.items()}}
        for label, model in models.items():
            for kind in ("truncation", "chunk-and-mean") if not label else ("",):
                end = f" {kind}" if kind else ""
                row = [measures.get((str(model), f"accuracy@{n}{end}")) for n in lengths]
                rows.append([kind or label, target, *row, *[None] * (len(LENGTHS) - len(row))])
                rows[-1].append(measures.get((str(model), f"ndcg@10{end}")))
    prose = args.data / "texts.jsonl"
    found = results["prose"] = embtool(
        "eval", args.model, "--task",
        f"passkey:haystack={prose},lengths=512,queries={args.queries},window=512",
    )  # fmt: skip
    own = figure(found, "accuracy@512 truncation")
    rows.append(["the model, passkeys in prose", None, own, *[None] * 4])
    causal = args.causal or args.data / "stories260K"
    for name in args.rotary:
        out = args.work / f"extend-{name}-causal"
        results[f"{name} causal"] = embtool(
            "extend-context", causal, "--to", 2048, "-m", name, "-o", out, "--overwrite",
            "--eval", f"perplexity:{prose}",
        )  # fmt: skip
        measures = {
            (m.get("model"), m["name"]): m["value"] for m in results[f"{name} causal"]["measures"]
        }
        for kind in ("", " untreated"):
            row = [
                next(
                    (v for (_, n), v in measures.items() if n == f"perplexity@{length}{kind}"), None
                )
                for length in (512, 1024, 2048)
            ]
            shown = f"perplexity: {kind.strip() or name}"
            if not kind or name == args.rotary[0]:
                rows.append([shown, 2048, *row, None, None])
    columns = ["method", "to", "512", "1,024", "2,048", "4,096", "Cranfield, joined"]
    finish("extend_context", args.out, {"reports": results}, columns, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
