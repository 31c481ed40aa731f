"""Splits of the texts: for calibration, for the selection of a chain, for the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emb_tool.compress.job import CompressJob
from emb_tool.data.corpus import HELD_OUT_SHARE, Corpus, check_parts
from emb_tool.data.text_options import TextOptions
from emb_tool.evaluate.agreement import NEIGHBORS
from emb_tool.progress import Progress

MIN_HELDOUT_TEXTS = 100
"""Held-out texts below which ten nearest neighbors are a large share of them."""


class TextSplits(NamedTuple):
    """Disjoint splits of the texts; the split of a text depends only on its content.

    Args:
        calibration: For calibration of the steps.
        choice: For `--target` to compare chains on.
        report: For measuring the result.
        counts: Numbers of texts, for the report.
    """

    calibration: list[str]
    choice: list[str]
    report: list[str]
    counts: dict[str, int]

    @classmethod
    def from_job(cls, job: CompressJob, state: Path, progress: Progress) -> TextSplits:
        """Read the texts of a job, or the corpus of an interrupted run.

        Args:
            job: The job; without --texts, built-in sentences are used.
            state: Folder of the corpus.
            progress: Notes the field of the texts if it is not `text`, and warns about few texts.

        Raises:
            InvalidInput: Too few texts to hold out any.
        """
        corpus = Corpus.open(state / "corpus") or Corpus.build(
            state / "corpus",
            job.texts or _sample(state / "sample.jsonl"),
            options=TextOptions.of(job),
            limit=job.limit,
            holdout=2 * job.holdout,
            share=HELD_OUT_SHARE // 2,
        )
        corpus.tell(progress.note)
        report, choice = split_heldout(corpus)
        smallest = min(len(report), len(choice)) if job.searches and not job.dev else len(report)
        training = len(corpus.train) + len(choice) + len(report) - smallest
        if warning := check_parts("--texts", training, smallest, job.holdout):
            progress.warn(warning)
        if 0 < len(report) < MIN_HELDOUT_TEXTS:
            chance = min(1, NEIGHBORS / max(len(report) - 1, 1))
            progress.warn(
                f"{len(report)} held-out texts are few to measure on: {chance:.0%} of ten nearest"
                " neighbors among them agree by chance; give some thousand --texts"
            )
        return cls(
            corpus.texts(corpus.train),
            corpus.texts(choice),
            corpus.texts(report),
            {**corpus.counts, "heldout": len(report), "to_choose_on": len(choice)},
        )


def split_heldout(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """Held-out indices for the report and for the selection, alternating in the order of keys."""
    indices = np.asarray(corpus.heldout)
    by_key = np.array(sorted(indices, key=lambda i: corpus.keys[i].tobytes()), dtype=indices.dtype)
    return np.sort(by_key[::2]), np.sort(by_key[1::2])


def _sample(path: Path) -> tuple[str, ...]:
    """Write sentences of Python's documentation to a file."""
    from emb_tool.data.builtin_texts import sample_texts

    lines = [json.dumps({"text": text}) + "\n" for text in sample_texts()]
    path.write_text("".join(lines), encoding="utf-8")
    return (str(path),)
