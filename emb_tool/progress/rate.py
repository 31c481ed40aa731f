"""How fast work goes and how long it will take: one estimate, for bars and for lines alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock

WINDOW = 30.0
"""Seconds that a rate is taken over, longer where they hold fewer than `FEWEST` advances."""

FEWEST = 3
"""Advances that a rate rests on, so that slow units (layers, chains) have one, too."""

SHORTEST = 1.0
"""Seconds below which no rate is told: two batches a millisecond apart are none."""


class RateEstimator:
    """The units of a task that are done, their rate and the time that the others will take.

    The rate is (units done in the window) / (its seconds). The window begins with the end of a
    unit, never with the start of the task: loading and compiling say nothing about later units.
    Units that were done before (found in a store, by a run that is resumed) are `skip`ped: they
    count as done and not as speed.

    Args:
        total: Units in all; None where nobody knows.
        unit: In the plural: `texts`, `layers`. `B` is shown in MB (1e6 bytes); "" counts nothing.
        clock: Seconds, from anywhere.
    """

    def __init__(self, total: int | None, unit: str, clock: Callable[[], float]) -> None:
        self.total, self.unit, self.clock = total, unit, clock
        self.done = 0
        self.started = clock()
        self._worked = 0
        self._marks: deque[tuple[float, int]] = deque()
        self._lock = Lock()  # some work is advanced from several threads

    def advance(self, count: int) -> None:
        """So many units more are done, now."""
        if count <= 0:
            return
        with self._lock:
            now = self.clock()
            self.done += count
            self._worked += count
            marks = self._marks
            if len(marks) > 2 and now - marks[-2][0] < WINDOW / 100:  # a few hundred are enough
                marks.pop()
            marks.append((now, self._worked))
            while len(marks) > FEWEST and marks[1][0] <= now - WINDOW:
                marks.popleft()

    def skip(self, count: int) -> None:
        """So many units more need no work."""
        with self._lock:
            self.done += count

    @property
    def share(self) -> float | None:
        """Of the total, from 0 to 1; None where that is unknown."""
        return min(self.done / self.total, 1.0) if self.total else None

    def seconds_per_unit(self) -> float | None:
        """Inverse of the rate, in seconds; None before there is one.

        A unit that takes longer than the whole window so far is counted as it goes.
        """
        with self._lock:
            if len(self._marks) < 2:
                return None
            (start, before), (last, worked) = self._marks[0], self._marks[-1]
        span, idle = last - start, self.clock() - last
        if idle > max(span, SHORTEST):
            span += idle
        return span / (worked - before) if span >= SHORTEST else None

    def seconds_left(self) -> float | None:
        """Until the total is reached, less what the unit under way has taken; None if unknown.

        It is unknown, too, while that unit takes longer than all that the rate rests on: small
        tensors say nothing about the table that comes after them.
        """
        each = self.seconds_per_unit()
        if each is None or not self.total or self.done >= self.total:
            return None
        with self._lock:
            start, last = self._marks[0][0], self._marks[-1][0]
        idle = self.clock() - last
        if idle > max(last - start, SHORTEST):
            return None
        return max((self.total - self.done) * each - idle, 0.0)

    def told(self, note: str = "") -> str:
        """`3/12 layers, 12.3 s/layer, loss 0.1, 1:50 left`; what is unknown is left out.

        Args:
            note: Put in by the work, e.g. its loss.
        """
        parts = [self.amount()] if self.unit else []
        each, left = self.seconds_per_unit(), self.seconds_left()
        if each is None:
            parts.append(clock_time(self.clock() - self.started))
        elif self.unit:
            parts.append(rate(each, self.unit))
        parts.append(note)
        if left is not None:
            parts.append(f"{clock_time(left)} left")
        return ", ".join(filter(None, parts))

    def amount(self) -> str:
        """`3/12 layers`."""

        def shown(count: int) -> str:
            return f"{count / 1e6:,.1f}" if self.unit == "B" else f"{count:,}"

        of = f"/{shown(self.total)}" if self.total else ""
        return f"{shown(self.done)}{of} {'MB' if self.unit == 'B' else self.unit}"


def rate(seconds: float, unit: str) -> str:
    """`27 texts/s`, `2.5 layers/s`; below one a second the seconds of a unit: `12.3 s/layer`.

    Args:
        seconds: Of a unit.
        unit: In the plural, or `B`.
    """
    if unit == "B":
        seconds, unit = seconds * 1e6, "MB"
    if seconds > 1:
        return f"{seconds:,.{0 if seconds >= 100 else 1}f} s/{unit.removesuffix('s')}"
    speed = 1 / max(seconds, 1e-12)
    return f"{speed:,.{0 if speed >= 10 else 1}f} {unit}/s"


def clock_time(seconds: float) -> str:
    """`0:07`, `2:05`, `1:00:00`."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
