"""How far the work is: a bar on a terminal, a plain line now and then elsewhere; always stderr."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LINE_SECONDS = 30.0
"""Without a terminal, so that the log of a batch job is not empty."""


class Progress:
    """Where bars, lines, hints and warnings of a job go.

    Args:
        level: 0 quiet (warnings only), 1 normal, 2 verbose.
    """

    def __init__(self, level: int = 1) -> None:
        self.level = level
        self.warnings: list[str] = []
        self._live: Any = None
        self.is_main = int(os.environ.get("RANK", 0)) == 0
        if not self.is_main:
            self.level = -1

    def say(self, sentence: str, level: int = 1) -> None:
        """A line for a person."""
        if self.level >= level:
            self._print(sentence)

    def warn(self, sentence: str) -> None:
        """A warning, said once and kept for the report."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)
            if self.is_main:
                self._print(f"warning: {sentence}")

    def _print(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int | None, unit: str) -> Iterator[Any]:
        """A piece of work of `total` units; yields `advance(count, note="")`."""
        if self.level < 1:
            yield lambda count, note="": None
        elif sys.stderr.isatty():
            with self._bar(name, total, unit) as advance:
                yield advance
        else:
            yield self._lines(name, total, unit)

    @contextmanager
    def _bar(self, name: str, total: int | None, unit: str) -> Iterator[Any]:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=self.level < 2,
        )
        started = time.perf_counter()
        done = before = 0
        with bars:
            row = bars.add_task(name, total=total, note="", speed="")
            self._live = bars

            def advance(count: int, note: str = "") -> None:
                nonlocal done, before, started
                if not done:
                    started, before = time.perf_counter(), count
                done += count
                speed = (done - before) / max(time.perf_counter() - started, 1e-9)
                shown = f"{speed:,.0f} {unit}/s" if speed else ""
                bars.update(row, advance=count, note=note, speed=shown)

            try:
                yield advance
            finally:
                self._live = None

    def _lines(self, name: str, total: int | None, unit: str) -> Any:
        started = last = time.perf_counter()
        done = before = 0

        def advance(count: int, note: str = "") -> None:
            nonlocal done, before, last, started
            if not done:  # what came before the first units is no measure of their speed
                started, before = time.perf_counter(), count
            done += count
            now = time.perf_counter()
            if now - last < LINE_SECONDS or done == before:
                return
            last = now
            speed = (done - before) / max(now - started, 1e-9)
            left = f", {_clock((total - done) / speed)} left" if total and speed else ""
            share = f" of {total:,}" if total else ""
            note = f", {note}" if note else ""
            self._print(f"{name}: {done:,}{share} {unit}, {speed:,.0f} {unit}/s{note}{left}")

        return advance


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and advice out of our output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    # for good: at every layer of every pass it says that int8 products take float16
    logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
    logger = logging.getLogger("sentence_transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        logger.setLevel(level)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
