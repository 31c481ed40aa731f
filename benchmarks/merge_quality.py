"""What merges are worth: siblings of one student, every method, and training on everything.

A student of three layers is distilled a little (the base), and fine-tuned from there on different
tasks and bags: STS-B train pairs, titles to bodies of Cranfield, sentences of Wikipedia to the ones
that follow, two bags of texts towards the teacher; and two of them again at ten times the rate, as
sweeps have them. `joint` has seen all of it. Every method merges the seven; those that look at data
look at one half of STS-B dev and of Cranfield's queries, and all are measured on the other half,
against equal weights with a paired bootstrap.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import arguments, documents, embtool, finish, seconds, write_texts

from emb_tool.checkpoint.own_files import REPORT
from emb_tool.registry import methods

SEED = 0

LR = 1e-4
"""Of fine-tuning."""

LENGTH = 64
"""Tokens read of a text: training, choosing and measuring take the beginnings of documents."""


COLUMNS = [
    "model", "STS-B dev", "Cranfield nDCG@10", "agreement", "mean of the two", "less equal weights",
    "95 % interval", "seconds",
]  # fmt: skip

PLAIN = {
    "linear": [], "task-arithmetic": ["scale=.5"], "karcher": [], "multislerp": [],
    "ties": ["density=.5", "scale=.5"], "dare": ["density=.5", "scale=.2"], "model-stock": [],
    "sce": [],
}  # fmt: skip
"""Methods without data, with the settings that do not go without saying."""

NO_BASE = ("linear", "greedy-soup", "cocktail", "fisher", "regmean")


def main() -> int:
    """Siblings, joint training, then the table."""
    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--layers", default="0,2,5", help="of the teacher, for all models")
    parser.add_argument("--texts", type=int, default=8000, help="that bags are drawn from")
    parser.add_argument("--pairs", type=int, default=2000, help="trained on of each task at most")
    parser.add_argument("--trials", type=int, default=24, help="of search")
    parser.add_argument("--steps", type=int, default=60, help="of self-positioning")
    parser.add_argument("--again", action="store_true", help="make again what is there already")
    parser.add_argument("--joint", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--only", nargs="*", help="merges to make [all]")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    texts = Texts(args)
    base, siblings = args.work / "base", train_all(args, texts)
    merged, took = merge_all(args, texts, base, list(siblings.values()))
    joint = args.work / "joint"
    if args.joint:
        make(args, joint, lambda: tune(base, joint, joint_data(args, texts), LR))
    trained = {"base": base, **siblings, **({"joint": joint} if args.joint else {})}
    scores = measure(args, texts, trained | merged)
    equal = scores["linear"]
    rows: list[list[Any]] = []
    for name, held in scores.items():
        figures = [score.figures[main] for score, main in zip(held, MAIN, strict=True)]
        mean = (figures[0] + figures[1]) / 2
        gain, low, high = difference(held, equal)
        interval = "" if name == "linear" else f"{low:+.4f} to {high:+.4f}"
        rows.append([name, *figures, mean, gain, interval, took.get(name)])
    finish("merge_quality", args.out, {"rows": rows, "took": took}, COLUMNS, rows)
    return 0


MAIN = ("spearman", "ndcg@10", "neighbor overlap")


def merge_all(
    args: argparse.Namespace, texts: Texts, base: Path, siblings: list[Path]
) -> tuple[dict[str, Path], dict[str, float]]:
    """Every method's merge, by the command, and its seconds.

    Methods with data see the first half alone.
    """
    dev: list[object] = [part for task in texts.tasks(0) for part in ("--dev", task)]
    pairs: list[object] = ["--pairs", args.work / "half0" / "pairs.jsonl"]
    bag: list[object] = ["--texts", args.work / "bag-a.jsonl", "--limit", 2000]
    taught = [*bag, "--teacher", args.model, "--store", args.work / "store"]
    descent = f"self-positioning:steps={args.steps},lr={5 / args.steps:.3f}"  # a factor of 12
    recipes: dict[str, tuple[str, list[object]]] = {
        name: (name + (":" + ",".join(settings) if settings else ""), [])
        for name, settings in PLAIN.items()
        if name in methods("merge")
    }
    recipes |= {
        "greedy-soup": ("greedy-soup", dev),
        "search": (f"search:trials={args.trials}", dev),
        "self-positioning": (descent, pairs),
        "self-positioning, label-free": (descent, taught),
        "cocktail": ("cocktail", pairs),
        "fisher": ("fisher", bag),
        "regmean": ("regmean", bag),
    }
    made, took = {}, {}
    for name, (method, given) in recipes.items():
        if args.only and name not in args.only and name != "linear":
            continue
        out = args.work / f"merge-{name.replace(', ', '-')}"
        needs = [] if name in NO_BASE else ["--base", base]
        length = ["--max-length", LENGTH] if given else []
        if args.again or not out.exists():
            report = embtool("merge", *siblings, *needs, "-m", method, *given, *length,
                             "-o", out, "--overwrite")  # fmt: skip
            print(f"{name}: {report['job']['method']}", flush=True)
        else:
            report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        made[name], took[name] = (
            out,
            sum(report["timings"].get(part, 0.0) for part in ("look_seconds", "merge_seconds")),
        )
    return made, took


def measure(args: argparse.Namespace, texts: Texts, models: dict[str, Path]) -> dict[str, Any]:
    """Scores of each model on the half that no method has seen, and its agreement."""
    from emb_tool.evaluate.model_pair import ModelPair
    from emb_tool.evaluate.task import parse_tasks
    from emb_tool.model.encoder import Encoder
    from emb_tool.runtime.device import Runtime

    runtime = Runtime.start("auto", "fp32")
    *tasks, agreement = parse_tasks([*texts.tasks(1), f"agreement:{texts.unseen}"])

    def pair(path: object) -> Any:
        return ModelPair.of(Encoder.open(str(path), runtime, max_length=LENGTH), str(path))

    teacher, found = pair(args.model), {}
    for name, path in {"teacher": args.model, **models}.items():
        mine = pair(path)
        found[name] = [*(task.score(mine) for task in tasks), agreement.score(mine, teacher)]
        print(name, [round(s.figures[m], 4) for s, m in zip(found[name], MAIN, strict=True)],
              flush=True)  # fmt: skip
    return found


def difference(mine: list[Any], other: list[Any], resamples: int = 2000) -> tuple[float, ...]:
    """Mean of the two tasks' figures less the other's, with a paired bootstrap interval.

    Pairs and queries are drawn anew, both models are measured on each draw.
    """
    rng = np.random.default_rng(SEED)
    whole, drawn = 0.0, np.zeros(resamples)
    for a, b in zip(mine[:2], other[:2], strict=True):
        counts = rng.multinomial(a.items, np.full(a.items, 1 / a.items), size=resamples)
        counts = counts.astype(np.float64)
        drawn += (a.statistic(counts) - b.statistic(counts)) / 2
        once = np.ones((1, a.items))
        whole += float(a.statistic(once)[0] - b.statistic(once)[0]) / 2
    low, high = np.quantile(drawn, [0.025, 0.975])
    return whole, float(low), float(high)


class Texts:
    """What is trained on, and the halves that are measured on.

    Args:
        args: Names the data and where to work.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.data, self.work, self.pairs = args.data, args.work, args.pairs
        every = documents(args.data, cranfield=False)
        random.Random(SEED).shuffle(every)
        self.unseen = write_texts(self.work / "agreement.jsonl", every[:500])
        self.every = every[1000 : 1000 + args.texts]
        for half in (0, 1):
            self._half(half)

    def bag(self, share: float, seed: int) -> list[str]:
        """A share of the texts, without replacement."""
        return random.Random(seed).sample(self.every, int(share * len(self.every)))

    def tasks(self, half: int) -> list[str]:
        """The tasks of one half, as embtool spells them."""
        return [f"sts:{self.work / f'half{half}' / 'sts.tsv'}",
                f"retrieval:{self.work / f'half{half}' / 'cranfield'}"]  # fmt: skip

    def sts_rows(self, name: str) -> list[list[str]]:
        """Rows of an STS-B file."""
        lines = (self.data / "stsbenchmark" / name).read_text(encoding="utf-8").splitlines()
        return [line.split("\t") for line in lines]

    def _half(self, half: int) -> None:
        """Every second pair of STS-B dev and query of Cranfield, and the pairs that they give.

        Documents are those judged for its queries and an eighth of the others.
        """
        folder = self.work / f"half{half}"
        (folder / "cranfield" / "qrels").mkdir(parents=True, exist_ok=True)
        rows = [row for i, row in enumerate(self.sts_rows("sts-dev.csv")) if i % 2 == half]
        (folder / "sts.tsv").write_text("".join("\t".join(r) + "\n" for r in rows), "utf-8")
        source, target = self.data / "cranfield", folder / "cranfield"
        lines = (source / "queries.jsonl").read_text(encoding="utf-8").splitlines()
        queries = {row["_id"]: row["text"] for row in map(json.loads, lines[half::2])}
        (target / "queries.jsonl").write_text("\n".join(lines[half::2]) + "\n", "utf-8")
        head, *judged = (source / "qrels" / "test.tsv").read_text("utf-8").splitlines()
        judged = [line for line in judged if line.split("\t")[0] in queries]
        (target / "qrels" / "test.tsv").write_text("\n".join([head, *judged]) + "\n", "utf-8")
        asked = {line.split("\t")[1] for line in judged}
        kept = [d for i, d in enumerate(self.cranfield()) if d["_id"] in asked or i % 8 == 0]
        lines = [json.dumps(d) + "\n" for d in kept]
        (target / "corpus.jsonl").write_text("".join(lines), "utf-8")
        corpus = {d["_id"]: f"{d['title']} {d['text']}" for d in self.cranfield()}
        pairs = [(r[5], r[6]) for r in rows if float(r[4]) >= 4]
        for line in judged:
            query, document, score = line.split("\t")
            if int(score) > 0 and corpus.get(document, "").strip():
                pairs.append((queries[query], corpus[document]))
        write_pairs(folder / "pairs.jsonl", pairs)

    def cranfield(self) -> list[dict[str, str]]:
        """The documents."""
        lines = (self.data / "cranfield" / "corpus.jsonl").open(encoding="utf-8")
        return [json.loads(line) for line in lines]

    def datasets(self) -> dict[str, Any]:
        """Pairs to train on, by task."""
        from datasets import Dataset

        titles = [(d["title"], d["text"].removeprefix(d["title"]).strip())
                  for d in self.cranfield() if d["title"] and d["text"]]  # fmt: skip
        sts = self.sts_rows("sts-train.csv")
        made = {
            "sts": Dataset.from_dict({
                "sentence1": [r[5] for r in sts], "sentence2": [r[6] for r in sts],
                "score": [float(r[4]) / 5 for r in sts],
            }),
            "titles": pairs_dataset([pair for pair in titles if pair[1]]),
            "wiki": pairs_dataset(list(self._neighbors())),
        }  # fmt: skip
        return {
            name: held.shuffle(seed=SEED).select(range(min(len(held), self.pairs)))
            for name, held in made.items()
        }

    def _neighbors(self) -> Iterator[tuple[str, str]]:
        """Two sentences of an article and the two that follow, four to an article."""
        file = next((self.data / "wikipedia-articles").glob("*.json"))
        for article in json.loads(file.read_text(encoding="utf-8")):
            text = " ".join(article["content"].split())
            found = [s for s in re.split(r"(?<=[a-z)][.!?])\s+(?=[A-Z])", text) if len(s) > 40]
            for i in list(range(0, len(found) - 3, 4))[:4]:
                yield " ".join(found[i : i + 2]), " ".join(found[i + 2 : i + 4])


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> None:
    """A probe: one query and its positive a line."""
    with path.open("w", encoding="utf-8") as file:
        for query, positive in pairs:
            file.write(json.dumps({"query": query, "positive": positive}) + "\n")


def pairs_dataset(pairs: list[tuple[str, str]]) -> Any:
    """Pairs as the trainer wants them."""
    from datasets import Dataset

    return Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [b for _, b in pairs]})


def train_all(args: argparse.Namespace, texts: Texts) -> dict[str, Path]:
    """The base and its siblings, each unless it is there already."""
    base, bags = args.work / "base", {"bag-a": 2, "bag-b": 3}
    make(args, base, lambda: distil(args, texts.bag(0.3, 1), base, "--student-layers", args.layers))
    tuned = {"sts": LR, "titles": LR, "wiki": LR, "sts-hot": 10 * LR, "wiki-hot": 10 * LR}
    found = {name: args.work / name for name in (*tuned, *bags)}
    for name, out in found.items():
        if name in bags:
            bag = texts.bag(0.4, bags[name])
            make(args, out, lambda bag=bag, out=out: distil(args, bag, out, "--student", base))  # type: ignore[misc]
        else:
            task, lr = name.removesuffix("-hot"), tuned[name]
            data = {task: texts.datasets()[task]}
            make(args, out, lambda data=data, out=out, lr=lr: tune(base, out, data, lr))  # type: ignore[misc]
    return found


def make(args: argparse.Namespace, out: Path, run: Callable[[], object]) -> None:
    """One model, unless it is there already."""
    if args.again or not out.exists():
        print(f"{out.name}: {seconds(run):.0f} s", flush=True)


def distil(args: argparse.Namespace, texts: list[str], out: Path, *student: object) -> None:
    """One pass over a bag."""
    path = write_texts(args.work / f"{out.name}.jsonl", texts)
    embtool("distill", "--teacher", args.model, *student, "--texts", path, "--holdout", 200,
            "--store", args.work / "store", "-o", out, "--overwrite")  # fmt: skip


def joint_data(args: argparse.Namespace, texts: Texts) -> dict[str, Any]:
    """All that the siblings were trained on."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    both = list(dict.fromkeys(texts.bag(0.4, 2) + texts.bag(0.4, 3)))
    vectors = SentenceTransformer(args.model).encode(both, batch_size=64)
    return texts.datasets() | {"bags": Dataset.from_dict({"text": both, "label": vectors})}


def tune(start: Path, out: Path, data: dict[str, Any], lr: float) -> None:
    """Fine-tune by sentence-transformers' trainer, each task with its loss."""
    import tempfile

    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses

    model = SentenceTransformer(str(start))
    model.max_seq_length = LENGTH
    kinds = {"sts": losses.CoSENTLoss, "bags": losses.MSELoss}
    loss = {name: kinds.get(name, losses.MultipleNegativesRankingLoss)(model) for name in data}
    with tempfile.TemporaryDirectory() as folder:
        settings = SentenceTransformerTrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=32,
            learning_rate=lr, warmup_steps=0.1, save_strategy="no", report_to="none",
            disable_tqdm=True, logging_steps=100, seed=SEED, batch_sampler="no_duplicates",
        )  # fmt: skip
        trainer = SentenceTransformerTrainer(
            model=model, args=settings, train_dataset=data, loss=loss
        )
        trainer.train()
    model.max_seq_length = SentenceTransformer(str(start)).max_seq_length
    model.save(str(out), create_model_card=False)


if __name__ == "__main__":
    sys.exit(main())
