"""What a materialisation says first: a few numbers in words, rounded, as a table that the UI shows unfolded.

Here: how they are written. Not here: which numbers a reader wants (`measures.py`). All others follow below it,
unrounded: the UI plots those over partitions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import dagster as dg

from jsae_assets.markdown import as_text

SUMMARY = "summary"
LONGEST = 90  # characters of a cell: the UI folds Markdown of 1,000 away


class Headline(NamedTuple):
    """A number that a reader wants first.

    Attributes:
        name: in the metadata.
        words: what it is.
        form: how it is written, e.g. "{:.1%}".
    """

    name: str
    words: str
    form: str = "{:.1%}"


def headlines(title: str, chosen: Sequence[Headline], said: Mapping[str, Any]) -> dict[str, dg.MetadataValue]:
    """The metadata entry for these numbers, of what is said altogether."""
    return summary(title, {line.words: _written(line.form, said[line.name]) for line in chosen})


def summary(title: str, rows: Mapping[str, str]) -> dict[str, dg.MetadataValue]:
    """The metadata entry with a row for each, under a title."""
    lines = [f"{_cell(words)} | {_cell(value)}" for words, value in {title: "", **rows}.items()]
    lines.insert(1, ":--- | ---:")
    return {SUMMARY: dg.MetadataValue.md("\n".join(f"| {line} |" for line in lines))}


def _written(form: str, value: float) -> str:
    if not math.isfinite(value):
        return "not known"
    return form.format(value).replace("-", "\N{MINUS SIGN}")


def _cell(text: str) -> str:
    """As Markdown shows it unchanged in a table: names come from catalogs."""
    plain = " ".join(text.split())
    return as_text(plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "…")
