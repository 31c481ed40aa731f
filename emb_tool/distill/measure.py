"""Tokens, vectors and scores of a student during training, and the report of the outcome."""

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
    """Tokens of corpus texts, each with the prompt of its role."""
    roles = np.asarray(corpus.roles[indices])
    ids: list[np.ndarray] = [np.zeros(0, np.int32)] * len(indices)
    truncated = np.zeros(len(indices), bool)
    for role, name in enumerate(("document", "query")):
        positions = np.flatnonzero(roles == role)
        role_ids, truncated[positions] = encoder.tokens(
            corpus.texts(indices[positions]), prompts[name]
        )
        for position, row in zip(positions, role_ids, strict=True):
            ids[position] = row
    return Tokens(ids, truncated)


def encode_roles(
    encoder: Encoder, corpus: Corpus, indices: np.ndarray, prompts: dict[str, str]
) -> np.ndarray:
    """Vectors of corpus texts, each with the prompt of its role, (n, dim)."""
    roles = np.asarray(corpus.roles[indices])
    vectors = np.empty((len(indices), encoder.dim), np.float32)
    for role, name in enumerate(("document", "query")):
        is_role = roles == role
        if is_role.any():
            vectors[is_role] = encode_together(
                encoder, corpus.texts(indices[is_role]), prompts[name]
            )
    return vectors


def score_student(
    student: Encoder,
    corpus: Corpus,
    targets: Targets,
    prompts: dict[str, str],
    tasks: Tasks,
) -> Score:
    """Score the student on held-out texts and tasks.

    The key is the mean figure of the `--dev` tasks; without them that of the held-out texts: the
    cosine if the teacher's vectors have norm 1, otherwise the squared distance.
    """
    from emb_tool.evaluate.model_pair import ModelPair
    from emb_tool.training.outcome import Score

    figures: dict[str, float] = {}
    key: float | None = None
    criterion, lower_is_better = "", False
    heldout = np.asarray(corpus.heldout)
    if len(heldout):
        vectors = encode_roles(student, corpus, heldout, prompts)
        heldout_targets = targets.read(heldout)
        loss = float(np.square(vectors - heldout_targets).sum(1).mean())
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(heldout_targets, axis=1)
        cosine = float(((vectors * heldout_targets).sum(1) / np.maximum(norms, 1e-12)).mean())
        figures |= {"heldout_loss": loss, "heldout_cosine": cosine}
        lower_is_better = not targets.normalizes
        key = -loss if lower_is_better else cosine
        criterion = "squared distance" if lower_is_better else "cosine"
        criterion += f" to the teacher on {len(heldout):,} held-out texts"
    pair = ModelPair.of(student, "student")
    if tasks.dev:
        key, dev_figures = mean_figure(tasks.dev, pair)
        figures |= dev_figures
        criterion, lower_is_better = rule(tasks.dev), False
    reported = [task for task in tasks.reported if task.main and not task.needs_reference]
    return Score(key, figures | mean_figure(reported, pair)[1], criterion, lower_is_better)


def record_outcome(report: Report, progress: Progress, outcome: Outcome, total: int) -> None:
    """Add the outcome to the report, with a warning if training did not improve the student."""
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
    """Report the selected state, the criterion, and the score of the last state."""
    summary = outcome.summary(total)
    report.tables.append(Table("which state was written", [""], [[summary]]))
    if outcome.best == 0 and outcome.criterion:
        progress.warn(
            "TRAINING DID HARM: no state was better than the initialization, which was "
            f"written ({summary}); try a lower --lr, or more texts that are closer to the task"
        )
    elif outcome.best < outcome.texts:
        progress.warn(summary)
    else:
        progress.say(summary)
