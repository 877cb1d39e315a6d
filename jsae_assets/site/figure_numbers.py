"""The numbers that a figure draws, read back from the figure as Plotly stores it, for its table and its downloads.

Here: a table of a figure's points. Not here: the page on which it stands (`pages.py`), drawing (`jsae_core.figures`).
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def numbers_of(figure: Mapping[str, Any], canvas: bool = False) -> pd.DataFrame:
    """What a figure draws, a row a point, in the columns that it has something for: series, label (what a point stands
    for), x, y, `plus_or_minus` (half the width of an error bar) and, of a heat map, `value`. Where all x or all y are
    numbers, that column is of numbers, else of text.

    Args:
        canvas: on the first axes x and y are px; the numbers stand in the points' `customdata`.
    """
    import pandas as pd

    traces = [trace for trace in figure["data"] if trace.get("mode") != "text"]
    rows = [row for trace in traces for row in _rows_of(trace, canvas and trace.get("xaxis", "x") == "x")]
    table = pd.DataFrame(rows, columns=["series", "label", "x", "y", "plus_or_minus", "value"])
    for name in ("x", "y"):
        as_numbers = pd.to_numeric(table[name], errors="coerce")
        table[name] = as_numbers if as_numbers.notna().all() else table[name].astype(str)
    return table.astype({"plus_or_minus": float, "value": float}).dropna(axis="columns", how="all")


def _rows_of(trace: Mapping[str, Any], in_px: bool) -> Iterator[tuple]:
    x, y = _values(trace.get("x")), _values(trace.get("y"))
    name = plain(str(trace.get("name") or trace.get("legendgroup") or ""))
    if trace["type"] == "heatmap":
        for down, values in zip(y, _matrix(trace["z"]), strict=True):
            yield from ((name, None, across, down, None, value) for across, value in zip(x, values, strict=True))
        return
    if in_px:
        points = trace.get("customdata") or []
        x, y = [one for one, _ in points], [other for _, other in points]
    errors = next((_values(bars["array"]) for end in "yx" if "array" in (bars := trace.get(f"error_{end}") or {})), [])
    labels = _labels_of(trace)
    for place, (at, value) in enumerate(zip(x, y, strict=False)):
        if at is not None and value is not None:
            yield (
                name,
                plain(labels[place]) if place < len(labels) else None,
                at,
                value,
                errors[place] if place < len(errors) else None,
                None,
            )


def _labels_of(trace: Mapping[str, Any]) -> list[str]:
    """What its points stand for, where the figure says it when they are pointed at."""
    for said in (trace.get("hovertext"), trace.get("text") if trace.get("mode") == "markers" else None):
        if isinstance(said, list):
            return said
    customdata = trace.get("customdata")
    return customdata if isinstance(customdata, list) and all(isinstance(one, str) for one in customdata) else []


def _matrix(values: Any) -> list[list[float]]:
    if isinstance(values, dict):
        flat = np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
        return flat.reshape([int(size) for size in str(values["shape"]).split(",")]).tolist()
    return [list(row) for row in values]


def _values(values: Any) -> list:
    """A list, however Plotly stores it."""
    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"]).tolist()
    return list(values) if isinstance(values, list | tuple) else []


def plain(text: str) -> str:
    """A title of Plotly as plain text; pages escape it."""
    return html.unescape(re.sub("<[^>]*>", "", text.replace("<br>", " ")))
