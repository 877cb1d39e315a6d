"""The effect of interventions on output latents against the Jacobian's prediction: scatter, marginals, bars.

Here: drawing measured samples. Not here: measuring and classifying them (`measures.ablation`), whole curves of an
output latent (`function_curves`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jsae_core.figures.style import (
    FONT_SIZE,
    INK,
    MAGNITUDE,
    WIDTH,
    Look,
    Variant,
    apply_style,
    bar_marker,
    looks,
    of_each,
    percent,
    plain,
    require_variants,
)
from jsae_core.terms import AGREEMENTS, DOSES, NOTEWORTHY, NOTEWORTHY_SHARE, PUBLISHED_AGREEMENTS

POINTS = 2000  # of each variant; more would hide each other
HIDDEN_SHARE = 0.01  # so large a share of a variant's values may be too small for the axes
DECADES = 7  # the most decades on an axis; with more, its numbers would overlap
SPACES = 0.6  # of the width of a percentage point of the bars
ACROSS, DOWN = 4, 7  # so many numbers fit on a horizontal and on a vertical axis
EDGE = 0.08  # decades by which the axes extend below their lower edges, so that points there are drawn whole
BINS_PER_DECADE = 8  # of the marginals
# for each of AGREEMENTS: its name in the figure, and its definition
NAMES = {
    "line": ("on the line", "change = −J ± 10%"),
    "off": ("off the line", "still active, but elsewhere"),
    "dropped": ("dropped", "the output latent left the TopK"),
    "negligible": ("negligible", f"|J| and |change| below {NOTEWORTHY:g}"),
}
_NUMBERS = ["jacobian", "change", "drawn", "input_latent", "output_latent"]
LEFT, RIGHT, ABOVE, BELOW = 100, 20, 8, 106  # px around all panels
# px: the side of a scatter, the width of a marginal, the space between the two, the space before the bars
SIDE, MARGINAL, GAP, BETWEEN = 320, 56, 20, 32
LABEL = 62  # px above a scatter, for the variant's name and its numbers


class _Bar(NamedTuple):
    """A group of bars, one for each variant: among the samples whose `column` is not `left_out`, the share of those
    whose `column` is `of_class`."""

    title: str
    meaning: str
    column: str
    of_class: str
    left_out: str | None
    number: str  # the name of this share in summaries


def ablation_figure(
    variants: Mapping[Variant, pd.DataFrame],
    subtitle: str,
    summaries: Mapping[Variant, Mapping[str, float]] | None = None,
) -> go.Figure:
    """|change| of an output latent against |J| when one unit of an input latent is taken away, on logarithmic axes in a
    panel for each variant (left), and bars of shares in per cent (right). The bars show, among the samples that are not
    negligible, how many are on the line |change| = |J|, off it, and dropped; how many are on the line with other doses,
    if these were measured, and when the relative rule decides what is negligible; and how many of all samples are on
    the line by the paper's criterion.

    Marginals (above and beside the panels), bars and written shares count all samples. The points are those sampled
    first, at most 2000 of each variant. Values too small for an axis, zeros included, are drawn on its lower edge.

    Args:
        variants: for each variant the samples as `ablation_samples` returns them.
        subtitle: model, layer, tokens and settings. Remarks are added if not all samples are drawn as points, and if
            there are zeros.
        summaries: for each variant what `ablation_summary` returns. With it, the bars have error bars of two standard
            errors, and the panels show slope and correlation of the samples that are not dropped.

    Raises:
        ValueError: no variant, no sample, a column missing, numbers that are not finite, or an unknown agreement.
    """
    require_variants(variants)
    for variant, samples in variants.items():
        _check(variant, samples)
    bins = _bins(variants)
    bars = _kinds_of_bars(variants)

    figure, height = _panels(len(variants))
    look = looks(variants)
    for row, (variant, samples) in enumerate(variants.items(), start=2):
        figure.add_trace(_marginal(variant, samples["jacobian"], bins, look[variant]), row=1, col=1)
        figure.add_trace(_marginal(variant, samples["change"], bins, look[variant], sideways=True), row=row, col=2)
        for trace in [*_points(variant, samples, bins[0]), *_guides(bins, named=row == 2)]:
            figure.add_trace(trace, row=row, col=1)
        figure.add_annotation(_label(variant, samples, (summaries or {}).get(variant)), row=row, col=1)
    for place, (variant, samples) in enumerate(variants.items()):
        summary = (summaries or {}).get(variant, {})
        figure.add_trace(_bars(variant, look[variant], samples, bars, summary, place, len(variants)), row=1, col=3)
    for place, bar in enumerate(bars):
        figure.add_annotation(_heading(place, bar.title, bar.meaning), row=1, col=3)

    apply_style(
        figure,
        "Does the Jacobian predict an intervention?",
        _answer(variants),
        subtitle + _remarks(variants, summaries),
        height=round(height),
    )
    _describe_axes(figure, bins, last=len(variants) + 1, n_kinds=len(bars))
    margin = figure.layout.margin
    return figure.update_layout(
        margin={"l": LEFT, "r": RIGHT, "t": margin.t + ABOVE, "b": BELOW, "autoexpand": False},
    )


def _answer(variants: Mapping[Variant, pd.DataFrame]) -> str:
    line = _kinds_of_bars(variants)[0]
    shares = {variant: _percent(samples, line) for variant, samples in variants.items()}
    agreeing = of_each(
        {variant: "none" if share is None else percent(share / 100) for variant, share in shares.items()}
    )
    return (
        f"One unit of an input latent taken away: of the samples that are not negligible, {agreeing} change as the "
        "Jacobian says, within a tenth."
    )


def _check(variant: Variant, samples: pd.DataFrame) -> None:
    where = f"the samples of {variant.label!r}"
    missing = {*_NUMBERS, "agreement", "published"} - set(samples.columns)
    if missing:
        raise ValueError(f"{where} lack {', '.join(sorted(missing))}")
    if samples.empty:
        raise ValueError(f"there are no samples of {variant.label!r}; expected at least one")
    if not np.isfinite(samples[_NUMBERS].to_numpy(dtype=float)).all():
        raise ValueError(f"{where} hold NaN or infinite values")
    unknown = set(samples["agreement"]) - set(AGREEMENTS)
    if unknown:
        raise ValueError(f"{where} have the agreement {unknown.pop()!r}; expected one of {', '.join(AGREEMENTS)}")


def _kinds_of_bars(variants: Mapping[Variant, pd.DataFrame]) -> list[_Bar]:
    line, negligible = AGREEMENTS[0], AGREEMENTS[-1]
    bars = [
        _Bar(*NAMES[name], "agreement", name, negligible, f"noteworthy_{name}")
        for name in AGREEMENTS
        if name != negligible
    ]
    for dose, in_words in DOSES.items():
        column = f"agreement_{dose}"
        if all(column in samples for samples in variants.values()):
            title = f"on the line for {in_words}"
            bars.append(
                _Bar(title, "taken away instead of one unit", column, line, negligible, f"noteworthy_line_{dose}")
            )
    if all("relative_agreement" in samples for samples in variants.values()):
        title = f"on the line, if below {NOTEWORTHY_SHARE:.0%} is negligible"
        meaning = "of the output latent's mean activation"
        bars.append(_Bar(title, meaning, "relative_agreement", line, negligible, "relative_noteworthy_line"))
    published, meaning = PUBLISHED_AGREEMENTS[0], "|J + change| < 0.1, of all: negligible ones too"
    bars.append(_Bar("the paper's line", meaning, "published", published, None, "published_line"))
    return bars


def _bins(variants: Mapping[Variant, pd.DataFrame]) -> np.ndarray:
    """Edges of the marginals' bins, which also set the ends of both axes. The border of what is negligible is always
    between them."""
    lower, upper = NOTEWORTHY / 10, NOTEWORTHY * 10
    for samples in variants.values():
        for column in ("jacobian", "change"):
            magnitudes = samples[column].abs()
            if magnitudes.any():
                lower = min(lower, magnitudes[magnitudes > 0].quantile(HIDDEN_SHARE))
                upper = max(upper, magnitudes.max())
    start = max(np.floor(np.log10(lower)), np.ceil(np.log10(upper)) - DECADES)
    # one bin more, so that no point is on the upper edge
    n_bins = np.floor((np.log10(upper) - start) * BINS_PER_DECADE) + 2
    return 10 ** (start + np.arange(n_bins) / BINS_PER_DECADE)


def _range(bins: np.ndarray) -> np.ndarray:
    """The range of a logarithmic axis over all bins."""
    return np.log10(bins[[0, -1]]) - [EDGE, 0]


def _panels(n_variants: int) -> tuple[go.Figure, float]:
    """Empty panels, and their height in px with the space around them. The first column has the marginal of |J| and
    the scatters, the second the marginals of |change|, the third the bars."""
    width, height = WIDTH - LEFT - RIGHT, MARGINAL + n_variants * (SIDE + LABEL)
    bars = width - SIDE - GAP - MARGINAL - BETWEEN
    figure = make_subplots(
        1 + n_variants,
        3,
        specs=[[{}, None, {"rowspan": 1 + n_variants}], *[[{}, {}, None]] * n_variants],
        column_widths=[SIDE, MARGINAL, BETWEEN - GAP + bars],
        row_heights=[MARGINAL, *[SIDE] * n_variants],
        horizontal_spacing=GAP / width,
        vertical_spacing=LABEL / height,
        shared_xaxes=True,
    )
    figure.update_xaxes(domain=[1 - bars / width, 1], col=3)
    return figure, ABOVE + height + BELOW


def _marginal(variant: Variant, values: pd.Series, bins: np.ndarray, look: Look, sideways: bool = False) -> go.Scatter:
    """Per cent of all samples in each bin; the first bin includes those that the scatter shows on its lower edge."""
    counts, _ = np.histogram(_on_axis(values, bins[0]), bins)
    percent = 100 * np.append(counts, counts[-1]) / len(values)
    if sideways:
        direction = {"x": percent, "y": bins, "line_shape": "vh", "fill": "tozerox"}
        hover = "|change| from %{y:.2~g}: %{x:.3~g}%"
    else:
        direction = {"x": bins, "y": percent, "line_shape": "hv", "fill": "tozeroy"}
        hover = "|J| from %{x:.2~g}: %{y:.3~g}%"
    return go.Scatter(
        **direction,
        name=plain(variant.label),
        showlegend=False,
        mode="lines",
        line={"color": variant.colour, "dash": look.dash},
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
            marker={
                "color": variant.colour,
                "size": 4,
                "opacity": 0.5,
                "symbol": "x-thin" if agreement == "dropped" else "circle",
                "line": {"color": variant.colour, "width": 1 if agreement == "dropped" else 0},
            },
            customdata=alike[["input_latent", "output_latent", "jacobian", "change"]].to_numpy(np.float32),
            hovertemplate=(
                f"{NAMES[agreement][0]}: "
                "J = %{customdata[2]:.3~g}, change = %{customdata[3]:.3~g}<br>"
                "input latent %{customdata[0]}, output latent %{customdata[1]}"
            ),
        )
        for agreement, alike in first.groupby("agreement")
    ]


def _on_axis(values: pd.Series, least: float) -> np.ndarray:
    """The magnitudes of values; those below `least`, where the logarithmic axis begins, are raised to it."""
    return np.maximum(values.abs().to_numpy(dtype=float), least)


def _guides(bins: np.ndarray, named: bool) -> list[go.Scatter]:
    """The line that the Jacobian predicts, and the border of what is negligible."""
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
            ("below: negligible", "dot", [low, NOTEWORTHY, NOTEWORTHY], [NOTEWORTHY, NOTEWORTHY, low]),
        )
    ]


def _label(variant: Variant, samples: pd.DataFrame, summary: Mapping[str, float] | None) -> dict:
    """The label of a panel, above the scatter, where it covers no point."""
    line = f", slope {summary['slope']:.2f}, r {summary['correlation']:.2f}" if summary else ""
    name = f'<b style="color:{variant.colour}">{plain(variant.label)}</b>'
    return {
        "text": f"{name}<br>{100 * float((samples['agreement'] == 'negligible').mean()):.1f}% negligible{line}",
        "xref": "x domain",
        "yref": "y domain",
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "align": "left",
        "showarrow": False,
        "font": {"size": FONT_SIZE - 2},
    }


def _percent(samples: pd.DataFrame, bar: _Bar) -> float | None:
    """None where no sample is counted: all are of the class that is left out."""
    counted = samples[samples[bar.column] != bar.left_out]
    return 100 * float((counted[bar.column] == bar.of_class).mean()) if len(counted) else None


def _bars(
    variant: Variant,
    look: Look,
    samples: pd.DataFrame,
    bars: Sequence[_Bar],
    summary: Mapping[str, float],
    place: int,
    n_variants: int,
) -> go.Bar:
    """The bars of a variant. Each kind of bar takes one unit of the axis: a heading at the top, and below it a bar for
    each variant."""
    percents = [_percent(samples, bar) for bar in bars]
    errors = [200 * summary.get(f"{bar.number}_se", 0.0) for bar in bars]
    thickness = 0.5 / n_variants
    return go.Bar(
        x=[share or 0.0 for share in percents],
        y=[kind + 0.44 + thickness * (place + 0.5) for kind in range(len(percents))],
        orientation="h",
        width=0.94 * thickness,
        name=plain(variant.label),
        showlegend=False,
        marker=bar_marker(variant, look),
        # the number must not cover the error bar
        text=[
            f"{'&nbsp;' * (2 + math.ceil(SPACES * error) if any(errors) else 0)}{_written(share)}"
            for share, error in zip(percents, errors, strict=True)
        ],
        textposition="outside",
        textfont={"size": FONT_SIZE - 2},
        error_x={"array": errors, "visible": any(errors), "width": 3, "thickness": 1.5, "color": INK},
        cliponaxis=False,
        customdata=[f"{bar.title}, {bar.meaning}" for bar in bars],
        hovertemplate="%{customdata}: %{x:.3~g}%",
    )


def _written(share: float | None) -> str:
    return "all are negligible" if share is None else f"{share:.1f}"


def _heading(place: int, name: str, meaning: str) -> dict:
    return {
        "text": f"<b>{name}</b><br><span style='font-size:16px'>{meaning}</span>",
        "x": 0,
        "y": place + 0.43,
        "xanchor": "left",
        "yanchor": "bottom",
        "align": "left",
        "xshift": 4,
        "showarrow": False,
    }


def _describe_axes(figure: go.Figure, bins: np.ndarray, last: int, n_kinds: int) -> None:
    """Set up all axes; `last` is the row of the last scatter, `n_kinds` the number of kinds of bars."""
    decades = range(round(np.log10(bins[0])), int(np.floor(np.log10(bins[-1]))) + 1)
    magnitude = {"type": "log", "range": _range(bins), "tickvals": [10.0**decade for decade in decades], "tickangle": 0}
    unlabelled = {"showticklabels": False, "ticks": ""}
    figure.update_xaxes(magnitude, ticktext=_powers(decades, ACROSS), col=1)
    figure.update_xaxes(title_text=MAGNITUDE, row=last, col=1)
    marginals = (("tozeroy", "y"), ("tozerox", "x"))
    fullest = max(max(line[across]) for fill, across in marginals for line in figure.select_traces({"fill": fill}))
    share = {**unlabelled, "showgrid": False, "range": [0, 1.05 * fullest]}
    figure.update_yaxes(share, row=1, col=1)
    figure.update_xaxes(share, showline=False, col=2)
    for row in range(2, last + 1):
        figure.update_yaxes(magnitude, ticktext=_powers(decades, DOWN), matches="y3", row=row)
        figure.update_yaxes(title_text="|change| (output activation)", row=row, col=1)
        figure.update_yaxes(unlabelled, row=row, col=2)
    figure.update_yaxes(matches=None, row=2, col=1)  # the y3 that the others follow
    largest = max(max(bar.x) for bar in figure.select_traces({"type": "bar"}))
    figure.update_xaxes(title_text="samples (%), negligible ones left out", range=[0, 1.25 * largest], col=3)
    figure.update_yaxes(unlabelled, range=[n_kinds, 0], showgrid=False, col=3)


def _powers(decades: Sequence[int], most: int) -> list[str]:
    """At most so many powers of ten, evenly spaced among decades, and nothing at the others; the first is a border."""
    step = -(-len(decades) // most)
    powers = [f"10<sup>{decade}</sup>".replace("-", "\N{MINUS SIGN}") for decade in decades]
    shown = [power if place % step == 0 else "" for place, power in enumerate(powers)]
    return [f"≤ {shown[0]}", *shown[1:]]


def _remarks(variants: Mapping[Variant, pd.DataFrame], summaries: Mapping | None) -> str:
    """Remarks for the subtitle: on error bars, on samples not drawn as points, and on zeros, which a logarithmic axis
    cannot show; empty if none applies."""
    remarks = " · error bars: ± 2 SE, by document; slope and correlation r without the dropped" if summaries else ""
    most = max(map(len, variants.values()))
    if most > POINTS:
        remarks += f" · {POINTS:,} of {most:,} samples drawn as points, all counted"
    if any((samples[["jacobian", "change"]] == 0).any(axis=None) for samples in variants.values()):
        remarks += " · zeros on the lower edges"
    return remarks
