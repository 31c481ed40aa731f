"""Progress on stderr: a live line on a terminal, otherwise a plain line at intervals."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Event, RLock, Thread
from typing import Any

from emb_tool.hub_names import shorten_commits
from emb_tool.progress.rate import RateEstimator, format_duration

LINE_SECONDS = 30.0
"""Seconds between lines without a terminal."""

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Task:
    """A running task; it is called with the number of finished units and a short note."""

    def __init__(
        self,
        name: str,
        total: int | None = None,
        unit: str = "",
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.note = name, ""
        self.rate = RateEstimator(total, unit, clock)
        self._changed = changed

    def __call__(self, count: int, note: str = "") -> None:
        """Add finished units."""
        self.rate.advance(count)
        self.note = note
        self._changed()

    def skip(self, count: int) -> None:
        """Add units that were finished before, which do not count for the rate."""
        self.rate.skip(count)


class Progress:
    """Shows progress, notes and warnings of a job.

    Tasks may be nested: the innermost is shown, with the name of its parent. The display is updated
    by a timer, so that a unit that takes minutes does not look like a hang.

    Args:
        level: 0 quiet (warnings only), 1 normal, 2 verbose.
        clock: Returns seconds.
        timed: Whether a timer updates the display; otherwise `tick` is called.
    """

    def __init__(
        self, level: int = 1, *, clock: Callable[[], float] = time.monotonic, timed: bool = True
    ) -> None:
        self.level, self.clock, self.timed = level, clock, timed
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self._tasks: list[Task] = []
        self._live: Any = None
        self._last_line = 0.0
        self._lock = RLock()
        self.is_main = int(os.environ.get("RANK", 0)) == 0
        if not self.is_main:
            self.level = -1

    def say(self, sentence: str, level: int = 1) -> None:
        """Print a line."""
        if self.level >= level:
            self._print(sentence)

    def note(self, sentence: str) -> None:
        """Print a note once, and save it for the report."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            self.say(sentence)

    def warn(self, sentence: str) -> None:
        """Print a warning once, and save it for the report."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)
            if self.is_main:
                self._print(f"warning: {sentence}")

    def _print(self, text: str) -> None:
        text = shorten_commits(text)
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int | None = None, unit: str = "") -> Iterator[Task]:
        """Show a task within the block; yields `advance(count, note="")`.

        Args:
            name: Name of the task: `training`, `reading the texts`.
            total: Total number of units, if known.
            unit: Plural name of the unit; "" for uncounted work, which shows the elapsed time.
        """
        task = Task(name, total, unit, self.clock, self._changed)
        if self.level < 1:
            yield task
            return
        self._tasks.append(task)
        try:
            with nullcontext() if len(self._tasks) > 1 else self._display():
                yield task
                if unit and len(self._tasks) > 1:
                    duration = format_duration(self.clock() - task.rate.started)
                    self.say(f"{name}: {task.rate.amount()} in {duration}", level=2)
        finally:
            self._tasks.remove(task)

    def status(self) -> tuple[str, str, float | None]:
        """Name, progress and fraction of the current task; "" without a task."""
        tasks = list(self._tasks)
        if not tasks:
            return "", "", None
        inner = tasks[-1]
        # the outermost task is the whole job, and only named if there is no other
        names = [task.name for task in tasks[1:][-2:] or tasks]
        return ", ".join(dict.fromkeys(names)), inner.rate.summary(inner.note), inner.rate.share

    def tick(self) -> None:
        """Without a terminal: print a line if the interval has passed."""
        with self._lock:
            now = self.clock()
            if self._live is not None or now - self._last_line < LINE_SECONDS:
                return
            name, summary, _ = self.status()
            if name:
                self._last_line = now
                self._print(f"{name}: {summary}")

    def _changed(self) -> None:
        if self.level >= 1:
            self.tick()

    @contextmanager
    def _display(self) -> Iterator[None]:
        """Display tasks within the block: a live line on a terminal, otherwise a timer thread."""
        if sys.stderr.isatty():
            with self._bar():
                yield
            return
        self._last_line = self.clock()
        if not self.timed:
            yield
            return
        done = Event()

        def watch() -> None:
            while not done.wait(1.0):
                self.tick()

        thread = Thread(target=watch, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    @contextmanager
    def _bar(self) -> Iterator[None]:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        live = Live(
            get_renderable=lambda: bar(self.status(), console.width, self.clock()),
            console=console,
            transient=True,
            refresh_per_second=4,
            auto_refresh=self.timed,
        )
        with live:
            self._live = live
            try:
                yield
            finally:
                self._live = None


def bar(status: tuple[str, str, float | None], width: int, now: float) -> Any:
    """The live line, truncated to the width of the terminal; the bar fills the remaining space.

    Args:
        status: See `Progress.status`.
        width: Width in columns.
        now: Seconds, for the spinner.
    """
    from rich.text import Text

    name, summary, share = status
    line = Text(f"{SPINNER[int(now * 4) % len(SPINNER)]} {name}  ", no_wrap=True)
    room = min(width - len(line) - len(summary) - 3, 20)
    if share is not None and room >= 5:
        full = int(share * room)
        line.append("━" * full, "cyan").append("━" * (room - full), "bright_black").append("  ")
    line.append(summary)
    line.truncate(width - 1, overflow="ellipsis")
    return line


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress bars and log messages of libraries."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    # permanently: it logs at every layer of every pass that int8 products use float16
    logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
    logger = logging.getLogger("sentence_transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(verbosity)
        logger.setLevel(level)
