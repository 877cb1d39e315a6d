"""How many elements of the Jacobian are large: bars of the share above thresholds, variants side by side.

Here: drawing measured shares and reported ones. Not here: measuring them (`measures.histogram.share_above`), looking up
reported results, the whole distribution (`histogram`).
"""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from jsae_core.figures.style import (
    FONT_SIZE,
    INK,
    MAGNITUDE,
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
from jsae_core.terms import NOTEWORTHY

REPORTED = "reported (Farnik et al., 2025)"
LIKEWISE = "measured here by the reported definition"
DIAMOND, NUMBER = 0.03, 0.08  # shares of the axis that half a diamond, and a number on a bar, take
ROOM = 0.14  # of the axis, left above the highest bar or diamond


def jacobian_thresholds_figure(
    shares: Mapping[Variant, Mapping[float, float]],
    subtitle: str,
    reported: Mapping[Variant, Mapping[float, float]] | None = None,
    errors: Mapping[Variant, Mapping[float, float]] | None = None,
    likewise: Mapping[Variant, Mapping[float, float]] | None = None,
    question: str = "How many elements of the Jacobian are large?",
    answer: str | None = None,
) -> go.Figure:
    """Bars of the share of elements with |J| above each threshold, in per cent, the number written on each bar, error
    bars of two standard errors, and reported shares as diamonds over the bars of their variant.

    Args:
        shares: for each variant the share, in [0, 1], above each threshold.
        subtitle: model, layer, tokens and settings. If reported shares are drawn, a remark is added that the numbers on
            the bars are those measured here.
        reported: for some of the variants, reported shares in [0, 1]; thresholds that are not drawn are ignored.
        errors: for each variant the standard error of each share. None: no error bars.
        likewise: for variants with reported shares, the shares measured here by the definition of the reported ones, if
            it differs from that of the bars; drawn as circles.
        question, answer: the title, and the sentence below it. Without an answer, the sentence gives the share of
            elements that are 0.01 or more, or above the lowest threshold.

    Raises:
        ValueError: no variant, no threshold, thresholds that differ between variants, a share outside [0, 1], or
            reported shares of a variant that is not drawn.
    """
    require_variants(shares)
    reported = reported or {}
    thresholds = sorted(next(iter(shares.values())))
    if not thresholds:
        raise ValueError("there is no threshold to draw; expected at least one")
    strangers = [variant.label for variant in reported if variant not in shares]
    if strangers:
        raise ValueError(f"{strangers[0]!r} has reported shares, but is not drawn")
    look = looks(shares)
    bars = {variant: threshold_bars(variant, above, thresholds, look[variant]) for variant, above in shares.items()}
    for variant, of_shares in (errors or {}).items():
        reach = [200 * of_shares[threshold] for threshold in thresholds]
        bars[variant].update(error_y={"array": reach, "width": 4, "thickness": 1.5, "color": INK})
        bars[variant].text = [f"{number}<br> " for number in bars[variant].text]  # above the error bar
    if errors:
        subtitle += " · error bars: ± 2 SE, by document"
    diamonds = {variant: _diamonds(variant, above, thresholds) for variant, above in reported.items()}
    diamonds = {variant: trace for variant, trace in diamonds.items() if trace.x}
    highest = max(percent for trace in [*bars.values(), *diamonds.values()] for percent in trace.y)
    circles = [_circles(variant, (likewise or {}).get(variant, {}), thresholds) for variant in diamonds]
    circles = [trace for trace in circles if trace.x]
    highest = max([highest, *(percent for trace in circles for percent in trace.y)])
    # if nothing is above any threshold, the axis must not run from 0 to 0
    top = highest / (1 - ROOM) or 1
    for place, (variant, trace) in enumerate(diamonds.items()):
        _move_numbers(bars[variant], trace, top)
        trace.showlegend = place == 0
    for place, trace in enumerate(circles):
        trace.showlegend = place == 0
    figure = go.Figure([*bars.values(), *diamonds.values(), *circles])
    figure.update_layout(barmode="group", bargap=0.15, bargroupgap=0.04, scattermode="group", scattergap=0.15)
    figure.update_xaxes(title_text=f"threshold on {MAGNITUDE}", type="category")
    figure.update_yaxes(title_text="elements above the threshold (%)", range=[0, top])
    if diamonds:
        subtitle += " · numbers as measured here"
    return apply_style(figure, question, _answer(shares) if answer is None else answer, subtitle, height=450)


def _answer(shares: Mapping[Variant, Mapping[float, float]]) -> str:
    thresholds = next(iter(shares.values()))
    threshold = NOTEWORTHY if NOTEWORTHY in thresholds else min(thresholds)
    large = of_each({variant: percent(above[threshold]) for variant, above in shares.items()})
    return f"|J| is {threshold:g} or more for {large} of the elements."


def threshold_bars(variant: Variant, above: Mapping[float, float], thresholds: list[float], look: Look) -> go.Bar:
    """A variant's bars.

    Raises:
        ValueError: other thresholds than these, or a share outside [0, 1].
    """
    if sorted(above) != thresholds:
        raise ValueError(f"{variant.label!r} has thresholds {sorted(above)}; expected {thresholds}, as before")
    _check_shares(variant, above)
    percents = [100 * float(above[threshold]) for threshold in thresholds]
    return go.Bar(
        x=[f"{threshold:g}" for threshold in thresholds],
        y=percents,
        name=plain(variant.label),
        offsetgroup=variant.label,
        marker=bar_marker(variant, look),
        text=[_number(percent) for percent in percents],
        textposition="outside",
        textangle=0,
        textfont={"size": FONT_SIZE - 2},
        cliponaxis=False,
        hovertemplate="|J| ≥ %{x}: %{y:.3g}%",
    )


def _diamonds(variant: Variant, reported: Mapping[float, float], thresholds: list[float]) -> go.Scatter:
    _check_shares(variant, reported)
    drawn = [threshold for threshold in thresholds if threshold in reported]
    return go.Scatter(
        x=[f"{threshold:g}" for threshold in drawn],
        y=[100 * float(reported[threshold]) for threshold in drawn],
        name=REPORTED,
        legendgroup=REPORTED,
        offsetgroup=variant.label,
        mode="markers+text",
        textposition="top center",
        textfont={"size": FONT_SIZE - 2},
        marker={"symbol": "diamond", "size": 14, "color": "white", "line": {"color": INK, "width": 2.5}},
        cliponaxis=False,
        hovertemplate=f"{plain(variant.label)}, reported: |J| ≥ %{{x}}: %{{y:.3g}}%<extra></extra>",
    )


def _circles(variant: Variant, likewise: Mapping[float, float], thresholds: list[float]) -> go.Scatter:
    """Circles on the bars of a variant with reported shares: shares measured here by the reported definition."""
    circles = _diamonds(variant, likewise, thresholds)
    circles.update(name=LIKEWISE, legendgroup=LIKEWISE, mode="markers")
    circles.marker.update(symbol="circle-open", size=16, color=INK)
    circles.hovertemplate = f"{plain(variant.label)}, {LIKEWISE}: |J| ≥ %{{x}}: %{{y:.3g}} %<extra></extra>"
    return circles


def _check_shares(variant: Variant, shares: Mapping[float, float]) -> None:
    wrong = [share for share in shares.values() if not 0 <= share <= 1]  # NaN is wrong, too
    if wrong:
        raise ValueError(f"{variant.label!r} has a share of {wrong[0]}; expected a number between 0 and 1")


def _move_numbers(bars: go.Bar, diamonds: go.Scatter, top: float) -> None:
    """Move numbers that a diamond would cover from their bar to above the diamond."""
    heights = dict(zip(diamonds.x, diamonds.y, strict=True))
    moved = {
        threshold: number
        for threshold, percent, number in zip(bars.x, bars.y, bars.text, strict=True)
        if threshold in heights and -DIAMOND < (heights[threshold] - percent) / top < NUMBER + DIAMOND
    }
    bars.text = ["" if threshold in moved else number for threshold, number in zip(bars.x, bars.text, strict=True)]
    diamonds.text = [moved.get(threshold, "") for threshold in diamonds.x]


def _number(percent: float) -> str:
    if 0 < percent < 0.01:
        return "<0.01"
    if percent >= 99.95:
        return "100"  # a longer number would be drawn smaller
    return f"{percent:.{1 if percent >= 10 else 2}f}"
