"""Counts and reports the texts that teacher and student truncate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emb_tool.checkpoint.files import write_atomically
from emb_tool.data.corpus import Corpus
from emb_tool.progress import Progress
from emb_tool.report import Report

TEXT_NAMES = ("training texts", "training queries")
"""Names of texts for messages, in the order of a corpus's roles."""


class TruncationCounter:
    """Counts the texts that a teacher has encoded for a job, and those that it truncated.

    Each process saves its counts, so a resumed run has all of them. Texts whose vectors were
    already stored are not included.

    Args:
        state: Folder of the job's state.
        rank: Rank of this process.
    """

    def __init__(self, state: Path, rank: int) -> None:
        self._state, self._file = state, state / f"encoded-{rank}.json"
        self._own = self._read(self._file) if self._file.exists() else (0, 0)

    @staticmethod
    def _read(file: Path) -> tuple[int, int]:
        texts, truncated = json.loads(file.read_text(encoding="utf-8"))
        return texts, truncated

    def add(self, texts: int, truncated: int) -> None:
        """Add to the counts."""
        self._own = self._own[0] + texts, self._own[1] + truncated
        write_atomically(self._file, json.dumps(self._own))

    def all(self) -> tuple[int, int]:
        """Texts encoded and texts truncated, over all processes and earlier runs."""
        counts = [self._read(file) for file in self._state.glob("encoded-*.json")]
        return sum(texts for texts, _ in counts), sum(truncated for _, truncated in counts)


def truncated_by_role(truncated: np.ndarray, corpus: Corpus) -> list[int]:
    """Number of training documents and queries that the student truncates.

    Args:
        truncated: (texts,) bool, by corpus index.
        corpus: The texts.
    """
    train = np.asarray(corpus.train)
    roles = np.asarray(corpus.roles[train])
    return [int(truncated[train[roles == role]].sum()) for role in range(len(TEXT_NAMES))]


def report_truncated(
    report: Report, progress: Progress, truncated: Sequence[int], limit: int | None
) -> None:
    """Report the training texts that the student truncates, and the texts that the teacher does.

    Args:
        report: Has the teacher's counts; receives the student's.
        progress: Receives warnings.
        truncated: Number of distinct documents and queries that the student truncates.
        limit: Maximum length of the student, in tokens.
    """
    report.facts["training"]["truncated"] = dict(zip(TEXT_NAMES, truncated, strict=True))
    for name, count in zip(TEXT_NAMES, truncated, strict=True):
        if count:
            progress.warn(
                f"{count:,} {name} are longer than the {limit:,} tokens that the student reads, "
                "and were truncated"
            )
    teacher = report.facts.get("teacher", {})
    if teacher.get("texts_truncated") and teacher["max_length"] != limit:
        progress.warn(
            f"{teacher['texts_truncated']:,} of {teacher['texts_encoded']:,} texts that the "
            f"teacher encoded are longer than the {teacher['max_length']:,} tokens that it reads, "
            "and were truncated"
        )
