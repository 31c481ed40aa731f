"""The texts of a compression in three parts: to calibrate on, to choose on, to report on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emb_tool.compress.job import CompressJob
from emb_tool.data.corpus import HELD_OUT_SHARE, Corpus, check_parts
from emb_tool.data.text_options import TextOptions
from emb_tool.evaluate.agreement import NEIGHBOURS
from emb_tool.progress import Progress

MANY_TEXTS = 100
"""Held-out texts among which ten nearest neighbours are a choice."""


class TextSplits(NamedTuple):
    """No text is in two of them; which is where hangs on its content alone.

    Args:
        calibration: What steps look at.
        choice: What `--target` compares chains on.
        report: What the result is measured on.
        counts: For the report.
    """

    calibration: list[str]
    choice: list[str]
    report: list[str]
    counts: dict[str, int]

    @classmethod
    def of(cls, job: CompressJob, state: Path, progress: Progress) -> TextSplits:
        """Read them, or what a run before has read; without --texts a sample of our own.

        Args:
            job: Names them.
            state: Folder of what is read.
            progress: Told in which field the text is, if not in `text`, and warned of few texts.

        Raises:
            InvalidInput: Too few to hold any out.
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
        least = min(len(report), len(choice)) if job.searches and not job.dev else len(report)
        fitted = len(corpus.train) + len(choice) + len(report) - least
        if warning := check_parts("--texts", fitted, least, job.holdout):
            progress.warn(warning)
        if 0 < len(report) < MANY_TEXTS:
            chance = min(1, NEIGHBOURS / max(len(report) - 1, 1))
            progress.warn(
                f"{len(report)} held-out texts are few to measure on: of ten nearest neighbours"
                f" among them chance alone keeps {chance:.0%}; give some thousand --texts"
            )
        return cls(
            corpus.texts(corpus.train),
            corpus.texts(choice),
            corpus.texts(report),
            {**corpus.counts, "heldout": len(report), "to_choose_on": len(choice)},
        )


def split_heldout(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
    """What is held out, to report on and to choose on: by turns in the order of the keys."""
    held = np.asarray(corpus.heldout)
    by_key = np.array(sorted(held, key=lambda i: corpus.keys[i].tobytes()), dtype=held.dtype)
    return np.sort(by_key[::2]), np.sort(by_key[1::2])


def _sample(path: Path) -> tuple[str, ...]:
    """Sentences of Python's own documentation, in a file."""
    from emb_tool.data.builtin_texts import sample_texts

    lines = [json.dumps({"text": text}) + "\n" for text in sample_texts()]
    path.write_text("".join(lines), encoding="utf-8")
    return (str(path),)
