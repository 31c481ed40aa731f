"""A student while it is trained: its texts as tokens and vectors, its score, what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from emb_tool.data.batches import Tokens
from emb_tool.data.corpus import Corpus
from emb_tool.evaluate.dev import Tasks, mean_figure, rule
from emb_tool.evaluate.sharded_encoding import encode_together
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report, Table

if TYPE_CHECKING:
    from emb_tool.model.encoder import Encoder
    from emb_tool.training.outcome import Outcome, Score
    from emb_tool.training.targets import Targets


def tokenize_roles(
    encoder: Encoder, corpus: Corpus, indices: np.ndarray, prompts: dict[str, str]
) -> Tokens:
    """Corpus texts as the model reads them, each with the prompt of its role."""
    roles = np.asarray(corpus.roles[indices])
    ids: list[np.ndarray] = [np.zeros(0, np.int32)] * len(indices)
    cut = np.zeros(len(indices), bool)
    for role, name in enumerate(("document", "query")):
        mine = np.flatnonzero(roles == role)
        found, cut[mine] = encoder.tokens(corpus.texts(indices[mine]), prompts[name])
        for position, row in zip(mine, found, strict=True):
            ids[position] = row
    return Tokens(ids, cut)


def encode_roles(
    encoder: Encoder, corpus: Corpus, indices: np.ndarray, prompts: dict[str, str]
) -> np.ndarray:
    """Vectors of corpus texts, each with the prompt of its role, (n, dim)."""
    roles = np.asarray(corpus.roles[indices])
    vectors = np.empty((len(indices), encoder.dim), np.float32)
    for role, name in enumerate(("document", "query")):
        mine = roles == role
        if mine.any():
            vectors[mine] = encode_together(encoder, corpus.texts(indices[mine]), prompts[name])
    return vectors


def score_student(
    student: Encoder,
    corpus: Corpus,
    targets: Targets,
    prompts: dict[str, str],
    tasks: Tasks,
) -> Score:
    """The student on held-out texts and on the tasks; what is reported does not choose.

    The tasks of `--dev` choose; without them the held-out texts, by cosine where vectors have norm
    1 and by distance where their length counts, too.
    """
    from emb_tool.evaluate.model_pair import ModelPair
    from emb_tool.training.outcome import Score

    figures: dict[str, float] = {}
    key: float | None = None
    by, lower = "", False
    heldout = np.asarray(corpus.heldout)
    if len(heldout):
        vectors = encode_roles(student, corpus, heldout, prompts)
        goal = targets.read(heldout)
        loss = float(np.square(vectors - goal).sum(1).mean())
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(goal, axis=1)
        cosine = float(((vectors * goal).sum(1) / np.maximum(norms, 1e-12)).mean())
        figures |= {"heldout_loss": loss, "heldout_cosine": cosine}
        lower = not targets.normalises
        key = -loss if lower else cosine
        by = "squared distance" if lower else "cosine"
        by += f" to the teacher on {len(heldout):,} held-out texts"
    pair = ModelPair.of(student, "student")
    if tasks.dev:
        key, chosen = mean_figure(tasks.dev, pair)
        figures |= chosen
        by, lower = rule(tasks.dev), False
    watched = [task for task in tasks.reported if task.main and not task.needs_reference]
    return Score(key, figures | mean_figure(watched, pair)[1], by, lower)


def record_outcome(report: Report, progress: Progress, outcome: Outcome, total: int) -> None:
    """Put the run into the report; be loud if it did harm."""
    facts = report.facts
    facts["training"] = {
        "texts": outcome.texts,
        "tokens": outcome.tokens,
        "steps": outcome.steps,
        "padding": round(1 - outcome.tokens / max(outcome.padded, 1), 4),
        "wait_seconds": round(outcome.wait_seconds, 3),
        "score_seconds": round(outcome.score_seconds, 3),
        "split": outcome.split,
        "resumed_at": outcome.resumed_at,
        "best_at": outcome.best,
        "choice": outcome.choice(),
        "history": outcome.history,
    }
    report.timings["train_seconds"] = outcome.seconds
    report.timings["score_seconds"] = outcome.score_seconds
    if outcome.seconds:
        speed = outcome.texts / outcome.seconds
        report.measures.append(Measure("training speed", speed, "texts/s"))
    record_choice(report, progress, outcome, total)


def record_choice(report: Report, progress: Progress, outcome: Outcome, total: int) -> None:
    """Say which state was chosen, by what, and what became of the last one."""
    told = outcome.told(total)
    report.tables.append(Table("which state was written", [""], [[told]]))
    if outcome.best == 0 and outcome.by:
        progress.warn(
            "TRAINING DID HARM: no state was better than the initialisation, which is what "
            f"was written ({told}); try a lower --lr, or more and better fitting texts"
        )
    elif outcome.best < outcome.texts:
        progress.warn(told)
    else:
        progress.say(told)
