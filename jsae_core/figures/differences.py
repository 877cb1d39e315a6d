"""How two variants differ: differences of their numbers, paired over the same documents, with standard errors.

Here: drawing. Not here: computing the differences (`measures.moments.difference`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from jsae_core.figures.style import FONT_SIZE, INK, Variant, apply_style, plain
from jsae_core.terms import Z95

ROW, GROUP, BELOW = 30, 40, 110  # px: the height of a difference, of a group's heading, of the axis below
LEFT = 330  # px for the names
AROUND = 1.4  # times the largest difference, which the axis shows on both sides where an interval goes further


class Difference(NamedTuple):
    """A share that was measured on two variants; their difference is drawn in percentage points.

    Attributes:
        one, other: the share of the variant, and of the variant that it is compared with.
        standard_error: standard error of `one` - `other`.
        definition: which tokens were counted, and by which rule.
    """

    name: str
    one: float
    other: float
    standard_error: float
    definition: str


def differences_figure(
    one: Variant, other: Variant, groups: Mapping[str, Sequence[Difference]], subtitle: str
) -> go.Figure:
    """A dot for each number, at the difference `one` - `other` in percentage points, with a 95% interval of the
    difference paired over documents; at the right, the numbers of both.

    Args:
        groups: the differences by the heading of their group, from top to bottom.
        subtitle: model, layer and settings. It is added how to read a row.

    Raises:
        ValueError: nothing to draw, or numbers that are not finite.
    """
    rows = [difference for differences in groups.values() for difference in differences]
    if not rows:
        raise ValueError("there is no difference to draw; expected at least one")
    for row in rows:
        if not all(map(math.isfinite, (row.one, row.other, row.standard_error))):
            raise ValueError(f"{row.name} holds NaN or infinite values")
    figure = go.Figure()
    y, ticks, names = 0.0, [], []
    for heading, differences in groups.items():
        figure.add_annotation(_left(f"<b>{plain(heading)}</b>", y + GROUP / 2))
        y += GROUP
        for row in differences:
            y += ROW
            ticks.append(y - ROW / 2)
            names.append(plain(row.name))
            figure.add_annotation(_right(row, ticks[-1]))
    figure.add_trace(
        go.Scatter(
            x=[100 * (row.one - row.other) for row in rows],
            y=ticks,
            error_x={"array": [100 * Z95 * row.standard_error for row in rows], "thickness": 2, "width": 5},
            mode="markers",
            marker={"size": 11, "color": one.colour},
            showlegend=False,
            customdata=[[row.definition, 100 * row.one, 100 * row.other] for row in rows],
            text=names,
            hovertemplate=(
                f"%{{text}} (%{{customdata[0]}})<br>{plain(one.label)} %{{customdata[1]:.3~f}}%, "
                f"{plain(other.label)} %{{customdata[2]:.3~f}} %: %{{x:+.3~f}} ± %{{error_x.array:.2~g}}<extra></extra>"
            ),
        )
    )
    figure.update_xaxes(
        title_text=f"{plain(one.label)} less {plain(other.label)} (percentage points)",
        zeroline=True,
        zerolinecolor=INK,
        zerolinewidth=1.5,
        domain=[0, 0.78],
    )
    figure.update_yaxes(range=[y, 0], tickvals=ticks, ticktext=names, ticks="", showgrid=False, showline=False)
    reading = f" · bars: 95%, documents paired; right: {one.label} / {other.label} (%)"
    reach = 100 * AROUND * max(abs(row.one - row.other) for row in rows)
    if reach and any(100 * (abs(row.one - row.other) + Z95 * row.standard_error) > reach for row in rows):
        # a number that is hardly known would press all others together
        figure.update_xaxes(range=[-reach, reach])
        reading += " · bars that are longer than the axis are cut"
    title = f"What has {plain(one.label)} more and less of?"
    apply_style(figure, title, _answer(rows), subtitle + reading, round(y) + BELOW)
    figure.layout.margin.l = LEFT
    return figure.update_yaxes(automargin=False)


def _answer(rows: Sequence[Difference]) -> str:
    sure = [row for row in rows if abs(row.one - row.other) > Z95 * row.standard_error]
    if not sure:
        return f"None of {len(rows)} numbers differs by more than chance."
    most = max(sure, key=lambda row: abs(row.one - row.other))
    points = f"{100 * (most.one - most.other):+.1f}".replace("-", "\N{MINUS SIGN}")
    return (
        f"{len(sure)} of {len(rows)} numbers differ by more than chance; most of all {most.name}, by {points} points."
    )


def _left(text: str, y: float) -> dict:
    return {
        "text": text,
        "x": 0,
        "xref": "paper",
        "xanchor": "right",
        "xshift": -8,
        "y": y,
        "yref": "y",
        "showarrow": False,
        "font": {"size": FONT_SIZE},
    }


def _right(row: Difference, y: float) -> dict:
    return {
        "text": f"{100 * row.one:.1f} / {100 * row.other:.1f}",
        "x": 1,
        "xref": "paper",
        "xanchor": "right",
        "y": y,
        "yref": "y",
        "showarrow": False,
        "font": {"size": FONT_SIZE - 2},
    }
