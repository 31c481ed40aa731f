"""Estimates of rate and remaining time, for progress bars and progress lines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Lock

WINDOW_SECONDS = 30.0
"""Seconds over which the rate is computed, more if there are fewer than `MIN_ADVANCES`."""

MIN_ADVANCES = 3
"""Minimum number of advances, so that slow units (layers, chains) also have a rate."""

MIN_SECONDS = 1.0
"""Minimum seconds for a rate: it would be meaningless for two batches in a millisecond."""


class RateEstimator:
    """Counts the finished units of a task and estimates their rate and the remaining time.

    The rate is (units done in the window) / (its seconds). The window starts at the end of a
    unit, not at the start of the task, since loading and compiling do not predict later units.
    Units that were finished before (stored, or in a resumed run) are skipped: they count as done
    but not for the rate.

    Args:
        total: Total number of units; None if unknown.
        unit: Plural name: `texts`, `layers`. `B` is shown in MB (1e6 bytes); "" hides the count.
        clock: Returns seconds.
    """

    def __init__(self, total: int | None, unit: str, clock: Callable[[], float]) -> None:
        self.total, self.unit, self.clock = total, unit, clock
        self.done = 0
        self.started = clock()
        self._worked = 0
        self._marks: deque[tuple[float, int]] = deque()
        self._lock = Lock()  # may be called from several threads

    def advance(self, count: int) -> None:
        """Add finished units."""
        if count <= 0:
            return
        with self._lock:
            now = self.clock()
            self.done += count
            self._worked += count
            marks = self._marks
            if (
                len(marks) > 2 and now - marks[-2][0] < WINDOW_SECONDS / 100
            ):  # a few hundred are enough
                marks.pop()
            marks.append((now, self._worked))
            while len(marks) > MIN_ADVANCES and marks[1][0] <= now - WINDOW_SECONDS:
                marks.popleft()

    def skip(self, count: int) -> None:
        """Add units that need no work."""
        with self._lock:
            self.done += count

    @property
    def share(self) -> float | None:
        """Fraction of the total, from 0 to 1; None if unknown."""
        return min(self.done / self.total, 1.0) if self.total else None

    def seconds_per_unit(self) -> float | None:
        """Seconds per unit; None if there is no estimate yet.

        The elapsed time of the current unit is included if it is longer than the window.
        """
        with self._lock:
            if len(self._marks) < 2:
                return None
            (start, before), (last, worked) = self._marks[0], self._marks[-1]
        span, idle = last - start, self.clock() - last
        if idle > max(span, MIN_SECONDS):
            span += idle
        return span / (worked - before) if span >= MIN_SECONDS else None

    def seconds_left(self) -> float | None:
        """Estimated remaining seconds; None if unknown.

        Also None while the current unit takes longer than the window of the rate: small tensors do
        not predict the time of a large table.
        """
        each = self.seconds_per_unit()
        if each is None or not self.total or self.done >= self.total:
            return None
        with self._lock:
            start, last = self._marks[0][0], self._marks[-1][0]
        idle = self.clock() - last
        if idle > max(last - start, MIN_SECONDS):
            return None
        return max((self.total - self.done) * each - idle, 0.0)

    def summary(self, note: str = "") -> str:
        """`3/12 layers, 12.3 s/layer, loss 0.1, 1:50 left`, without unknown parts.

        Args:
            note: A note of the task, e.g. its loss.
        """
        parts = [self.amount()] if self.unit else []
        each, left = self.seconds_per_unit(), self.seconds_left()
        if each is None:
            parts.append(format_duration(self.clock() - self.started))
        elif self.unit:
            parts.append(format_rate(each, self.unit))
        parts.append(note)
        if left is not None:
            parts.append(f"{format_duration(left)} left")
        return ", ".join(filter(None, parts))

    def amount(self) -> str:
        """`3/12 layers`."""

        def format_count(count: int) -> str:
            return f"{count / 1e6:,.1f}" if self.unit == "B" else f"{count:,}"

        total = f"/{format_count(self.total)}" if self.total else ""
        return f"{format_count(self.done)}{total} {'MB' if self.unit == 'B' else self.unit}"


def format_rate(seconds: float, unit: str) -> str:
    """`27 texts/s`, `2.5 layers/s`; below one per second seconds per unit: `12.3 s/layer`.

    Args:
        seconds: Seconds per unit.
        unit: Plural name, or `B`.
    """
    if unit == "B":
        seconds, unit = seconds * 1e6, "MB"
    if seconds > 1:
        return f"{seconds:,.{0 if seconds >= 100 else 1}f} s/{unit.removesuffix('s')}"
    speed = 1 / max(seconds, 1e-12)
    return f"{speed:,.{0 if speed >= 10 else 1}f} {unit}/s"


def format_duration(seconds: float) -> str:
    """`0:07`, `2:05`, `1:00:00`."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
