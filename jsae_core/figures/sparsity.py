"""Whether Jacobians became sparse or merely small: measures that follow the scale of J beside measures that do not.

Here: the panels and their arrangement. Not here: what they share with the figures of their own (`histogram`,
`thresholds`), and measuring (`measures`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from jsae_core.figures.histogram import (
    SHARE_AXIS,
    Distribution,
    cumulative_line,
    density_axis,
    distributions,
    histogram_line,
    visible_range,
)
from jsae_core.figures.style import FONT_SIZE, MAGNITUDE, Variant, apply_style, plain, require_variants
from jsae_core.figures.thresholds import threshold_bars
from jsae_core.terms import NORMS, THRESHOLDS

RARE = 1e-3  # per cent of the pairs of latents: fewer are not shown
SCALED = "<b>A  Measures that follow the scale of J</b>: sparser, or merely smaller?"
SCALE_FREE = "<b>B  Measures without the scale of J</b>: sparser? (Norms are means over tokens.)"
REMARK = " · where only A differs, J is merely smaller; where B differs, too, it is sparser"
COLUMNS = {2: [(0, 0.42), (0.58, 1)], 3: [(0, 0.3), (0.35, 0.65), (0.7, 1)]}  # of the width, by panels in a row
HEADING, BELOW = 40, 100  # px: above the first panels of a group; axis, title and gap below a panel
BAR = 40  # px for each variant
LEFT = 80  # px beside the panels: title and numbers of an axis


class _Panel(NamedTuple):
    traces: list
    x: dict
    y: dict


class _Row(NamedTuple):
    panels: list[_Panel]
    height: int
    heading: str = ""


def jacobian_sparsity_figure(
    histograms: Mapping[Variant, Mapping[str, ArrayLike]],
    qualities: Mapping[Variant, Mapping[str, float]],
    subtitle: str,
) -> go.Figure:
    """Sparsity of the Jacobian by many measures, in two groups.

    A, what changes if all J are scaled: histogram, cumulative distribution and shares above thresholds of |J|; and over
    all pairs of latents, most of which are never active together, the share whose mean |J| is above each value, both
    axes logarithmic. B, what does not change: histograms of |J| over a mean norm, kurtosis, and L1/L2.

    Args:
        histograms: for each variant what `jacobian_histograms` returns, the normed ones under "l2t.", "l4t.", "linft.".
        qualities: for each variant `kurtosis` and `l1_over_l2`, with standard errors under the same name with `_se`.
        subtitle: model, layer, tokens and settings. It is added how to read the groups.

    Raises:
        ValueError: no variant, different variants in the two, histograms that `jacobian_histogram_figure` would refuse,
            or numbers of the quality that are missing, negative or not finite.
    """
    require_variants(histograms)
    if set(histograms) != set(qualities):
        given = [", ".join(variant.label for variant in variants) for variants in (histograms, qualities)]
        raise ValueError(f"the histograms are of {given[0]}, but the qualities of {given[1]}; expected the same")
    qualities = {variant: _checked(variant, qualities[variant]) for variant in histograms}
    elements = distributions(histograms)
    means = distributions(histograms, ("mean_jac_hist", "mean_jac_overflow", "bin_edges"))
    normed = {name: distributions(histograms, _keys(norm)) for norm, name in NORMS.items()}
    rows = [
        _Row([_histogram(elements), _cumulative(elements)], 250, SCALED),
        _Row([_thresholds(elements), _mean_matrix(means)], 250),
        _Row(_normed(normed), 220, SCALE_FREE),
        _Row(
            [
                _bars(qualities, "kurtosis", "kurtosis E[J⁴] / E[J²]²<br>(higher: sparser) ± 2 SE"),
                _bars(qualities, "l1_over_l2", "L1/L2: E|J| / √E[J²]<br>(lower: sparser) ± 2 SE"),
            ],
            BAR * len(qualities),
        ),
    ]
    figure = go.Figure()
    height = sum(bool(row.heading) * HEADING + row.height + BELOW for row in rows) - BELOW
    top = 0
    for row in rows:
        if row.heading:
            figure.add_annotation(_heading(row.heading, 1 - top / height))
            top += HEADING
        for panel, columns in zip(row.panels, COLUMNS[len(row.panels)], strict=True):
            _add(figure, panel, columns, (1 - (top + row.height) / height, 1 - top / height))
        top += row.height + BELOW
    figure.update_layout(barmode="group", bargap=0.2, bargroupgap=0.04)
    return apply_style(
        figure, "Sparsity of the Jacobian, with its scale and without", subtitle + REMARK, height + BELOW + 40
    )


def _keys(norm: str) -> tuple[str, str, str]:
    return f"{norm}.hist", f"{norm}.overflow", f"{norm}.bin_edges"


def _checked(variant: Variant, quality: Mapping[str, float]) -> dict[str, float]:
    names = ["kurtosis", "kurtosis_se", "l1_over_l2", "l1_over_l2_se"]
    missing = [name for name in names if name not in quality]
    if missing:
        raise ValueError(f"the quality of {variant.label!r} lacks {', '.join(missing)}")
    for name in names:
        if not 0 <= quality[name] < math.inf:
            raise ValueError(f"{variant.label!r} has a {name} of {quality[name]}; expected a number from 0")
    return {name: float(quality[name]) for name in names}


def _histogram(elements: Mapping[Variant, Distribution]) -> _Panel:
    x = {"title_text": MAGNITUDE, "range": visible_range(elements), "nticks": 5}
    return _Panel([histogram_line(*item) for item in elements.items()], x, density_axis([elements]))


def _cumulative(elements: Mapping[Variant, Distribution]) -> _Panel:
    x = {"title_text": MAGNITUDE, "range": visible_range(elements), "nticks": 5, "matches": "x"}
    return _Panel([cumulative_line(*item) for item in elements.items()], x, SHARE_AXIS)


def _thresholds(elements: Mapping[Variant, Distribution]) -> _Panel:
    bars = []
    for variant, distribution in elements.items():
        percents = np.interp(THRESHOLDS, distribution.edges, distribution.above)
        shares = dict(zip(THRESHOLDS, (percents / 100).clip(0, 1), strict=True))
        # there is no room for numbers
        bars.append(threshold_bars(variant, shares, list(THRESHOLDS)).update(showlegend=False, textposition="none"))
    x = {"title_text": f"threshold on {MAGNITUDE}", "type": "category"}
    return _Panel(bars, x, {"title_text": "elements above (%)", "rangemode": "tozero"})


def _mean_matrix(means: Mapping[Variant, Distribution]) -> _Panel:
    first, second = next(iter(means.values())).edges[1:3]
    lines, ends = [], [second]
    for variant, distribution in means.items():
        shown = np.flatnonzero(distribution.above[1:] >= RARE) + 1  # from the first edge above zero
        ends.extend(distribution.edges[shown])
        lines.append(
            go.Scatter(
                x=distribution.edges[shown],
                y=distribution.above[shown],
                name=plain(variant.label),
                legendgroup=variant.label,
                showlegend=False,
                line={"color": variant.colour, "width": 2.5},
                hovertemplate="mean |J| above %{x:.3~f}: %{y:.3~g} % of the pairs",
            )
        )
    x = {"title_text": f"mean {MAGNITUDE}", "type": "log", "range": np.log10([first, max(ends)]), "dtick": 1}
    y = {
        "title_text": "pairs of latents above (%)",
        "type": "log",
        "range": np.log10([RARE, 150]),
        "dtick": 2,
        "tickformat": "~f",
    }
    return _Panel(lines, x, y)


def _normed(normed: Mapping[str, Mapping[Variant, Distribution]]) -> list[_Panel]:
    """One for each norm, with one axis for the densities of all."""
    panels: list[_Panel] = []
    for name, part in normed.items():
        lines = [histogram_line(*item).update(showlegend=False) for item in part.items()]
        x = {"title_text": f"|J| / {name}", "range": visible_range(part), "nticks": 4}
        y = density_axis(list(normed.values()))
        panels.append(_Panel(lines, x, y | {"title_text": "", "showticklabels": False} if panels else y))
    return panels


def _bars(qualities: Mapping[Variant, Mapping[str, float]], name: str, title: str) -> _Panel:
    values = [quality[name] for quality in qualities.values()]
    bars = go.Bar(
        x=values,
        y=list(range(len(values))),
        orientation="h",
        marker={"color": [variant.colour for variant in qualities]},
        text=[_with_error(quality[name], 2 * quality[f"{name}_se"]) for quality in qualities.values()],
        textposition="outside",
        textfont={"size": FONT_SIZE - 2},
        customdata=[plain(variant.label) for variant in qualities],
        hovertemplate="%{customdata}: %{text}<extra></extra>",
        showlegend=False,
    )
    x = {"title_text": title, "range": [0, 1.7 * max(values) or 1], "nticks": 5}  # room for the numbers
    y = {"range": [len(values) - 0.5, -0.5], "showticklabels": False, "ticks": "", "showgrid": False}
    return _Panel([bars], x, y)


def _with_error(value: float, error: float) -> str:
    """Both to the first digit of the error."""
    decimals = min(max(-math.floor(math.log10(error)), 0), 4) if error else 4
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def _heading(text: str, y: float) -> dict:
    return {
        "text": text,
        "showarrow": False,
        "xref": "paper",
        "x": 0,
        "xanchor": "left",
        "xshift": -LEFT,
        "yref": "paper",
        "y": y,
        "yanchor": "top",
    }


def _add(figure: go.Figure, panel: _Panel, columns: tuple[float, float], rows: tuple[float, float]) -> None:
    """Add a panel that takes these parts of the figure's width and height."""
    number = 1 + len({trace.xaxis for trace in figure.data})
    figure.add_traces([trace.update(xaxis=f"x{number}", yaxis=f"y{number}") for trace in panel.traces])
    figure.update_layout(
        {
            f"xaxis{number}": {"anchor": f"y{number}", "domain": columns} | panel.x,
            f"yaxis{number}": {"anchor": f"x{number}", "domain": rows} | panel.y,
        }
    )
