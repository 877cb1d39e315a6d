"""The summary of a materialisation: a table of a few rounded numbers with explanations, shown first in the UI.

Here: writing the table. Not here: choosing its numbers (`measures.py`). The other metadata holds all numbers unrounded;
the UI plots them over partitions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import dagster as dg

from jsae_assets.assets.markdown import as_text

SUMMARY = "summary"
LONGEST = 90  # characters of a cell: the UI folds Markdown of 1,000 or more characters away


class Headline(NamedTuple):
    """A number to show in the summary.

    Attributes:
        name: its name in the metadata.
        words: its description.
        form: its format, e.g. "{:.1%}".
    """

    name: str
    words: str
    form: str = "{:.1%}"


def headlines(title: str, chosen: Sequence[Headline], numbers: Mapping[str, Any]) -> dict[str, dg.MetadataValue]:
    """Return the summary of the chosen numbers. `numbers` has all numbers by their names in the metadata."""
    return summary(title, {line.words: _formatted(line.form, numbers[line.name]) for line in chosen})


def summary(title: str, rows: Mapping[str, str]) -> dict[str, dg.MetadataValue]:
    """Return the metadata entry of a table with a title and a row for each entry of `rows`."""
    # the value first: at the right, it would be cut in a narrow window
    lines = [f"{_cell(value)} | {_cell(words)}" for words, value in {title: "", **rows}.items()]
    lines.insert(1, ":--- | :---")
    return {SUMMARY: dg.MetadataValue.md("\n".join(f"| {line} |" for line in lines))}


def _formatted(form: str, value: float) -> str:
    if not math.isfinite(value):
        return "not known"
    return form.format(value).replace("-", "\N{MINUS SIGN}")


def _cell(text: str) -> str:
    """Return text for a cell of a Markdown table, escaped and shortened, because names come from catalogs."""
    plain = " ".join(text.split())
    return as_text(plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "…")
