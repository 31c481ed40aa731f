"""Texts that are longer than teacher and student read: each counted once, reported at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emb_tool.checkpoint.files import write_atomically
from emb_tool.data.corpus import Corpus
from emb_tool.progress import Progress
from emb_tool.report import Report

TEXTS = ("training texts", "training queries")
"""What texts are called, in the order of a corpus's roles."""


class TruncationCounter:
    """Texts that a teacher has encoded for a job, and how many of them it cut.

    Kept on the disk by each process, so that a run that goes on with the job has all of them; those
    whose vectors were in the store already are not among them.

    Args:
        state: Folder of the job's state.
        rank: This process.
    """

    def __init__(self, state: Path, rank: int) -> None:
        self._state, self._file = state, state / f"encoded-{rank}.json"
        self._own = self._read(self._file) if self._file.exists() else (0, 0)

    @staticmethod
    def _read(file: Path) -> tuple[int, int]:
        texts, cut = json.loads(file.read_text(encoding="utf-8"))
        return texts, cut

    def add(self, texts: int, cut: int) -> None:
        """Note some more."""
        self._own = self._own[0] + texts, self._own[1] + cut
        write_atomically(self._file, json.dumps(self._own))

    def all(self) -> tuple[int, int]:
        """Texts encoded and texts cut, by all processes of all sittings."""
        counts = [self._read(file) for file in self._state.glob("encoded-*.json")]
        return sum(texts for texts, _ in counts), sum(cut for _, cut in counts)


def truncated_by_role(cut: np.ndarray, corpus: Corpus) -> list[int]:
    """Texts trained on that are longer than the student reads: documents, queries.

    Args:
        cut: (texts,) bool, by corpus index.
        corpus: The texts.
    """
    train = np.asarray(corpus.train)
    roles = np.asarray(corpus.roles[train])
    return [int(cut[train[roles == role]].sum()) for role in range(len(TEXTS))]


def report_truncated(
    report: Report, progress: Progress, cut: Sequence[int], limit: int | None
) -> None:
    """Say how much of the training the student could not read, and of its targets the teacher.

    Args:
        report: Its facts of the teacher say what that has cut; gets those of the student.
        progress: Where warnings go.
        cut: Texts longer than the student reads, each counted once: documents, queries.
        limit: Tokens that the student reads.
    """
    report.facts["training"]["truncated"] = dict(zip(TEXTS, cut, strict=True))
    for what, count in zip(TEXTS, cut, strict=True):
        if count:
            progress.warn(
                f"{count:,} {what} are longer than the {limit:,} tokens that the student reads; "
                "their rest was not trained on"
            )
    teacher = report.facts.get("teacher", {})
    if teacher.get("texts_truncated") and teacher["max_length"] != limit:
        progress.warn(
            f"{teacher['texts_truncated']:,} of {teacher['texts_encoded']:,} texts that the "
            f"teacher encoded are longer than the {teacher['max_length']:,} tokens that it reads; "
            "their vectors are of their beginning"
        )
