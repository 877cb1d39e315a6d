"""Progress reports of long work: how much is done, how fast it goes, and how long the rest takes.

Not here: what the work is, and where its reports go.
"""

from __future__ import annotations

import time

SECONDS_BETWEEN_REPORTS = 5.0


class Pace:
    """The pace of some work, counted in any unit.

    Args:
        total: the amount of work; None if it is not known.
        done: the amount that was done before.

    Attributes:
        before: the amount that was done when the measurement of the rate began.
    """

    def __init__(self, total: int | None, done: int = 0):
        self._total = total
        self._last_report = time.monotonic()
        self.begin(done)

    def begin(self, done: int) -> None:
        """Measure the rate from now on, with `done` units done before."""
        self._began, self.before = time.monotonic(), done

    def due(self) -> bool:
        """Whether it is time for a report: SECONDS_BETWEEN_REPORTS have passed since this last returned True, or since
        the work began."""
        if time.monotonic() - self._last_report < SECONDS_BETWEEN_REPORTS:
            return False
        self._last_report = time.monotonic()
        return True

    def rate(self, done: int) -> float:
        """Units per second since the measurement of the rate began."""
        return (done - self.before) / max(time.monotonic() - self._began, 1e-3)

    def left(self, done: int) -> str:
        """The time that the rest takes, in words."""
        rate = self.rate(done)
        return f"about {duration((self._total - done) / rate)} left" if self._total and rate else "unknown time left"

    def report(self, done: int, unit: str) -> str:
        """A report in words: the amount done, the rate, the time left. `unit` is a plural, such as "tokens"."""
        of_total = "" if self._total is None else f" of {self._total:,}"
        left = "" if self._total is None else f"; {self.left(done)}"
        return f"{done:,}{of_total} {unit}, {self.rate(done):,.0f} {unit}/s{left}"


def duration(seconds: float) -> str:
    """A duration in words, to about two significant digits."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds >= 36000 else f"{seconds / 3600:.1f} h"
