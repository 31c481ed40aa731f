"""A student while it is trained: its texts as tokens and vectors, its score, what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from emb_tool.data.corpus import Corpus
from emb_tool.evaluate.shared import encode_together
from emb_tool.evaluate.task import run_tasks
from emb_tool.progress import Progress
from emb_tool.report import Measure, Report

if TYPE_CHECKING:
    from emb_tool.encoder import Encoder
    from emb_tool.training.outcome import Outcome, Score
    from emb_tool.training.targets import Targets


def tokenize_roles(
    encoder: Encoder, corpus: Corpus, indices: np.ndarray, prompts: dict[str, str]
) -> list[np.ndarray]:
    """Token ids of corpus texts, each with the prompt of its role."""
    roles = np.asarray(corpus.roles[indices])
    ids: list[np.ndarray] = [np.zeros(0, np.int32)] * len(indices)
    for role, name in enumerate(("document", "query")):
        mine = np.flatnonzero(roles == role)
        found = encoder.tokenize(corpus.texts(indices[mine]), prompts[name])
        for position, row in zip(mine, found, strict=True):
            ids[position] = row
    return ids


def encode_roles(
    encoder: Encoder, corpus: Corpus, indices: np.ndarray, prompts: dict[str, str]
) -> np.ndarray:
    """Vectors of corpus texts, each with the prompt of its role, (n, dim)."""
    roles = np.asarray(corpus.roles[indices])
    vectors = np.empty((len(indices), encoder.dim), np.float32)
    truncated = encoder.truncated
    for role, name in enumerate(("document", "query")):
        mine = roles == role
        if mine.any():
            vectors[mine] = encode_together(encoder, corpus.texts(indices[mine]), prompts[name])
    encoder.truncated = truncated
    return vectors


def score_student(
    student: Encoder,
    corpus: Corpus,
    targets: Targets,
    prompts: dict[str, str],
    tasks: Sequence[Any],
) -> Score:
    """The student on held-out texts and on the `--eval` tasks."""
    from emb_tool.evaluate.pair import Pair
    from emb_tool.training.outcome import Score

    figures: dict[str, float] = {}
    key: float | None = None
    heldout = np.asarray(corpus.heldout)
    if len(heldout):
        vectors = encode_roles(student, corpus, heldout, prompts)
        goal = targets.read(heldout)
        loss = float(np.square(vectors - goal).sum(1).mean())
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(goal, axis=1)
        cosine = (vectors * goal).sum(1) / np.maximum(norms, 1e-12)
        figures |= {"heldout_loss": loss, "heldout_cosine": float(cosine.mean())}
        key = -loss
    mains = []
    tasks = [task for task in tasks if task.main and not task.needs_reference]
    if tasks:
        measures = run_tasks(tasks, Pair.of(student, "student"))
        for task in tasks:
            for measure in measures:
                if measure.of == task.label and measure.name == task.main:
                    figures[f"{task.label} {task.main}"] = float(measure.value or 0.0)
                    mains.append(float(measure.value or 0.0))
    if mains:
        key = sum(mains) / len(mains)
    return Score(key, figures)


def tell(
    report: Report, progress: Progress, outcome: Outcome, student: Encoder, total: int
) -> None:
    """Put the run into the report; be loud if it did harm."""
    facts = report.facts
    resumed = outcome.resumed_at is not None  # what is cut is counted where it is tokenised
    facts["training"] = {
        "texts": outcome.texts,
        "tokens": outcome.tokens,
        "steps": outcome.steps,
        "padding": round(1 - outcome.tokens / max(outcome.padded, 1), 4),
        "truncated_since_resume" if resumed else "truncated": student.truncated,
        "wait_seconds": round(outcome.wait_seconds, 3),
        "score_seconds": round(outcome.score_seconds, 3),
        "split": outcome.split,
        "resumed_at": outcome.resumed_at,
        "best_at": outcome.best,
        "history": outcome.history,
    }
    report.timings["train_seconds"] = outcome.seconds
    report.timings["score_seconds"] = outcome.score_seconds
    if outcome.seconds:
        speed = outcome.texts / outcome.seconds
        report.measures.append(Measure("training speed", speed, "texts/s"))
    if student.truncated:
        progress.warn(
            f"{student.truncated:,} texts were longer than the {student.max_length} tokens "
            f"that the student reads{' (of those since --resume)' if resumed else ''}"
        )
    if outcome.best == 0 and outcome.history:
        progress.warn(
            "TRAINING DID HARM: no state was better than the initialisation, which is what "
            "was written; try a lower --lr, or more and better fitting texts"
        )
    elif outcome.best < outcome.texts:
        progress.warn(
            f"the best state was the one after {outcome.best:,} of {total:,} texts; "
            "that one was written"
        )
