"""Whether Jacobians are sparse or merely small: measures that depend on the scale of J beside measures that do not.

Here: the panels and their arrangement. Not here: panels that are also figures by themselves (`histogram`,
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
    Distribution,
    Panel,
    density_axis,
    distributions,
    histogram_line,
    size_panels,
    visible_range,
)
from jsae_core.figures.style import (
    FONT_SIZE,
    MAGNITUDE,
    Look,
    Variant,
    apply_style,
    bar_marker,
    decade_numbers,
    looks,
    of_each,
    plain,
    require_variants,
)
from jsae_core.figures.thresholds import threshold_bars
from jsae_core.terms import NORMS, THRESHOLDS

RARE = 1e-3  # per cent of the pairs of latents; smaller shares are not shown
MEAN_DECADES = 4  # the most decades on the axis of mean |J|
SCALED = "<b>A  Measures that follow the scale of J</b>: sparser, or merely smaller?"
SCALE_FREE = "<b>B  Measures without the scale of J</b>: sparser? (Norms are means over tokens.)"
REMARK = " · ± 2 SE, by document · where only A differs, J is merely smaller; where B differs, too, it is sparser"
# the parts of the width that panels take, by the number of panels in a row
COLUMNS = {2: [(0, 0.42), (0.58, 1)], 3: [(0, 0.3), (0.35, 0.65), (0.7, 1)]}
HEADING, BELOW = 40, 100  # px: the heading of a group; axis, title and gap below a panel
BAR = 40  # px, the height of a variant's bar
LEFT = 80  # px left of the panels, for the title and numbers of an axis


class _Row(NamedTuple):
    panels: list[Panel]
    height: int
    heading: str = ""


def jacobian_sparsity_figure(
    histograms: Mapping[Variant, Mapping[str, ArrayLike]],
    numbers: Mapping[Variant, Mapping[str, float]],
    subtitle: str,
) -> go.Figure:
    """Sparsity of the Jacobian by many measures, in two groups.

    A, measures that change if all J are scaled: histogram, cumulative distribution and shares above thresholds of |J|;
    and the share of all pairs of latents (most of which are never active together) whose mean |J| is above each value,
    with two logarithmic axes. B, measures that do not change: histograms of |J| divided by a mean norm, kurtosis,
    L1/L2, and the share of the output latents' pre-activations that the input latents account for, which is low for a
    JSAE that bypasses its latents.

    Args:
        histograms: for each variant what `jacobian_histograms` returns, the normed ones under "l2t.", "l4t.", "linft.".
        numbers: for each variant `kurtosis`, `l1_over_l2` and `accounted_share`, with standard errors under the same
            name with `_se`.
        subtitle: model, layer, tokens and settings. A remark on how to read the groups is added.

    Raises:
        ValueError: no variant, different variants in `histograms` and `numbers`, histograms that
            `jacobian_histogram_figure` would refuse, or numbers that are missing, not finite, or negative (the
            accounted share may be negative).
    """
    require_variants(histograms)
    if set(histograms) != set(numbers):
        given = [", ".join(variant.label for variant in variants) for variants in (histograms, numbers)]
        raise ValueError(f"the histograms are of {given[0]}, but the numbers of {given[1]}; expected the same")
    numbers = {variant: _checked(variant, numbers[variant]) for variant in histograms}
    look = looks(numbers)
    elements, panels = distributions(histograms), size_panels(histograms)
    means, remark = _means(histograms)
    normed = {name: distributions(histograms, _keys(norm)) for norm, name in NORMS.items()}
    rows = [
        _Row([_narrow(panels.density), _narrow(panels.cumulative, matches="x")], 250, SCALED),
        _Row([_thresholds(elements, look), _mean_matrix(means, look)], 250),
        _Row(_normed(normed, look), 220, SCALE_FREE),
        _Row(
            [
                _bars(numbers, "kurtosis", "kurtosis E[J⁴] / E[J²]²<br>(higher: sparser)"),
                _bars(numbers, "l1_over_l2", "L1/L2: E|J| / √E[J²]<br>(lower: sparser)"),
                _bars(numbers, "accounted_share", "accounted share (%)<br>(lower: bypassed)", unit=100),
            ],
            BAR * len(numbers),
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
    remarks = panels.remark + remark + REMARK
    title = "Are the Jacobians sparse, or merely small?"
    apply_style(figure, title, _answer(elements, numbers), subtitle + remarks, height + BELOW + 40)
    figure.layout.margin.l = LEFT  # fixed, since the headings begin there
    return figure


def _answer(elements: Mapping[Variant, Distribution], numbers: Mapping[Variant, Mapping[str, float]]) -> str:
    sizes = of_each({variant: f"{distribution.median:.2g}" for variant, distribution in elements.items()})
    kurtosis, ratio = (
        of_each({variant: f"{of[name]:.2f}" for variant, of in numbers.items()}) for name in ("kurtosis", "l1_over_l2")
    )
    return f"Median |J|: {sizes}. Whatever the scale: kurtosis {kurtosis}; L1/L2 {ratio}."


def _keys(norm: str) -> tuple[str, str, str]:
    return f"{norm}.hist", f"{norm}.overflow", f"{norm}.bin_edges"


def _checked(variant: Variant, numbers: Mapping[str, float]) -> dict[str, float]:
    names = [f"{name}{suffix}" for name in ("kurtosis", "l1_over_l2", "accounted_share") for suffix in ("", "_se")]
    missing = [name for name in names if name not in numbers]
    if missing:
        raise ValueError(f"the numbers of {variant.label!r} lack {', '.join(missing)}")
    for name in names:
        least = -math.inf if name == "accounted_share" else 0
        if not (math.isfinite(numbers[name]) and numbers[name] >= least):
            raise ValueError(f"{variant.label!r} has a {name} of {numbers[name]}; expected a number from {least:g}")
    return {name: float(numbers[name]) for name in names}


def _narrow(panel: Panel, **x) -> Panel:
    return panel._replace(x=panel.x | {"nticks": 5} | x)


def _means(histograms: Mapping[Variant, Mapping[str, ArrayLike]]) -> tuple[dict[Variant, Distribution], str]:
    """The distribution of mean |J| over pairs of latents, and a remark on these pairs for the subtitle. If it was
    counted, only pairs whose output latent was often active are included, since other means are too uncertain."""
    if not all("log_mean_hist" in histogram for histogram in histograms.values()):
        return distributions(histograms, ("mean_jac_hist", "mean_jac_overflow", "bin_edges")), ""
    means, coverage = {}, []
    for variant, histogram in histograms.items():
        counts, edges = (np.asarray(histogram[name], dtype=float) for name in ("log_mean_hist", "log_edges"))
        means[variant] = Distribution(edges, 100 * counts / max(counts.sum(), 1), 0.0)
        coverage.append(
            f"{100 * np.asarray(histogram['n_often']).item() / len(np.asarray(histogram['count_jac'])):.1f}"
        )
    often = np.asarray(next(iter(histograms.values()))["often"]).item()
    return means, f" · mean |J|: of output latents active in {often} tokens or more, {' / '.join(coverage)}% of them"


def _thresholds(elements: Mapping[Variant, Distribution], look: Mapping[Variant, Look]) -> Panel:
    bars = []
    for variant, distribution in elements.items():
        percents = np.interp(THRESHOLDS, distribution.edges, distribution.above)
        shares = dict(zip(THRESHOLDS, (percents / 100).clip(0, 1), strict=True))
        # without numbers on the bars, for which there is no room
        bar = threshold_bars(variant, shares, list(THRESHOLDS), look[variant])
        bars.append(bar.update(showlegend=False, textposition="none"))
    x = {"title_text": f"threshold on {MAGNITUDE}", "type": "category"}
    return Panel(bars, x, {"title_text": "elements above (%)", "rangemode": "tozero"})


def _mean_matrix(means: Mapping[Variant, Distribution], look: Mapping[Variant, Look]) -> Panel:
    lines, starts, ends = [], [], []
    for variant, distribution in means.items():
        above = distribution.above
        common = above[1] >= RARE and np.isfinite(distribution.edges[1])
        last = np.flatnonzero(above >= RARE)[-1]
        # start where the share begins to fall
        first = max(1, np.flatnonzero(above >= above[1])[-1])
        shown = np.arange(first, last + 1) if common else np.array([], dtype=int)
        if common:
            starts.append(distribution.edges[first])
            ends.append(distribution.edges[last])
        lines.append(
            go.Scatter(
                x=distribution.edges[shown],
                y=above[shown],
                name=plain(variant.label),
                legendgroup=variant.label,
                showlegend=False,
                line={"color": variant.colour, "width": 2.5, "dash": look[variant].dash},
                hovertemplate="mean |J| above %{x:.3~g}: %{y:.3~g}% of the pairs",
            )
        )
    fallback = next(iter(means.values())).edges[1]
    # the smallest means span so many decades that showing all of them would compress the rest
    high = np.log10(max(ends, default=10 * fallback))
    low = np.clip(np.log10(min(starts, default=fallback)), high - MEAN_DECADES, high - 1)
    x = {"title_text": f"mean {MAGNITUDE}", "type": "log", "range": [low, high + 0.05], "dtick": 1}
    y = {
        "title_text": "pairs of latents above (%)",
        "type": "log",
        "range": np.log10([RARE, 150]),
        "dtick": 2,
        "tickformat": "~f",
    }
    return Panel(lines, x | decade_numbers(low, high), y)


def _normed(normed: Mapping[str, Mapping[Variant, Distribution]], look: Mapping[Variant, Look]) -> list[Panel]:
    """A panel for each norm, all with the same axis of densities."""
    panels: list[Panel] = []
    for name, part in normed.items():
        lines = [histogram_line(*item, look[item[0]]).update(showlegend=False) for item in part.items()]
        x = {"title_text": f"|J| / {name}", "range": visible_range(part), "nticks": 4}
        y = density_axis(list(normed.values()))
        panels.append(Panel(lines, x, y | {"title_text": "", "showticklabels": False} if panels else y))
    return panels


def _bars(numbers: Mapping[Variant, Mapping[str, float]], name: str, title: str, unit: float = 1) -> Panel:
    """A panel with a bar for each variant; `unit` is the factor from the number to the drawn length."""
    values = [unit * of[name] for of in numbers.values()]
    errors = [2 * unit * of[f"{name}_se"] for of in numbers.values()]
    bars = go.Bar(
        x=values,
        y=list(range(len(values))),
        orientation="h",
        marker=_markers(looks(numbers)),
        text=[_with_error(value, error) for value, error in zip(values, errors, strict=True)],
        textposition="outside",
        textfont={"size": FONT_SIZE - 2},
        cliponaxis=False,
        customdata=[plain(variant.label) for variant in numbers],
        hovertemplate="%{customdata}: %{text}<extra></extra>",
        showlegend=False,
    )
    low, high = min(0, *values), max(0, *values)
    # room for the numbers beyond the ends of the bars
    reach = max(high - low, 1e-9)
    room = 1.0 * reach
    ends = [low - (room if low < 0 else 0), high + (room if high > 0 or not low else 0)]
    x = {"title_text": title, "range": ends, "nticks": 4}
    y = {"range": [len(values) - 0.5, -0.5], "showticklabels": False, "ticks": "", "showgrid": False}
    return Panel([bars], x, y)


def _markers(look: Mapping[Variant, Look]) -> dict:
    """Plotly's marker for a trace with a bar for each variant."""
    pattern = bar_marker(*list(look.items())[-1]).get("pattern", {})
    return {
        "color": [variant.colour for variant in look],
        "pattern": {**pattern, "shape": [of.pattern for of in look.values()]},
    }


def _with_error(value: float, error: float) -> str:
    """The value and its error, both rounded to the error's first significant digit."""
    # rounded first: the first digit of 0.00096 is that of 0.001
    decimals = min(max(-math.floor(math.log10(float(f"{error:.0e}"))), 0), 4) if error else 4
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


def _add(figure: go.Figure, panel: Panel, columns: tuple[float, float], rows: tuple[float, float]) -> None:
    """Add a panel; `columns` and `rows` are the parts of the figure's width and height that it takes."""
    number = 1 + len({trace.xaxis for trace in figure.data})
    figure.add_traces([trace.update(xaxis=f"x{number}", yaxis=f"y{number}") for trace in panel.traces])
    figure.update_layout(
        {
            f"xaxis{number}": {"anchor": f"y{number}", "domain": columns} | panel.x,
            f"yaxis{number}": {"anchor": f"x{number}", "domain": rows} | panel.y,
        }
    )
