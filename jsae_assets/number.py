"""A number as people read it: decimals, unit, error, sign, and when it cannot be told.

Here: how one number is written on pages and in terminals. Not here: which numbers there are (`site/results.py`,
`suggestion.py`), numbers for machines (CSV, parquet, metadata).
"""

from __future__ import annotations

from dataclasses import dataclass

from jsae_core.terms import FEW_DOCUMENTS


@dataclass(frozen=True)
class Number:
    """A number, with the half width of its 95% interval where that is known.

    Attributes:
        percent: whether it is written in percent; `value` and `error` are shares all the same.
    """

    value: float
    error: float | None = None
    percent: bool = False

    @property
    def uncertain(self) -> bool:
        """Whether it is a share that cannot be told within all of it (100%)."""
        return self.percent and self.error is not None and self.error > 1

    def __str__(self) -> str:
        if self.uncertain:
            return "uncertain ± >100"
        scale, unit, digits = (100, "%", 1) if self.percent else (1, "", 3)
        text = with_minus(f"{self.value * scale:.{digits}f}{unit}")
        return text if self.error is None else f"{text} ± {_not_as_zero(self.error * scale, digits)}"


def on_errors(n_documents: int) -> str:
    """Return what is to be said of standard errors over so few documents; "" if they are enough."""
    if n_documents >= FEW_DOCUMENTS:
        return ""
    return f"errors over only {n_documents} documents" if n_documents > 1 else "errors within a single document"


def with_minus(number: str) -> str:
    """Return a written number with a minus sign, where it begins with a hyphen."""
    return f"−{number[1:]}" if number.startswith("-") else number


def _not_as_zero(size: float, digits: int) -> str:
    """A size with these decimals; one that would round to zero, but is not, is said to be less than the smallest."""
    least = 10**-digits
    return f"<{least:.{digits}f}" if 0 < size < least / 2 else f"{size:.{digits}f}"
