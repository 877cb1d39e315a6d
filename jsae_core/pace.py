"""How far something long is, how fast, how long it still takes and how large it is: what is said while one waits.

Not here: what it is, and to whom it is said.
"""

from __future__ import annotations

import time

SECONDS_BETWEEN_REPORTS = 5.0


class Pace:
    """Of work that is counted in whatever unit.

    Args:
        total: how much there is; None: nobody knows.
        done: how much of it was done already.

    Attributes:
        before: how much was done when it began.
    """

    def __init__(self, total: int | None, done: int = 0):
        self._total = total
        self._said = time.monotonic()
        self.begin(done)

    def begin(self, done: int) -> None:
        """From here on the rate is measured."""
        self._began, self.before = time.monotonic(), done

    def due(self) -> bool:
        """Whether it is some seconds ago that this was answered with yes, or that the work began."""
        if time.monotonic() - self._said < SECONDS_BETWEEN_REPORTS:
            return False
        self._said = time.monotonic()
        return True

    def rate(self, done: int) -> float:
        """A second, since it began."""
        return (done - self.before) / max(time.monotonic() - self._began, 1e-3)

    def left(self, done: int) -> str:
        """In words, how long the rest takes."""
        rate = self.rate(done)
        return (
            f"about {duration((self._total - done) / rate)} left" if self._total and rate else "how long is not known"
        )

    def said(self, done: int, unit: str) -> str:
        """How far it is, in words. `unit`: in the plural."""
        of_all = "" if self._total is None else f" of {self._total:,}"
        left = "" if self._total is None else f"; {self.left(done)}"
        return f"{done:,}{of_all} {unit}, {self.rate(done):,.0f} {unit}/s{left}"


def duration(seconds: float) -> str:
    """In words, with two digits that matter."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds >= 36000 else f"{seconds / 3600:.1f} h"


def in_bytes(size: int) -> str:
    """In words, with two digits that matter or all of the whole ones."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}" if size < 10 * factor else f"{size / factor:,.0f} {unit}"
    return f"{size} bytes"
