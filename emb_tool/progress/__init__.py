"""How far the work is: a live line on a terminal, a plain one now and then elsewhere; on stderr."""

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
from emb_tool.progress.rate import RateEstimator, clock_time

LINE_SECONDS = 30.0
"""Without a terminal, so that the log of a batch job is not empty."""

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Task:
    """One piece of work that is under way; it is called with the units done and a short note."""

    def __init__(
        self,
        name: str,
        total: int | None = None,
        unit: str = "",
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self.note = name, ""
        self.pace = RateEstimator(total, unit, clock)
        self._changed = changed

    def __call__(self, count: int, note: str = "") -> None:
        """So many units more are done."""
        self.pace.advance(count)
        self.note = note
        self._changed()

    def skip(self, count: int) -> None:
        """So many units more were done before, and say nothing about the speed."""
        self.pace.skip(count)


class Progress:
    """Where bars, lines, hints and warnings of a job go.

    Tasks may stand within tasks: the innermost is shown, and the one around it names it. All are
    shown by a clock of their own, so that one unit that takes minutes does not look like a hang.

    Args:
        level: 0 quiet (warnings only), 1 normal, 2 verbose.
        clock: Seconds, from anywhere.
        timed: Whether that clock runs by itself; else `tick` is called.
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
        """A line for a person."""
        if self.level >= level:
            self._print(sentence)

    def note(self, sentence: str) -> None:
        """A line for a person, said once and kept for the report."""
        if sentence not in self.notes:
            self.notes.append(sentence)
            self.say(sentence)

    def warn(self, sentence: str) -> None:
        """A warning, said once and kept for the report."""
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
        """A piece of work, shown until it is done; yields `advance(count, note="")`.

        Args:
            name: What is done: `training`, `reading the texts`.
            total: Units in all, if known.
            unit: In the plural; "" for work that is not counted, whose time is shown instead.
        """
        task = Task(name, total, unit, self.clock, self._changed)
        if self.level < 1:
            yield task
            return
        self._tasks.append(task)
        try:
            with nullcontext() if len(self._tasks) > 1 else self._shown():
                yield task
                if unit and len(self._tasks) > 1:
                    taken = clock_time(self.clock() - task.pace.started)
                    self.say(f"{name}: {task.pace.amount()} in {taken}", level=2)
        finally:
            self._tasks.remove(task)

    def status(self) -> tuple[str, str, float | None]:
        """What is under way: its name, how far it is, and that as a share; "" if nothing is."""
        tasks = list(self._tasks)
        if not tasks:
            return "", "", None
        inner = tasks[-1]
        # the outermost task is the whole job, and named only where nothing within it is
        names = [task.name for task in tasks[1:][-2:] or tasks]
        return ", ".join(dict.fromkeys(names)), inner.pace.told(inner.note), inner.pace.share

    def tick(self) -> None:
        """Without a terminal: print a line, if the last one was long enough ago."""
        with self._lock:
            now = self.clock()
            if self._live is not None or now - self._last_line < LINE_SECONDS:
                return
            name, told, _ = self.status()
            if name:
                self._last_line = now
                self._print(f"{name}: {told}")

    def _changed(self) -> None:
        if self.level >= 1:
            self.tick()

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """While there are tasks: a live line on a terminal, else a thread that ticks."""
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
    """The live line, cut to the width of the terminal; the bar takes what the words leave.

    Args:
        status: As of `Progress.status`.
        width: Columns.
        now: Seconds, which turn the spinner.
    """
    from rich.text import Text

    name, told, share = status
    line = Text(f"{SPINNER[int(now * 4) % len(SPINNER)]} {name}  ", no_wrap=True)
    room = min(width - len(line) - len(told) - 3, 20)
    if share is not None and room >= 5:
        full = int(share * room)
        line.append("━" * full, "cyan").append("━" * (room - full), "bright_black").append("  ")
    line.append(told)
    line.truncate(width - 1, overflow="ellipsis")
    return line


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and advice out of our output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
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
        if bars:
            transformers_logging.enable_progress_bar()
        transformers_logging.set_verbosity(verbosity)
        logger.setLevel(level)
