"""What an intervention does to output latents, against what the Jacobian says: scatter, marginals, bars of agreement.

Here: drawing measured samples. Not here: measuring and judging them (`measures.ablation`), whole curves of an output
latent (`function_curves`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jsae_core.figures.style import FONT_SIZE, INK, MAGNITUDE, WIDTH, Variant, apply_style, plain, require_variants
from jsae_core.terms import AGREEMENTS, NOTEWORTHY

POINTS = 2000  # of each variant; more would hide each other
HIDDEN_SHARE = 0.01  # of a variant's values that may be too small for the axes
DECADES = 7  # that an axis has at most; with more its numbers would overlap
EDGE = 0.08  # decades that the axes go on below their lower edges, so that points there are seen whole
BINS_PER_DECADE = 8  # of the marginals
# of each of AGREEMENTS: its name in the figure, and when it is said
NAMES = (
    ("on the line", "not in the cluster, change = −J ± 10 %"),
    ("in the cluster", f"|J| and |change| below {NOTEWORTHY:g}"),
    ("off the line", "all others"),
)
_NUMBERS = ["jacobian", "change", "drawn", "input_latent", "output_latent"]
LEFT, RIGHT, ABOVE, BELOW = 100, 20, 8, 124  # px around all panels
SIDE, MARGINAL, GAP, BETWEEN = 320, 56, 20, 32  # px: a scatter, a marginal, around both, before the bars


def ablation_figure(variants: Mapping[Variant, pd.DataFrame], subtitle: str) -> go.Figure:
    """|change| of an output latent against |J| when one unit of an input latent is taken away, both logarithmic, a
    panel for each variant (left), and bars of the share of samples on the line |change| = |J|, in the cluster of small
    values and off the line, in per cent (right).

    Marginals (above and beside the panels), bars and the shares written count all samples. The points are those drawn
    first, at most 2000 of each variant. What is too small for an axis, zeros included, is drawn on its lower edge.

    Args:
        variants: for each variant the samples as `ablation_samples` returns them.
        subtitle: model, layer, tokens and settings. It is added how many samples are points, if not all are, and where
            zeros are, if there are any.

    Raises:
        ValueError: no variant, no sample, a column missing, numbers that are not finite, or an unknown agreement.
    """
    require_variants(variants)
    for variant, samples in variants.items():
        _check(variant, samples)
    bins = _bins(variants)

    figure, height = _panels(len(variants))
    for row, (variant, samples) in enumerate(variants.items(), start=2):
        figure.add_trace(_marginal(variant, samples["jacobian"], bins), row=1, col=1)
        figure.add_trace(_marginal(variant, samples["change"], bins, sideways=True), row=row, col=2)
        for trace in [*_points(variant, samples, bins[0]), *_guides(bins, named=row == 2)]:
            figure.add_trace(trace, row=row, col=1)
        figure.add_annotation(_label(variant, samples), row=row, col=1)
    for place, (variant, samples) in enumerate(variants.items()):
        figure.add_trace(_bars(variant, samples, place, len(variants)), row=1, col=3)
    for place, (name, meaning) in enumerate(NAMES):
        figure.add_annotation(_heading(place, name, meaning), row=1, col=3)

    apply_style(figure, "Taking one unit of an input latent away", subtitle + _remarks(variants), height=round(height))
    _describe_axes(figure, bins, last=len(variants) + 1)
    margin = figure.layout.margin
    return figure.update_layout(
        margin={"l": LEFT, "r": RIGHT, "t": margin.t + ABOVE, "b": BELOW, "autoexpand": False},
    )


def _check(variant: Variant, samples: pd.DataFrame) -> None:
    where = f"the samples of {variant.label!r}"
    missing = {*_NUMBERS, "agreement"} - set(samples.columns)
    if missing:
        raise ValueError(f"{where} lack {', '.join(sorted(missing))}")
    if samples.empty:
        raise ValueError(f"{where} are none; expected at least one")
    if not np.isfinite(samples[_NUMBERS].to_numpy(dtype=float)).all():
        raise ValueError(f"{where} hold NaN or infinite values")
    unknown = set(samples["agreement"]) - set(AGREEMENTS)
    if unknown:
        raise ValueError(f"{where} have the agreement {unknown.pop()!r}; expected one of {', '.join(AGREEMENTS)}")


def _bins(variants: Mapping[Variant, pd.DataFrame]) -> np.ndarray:
    """Edges of the marginals' bins, and with them the ends of both axes. The cluster is always in between."""
    lower, upper = NOTEWORTHY / 10, NOTEWORTHY * 10
    for samples in variants.values():
        for column in ("jacobian", "change"):
            magnitudes = samples[column].abs()
            if magnitudes.any():
                lower = min(lower, magnitudes[magnitudes > 0].quantile(HIDDEN_SHARE))
                upper = max(upper, magnitudes.max())
    start = max(np.floor(np.log10(lower)), np.ceil(np.log10(upper)) - DECADES)
    # no point on the upper edge
    n_bins = np.floor((np.log10(upper) - start) * BINS_PER_DECADE) + 2
    return 10 ** (start + np.arange(n_bins) / BINS_PER_DECADE)


def _range(bins: np.ndarray) -> np.ndarray:
    """Of a logarithmic axis over all bins."""
    return np.log10(bins[[0, -1]]) - [EDGE, 0]


def _panels(n_variants: int) -> tuple[go.Figure, float]:
    """Empty panels, and the height in px of all of them with what is around: the marginal of |J| and the scatters in
    the first column, the marginals of |change| in the second, the bars in the third."""
    width, height = WIDTH - LEFT - RIGHT, MARGINAL + n_variants * (SIDE + GAP)
    bars = width - SIDE - GAP - MARGINAL - BETWEEN
    figure = make_subplots(
        1 + n_variants,
        3,
        specs=[[{}, None, {"rowspan": 1 + n_variants}], *[[{}, {}, None]] * n_variants],
        column_widths=[SIDE, MARGINAL, BETWEEN - GAP + bars],
        row_heights=[MARGINAL, *[SIDE] * n_variants],
        horizontal_spacing=GAP / width,
        vertical_spacing=GAP / height,
        shared_xaxes=True,
    )
    figure.update_xaxes(domain=[1 - bars / width, 1], col=3)
    return figure, ABOVE + height + BELOW


def _marginal(variant: Variant, values: pd.Series, bins: np.ndarray, sideways: bool = False) -> go.Scatter:
    """Per cent of all samples in each bin; in the first also those that the scatter has on its lower edge."""
    counts, _ = np.histogram(_on_axis(values, bins[0]), bins)
    percent = 100 * np.append(counts, counts[-1]) / len(values)
    if sideways:
        direction = {"x": percent, "y": bins, "line_shape": "vh", "fill": "tozerox"}
        hover = "|change| from %{y:.2~g}: %{x:.3~g} %"
    else:
        direction = {"x": bins, "y": percent, "line_shape": "hv", "fill": "tozeroy"}
        hover = "|J| from %{x:.2~g}: %{y:.3~g} %"
    return go.Scatter(
        **direction,
        name=plain(variant.label),
        showlegend=False,
        mode="lines",
        line_color=variant.colour,
        hovertemplate=hover,
    )


def _points(variant: Variant, samples: pd.DataFrame, least: float) -> list[go.Scatter]:
    first = samples.nsmallest(POINTS, "drawn")
    return [
        go.Scatter(
            x=_on_axis(alike["jacobian"], least).astype(np.float32),  # half the size
            y=_on_axis(alike["change"], least).astype(np.float32),
            mode="markers",
            name=plain(variant.label),
            showlegend=False,
            marker={"color": variant.colour, "size": 4, "opacity": 0.5},
            customdata=alike[["input_latent", "output_latent", "jacobian", "change"]].to_numpy(np.float32),
            hovertemplate=(
                f"{NAMES[AGREEMENTS.index(agreement)][0]}: "
                "J = %{customdata[2]:.3~g}, change = %{customdata[3]:.3~g}<br>"
                "input latent %{customdata[0]}, output latent %{customdata[1]}"
            ),
        )
        for agreement, alike in first.groupby("agreement")
    ]


def _on_axis(values: pd.Series, least: float) -> np.ndarray:
    """Magnitudes; those that a logarithmic axis from `least` on cannot show are `least`."""
    return np.maximum(values.abs().to_numpy(dtype=float), least)


def _guides(bins: np.ndarray, named: bool) -> list[go.Scatter]:
    """The line that the Jacobian predicts, and the border of the cluster."""
    low, high = 10 ** _range(bins)
    return [
        go.Scatter(
            x=x,
            y=y,
            mode="lines",
            name=name,
            legendgroup=name,
            showlegend=named,
            line={"color": INK, "width": 1.5, "dash": dash},
            hoverinfo="skip",
        )
        for name, dash, x, y in (
            ("|change| = |J|", "solid", [low, high], [low, high]),
            ("border of the cluster", "dot", [low, NOTEWORTHY, NOTEWORTHY], [NOTEWORTHY, NOTEWORTHY, low]),
        )
    ]


def _label(variant: Variant, samples: pd.DataFrame) -> dict:
    """In the corner of the scatter where the fewest points are: a large |J| without a change."""
    name = f'<b style="color:{variant.colour}">{plain(variant.label)}</b>'
    return {
        "text": f"{name}<br>{_percents(samples)[0]:.1f} % on the line",
        "xref": "x domain",
        "yref": "y domain",
        "x": 0.98,
        "y": 0.04,
        "xanchor": "right",
        "yanchor": "bottom",
        "align": "right",
        "showarrow": False,
        "font": {"size": FONT_SIZE - 2},
        "bgcolor": "rgba(255, 255, 255, 0.8)",
    }


def _percents(samples: pd.DataFrame) -> list[float]:
    """Per cent of all samples with each agreement."""
    return [100 * float((samples["agreement"] == agreement).mean()) for agreement in AGREEMENTS]


def _bars(variant: Variant, samples: pd.DataFrame, place: int, n_variants: int) -> go.Bar:
    """Every agreement has a unit of the axis: a heading in its upper third, below it a bar for each variant."""
    percents = _percents(samples)
    thickness = 0.6 / n_variants
    return go.Bar(
        x=percents,
        y=[kind + 0.35 + thickness * (place + 0.5) for kind in range(len(percents))],
        orientation="h",
        width=0.94 * thickness,
        name=plain(variant.label),
        showlegend=False,
        marker={"color": variant.colour},
        text=[f"{percent:.1f}" for percent in percents],
        textposition="outside",
        textfont={"size": FONT_SIZE - 2},
        cliponaxis=False,
        customdata=[name for name, _ in NAMES],
        hovertemplate="%{customdata}: %{x:.3~g} %",
    )


def _heading(place: int, name: str, meaning: str) -> dict:
    return {
        "text": f"<b>{name}</b><br><span style='font-size:16px'>{meaning}</span>",
        "x": 0,
        "y": place + 0.33,
        "xanchor": "left",
        "yanchor": "bottom",
        "align": "left",
        "xshift": 4,
        "showarrow": False,
    }


def _describe_axes(figure: go.Figure, bins: np.ndarray, last: int) -> None:
    """`last` is the row of the last scatter."""
    decades = range(round(np.log10(bins[0])), int(np.floor(np.log10(bins[-1]))) + 1)
    powers = [f"10<sup>{decade}</sup>".replace("-", "−") for decade in decades]
    magnitude = {
        "type": "log",
        "range": _range(bins),
        "tickvals": [10.0**decade for decade in decades],
        "ticktext": [f"≤ {powers[0]}", *powers[1:]],
    }
    unlabelled = {"showticklabels": False, "ticks": ""}
    figure.update_xaxes(magnitude, col=1)
    figure.update_xaxes(title_text=MAGNITUDE, row=last, col=1)
    marginals = (("tozeroy", "y"), ("tozerox", "x"))
    fullest = max(max(line[across]) for fill, across in marginals for line in figure.select_traces({"fill": fill}))
    share = {**unlabelled, "showgrid": False, "range": [0, 1.05 * fullest]}
    figure.update_yaxes(share, row=1, col=1)
    figure.update_xaxes(share, showline=False, col=2)
    for row in range(2, last + 1):
        figure.update_yaxes(magnitude, matches="y3", row=row)
        figure.update_yaxes(title_text="|change| (output activation)", row=row, col=1)
        figure.update_yaxes(unlabelled, row=row, col=2)
    figure.update_yaxes(matches=None, row=2, col=1)  # the y3 that the others follow
    largest = max(max(bar.x) for bar in figure.select_traces({"type": "bar"}))
    figure.update_xaxes(title_text="samples (%)", range=[0, 1.18 * largest], col=3)
    figure.update_yaxes(unlabelled, range=[len(AGREEMENTS), 0], showgrid=False, col=3)


def _remarks(variants: Mapping[Variant, pd.DataFrame]) -> str:
    """On samples that are no points, and on zeros, which a logarithmic axis does not have; empty if there are none."""
    remarks = ""
    most = max(map(len, variants.values()))
    if most > POINTS:
        remarks += f" · {POINTS} of {most} samples drawn as points, all counted"
    if any((samples[["jacobian", "change"]] == 0).any(axis=None) for samples in variants.values()):
        remarks += " · zeros on the lower edges"
    return remarks
