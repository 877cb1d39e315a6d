"""How many elements of the Jacobian are large: bars of the share above thresholds, variants side by side.

Here: drawing shares. Not here: measuring them (`measures.histogram.share_above`) and the whole distribution
(`histogram`).
"""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from jsae_core.figures.style import FONT_SIZE, MAGNITUDE, Variant, apply_style, plain, require_variants


def jacobian_thresholds_figure(shares: Mapping[Variant, Mapping[float, float]], subtitle: str) -> go.Figure:
    """Bars of the share of elements with |J| above each threshold, in per cent, the number written on each bar.

    Args:
        shares: for each variant the share, in [0, 1], above each threshold.
        subtitle: model, layer, tokens and settings.

    Raises:
        ValueError: no variant, no threshold, thresholds that differ between variants, or a share outside [0, 1].
    """
    require_variants(shares)
    thresholds = sorted(next(iter(shares.values())))
    if not thresholds:
        raise ValueError("there is no threshold to draw; expected at least one")
    figure = go.Figure()
    for variant, above in shares.items():
        figure.add_trace(_bars(variant, above, thresholds))
    figure.update_layout(barmode="group", bargap=0.15, bargroupgap=0.04)
    figure.update_xaxes(title_text=f"threshold on {MAGNITUDE}", type="category")
    largest = max(share for above in shares.values() for share in above.values())
    # room for the number on the highest bar; an axis from 0 to 0 if nothing is above any threshold would be no axis
    figure.update_yaxes(title_text="elements above the threshold (%)", range=[0, 112 * largest or 1])
    return apply_style(figure, "Share of large elements in the Jacobian", subtitle, height=450)


def _bars(variant: Variant, above: Mapping[float, float], thresholds: list[float]) -> go.Bar:
    if sorted(above) != thresholds:
        raise ValueError(f"{variant.label!r} has thresholds {sorted(above)}; expected {thresholds}, as before")
    wrong = [share for share in above.values() if not 0 <= share <= 1]  # NaN is wrong, too
    if wrong:
        raise ValueError(f"{variant.label!r} has a share of {wrong[0]}; expected a number between 0 and 1")
    percents = [100 * float(above[threshold]) for threshold in thresholds]
    return go.Bar(
        x=[f"{threshold:g}" for threshold in thresholds],
        y=percents,
        name=plain(variant.label),
        marker={"color": variant.colour},
        text=[_number(percent) for percent in percents],
        textposition="outside",
        textangle=0,
        textfont={"size": FONT_SIZE - 2},
        cliponaxis=False,
        hovertemplate="|J| > %{x}: %{y:.3g} %",
    )


def _number(percent: float) -> str:
    if 0 < percent < 0.01:
        return "<0.01"
    return f"{percent:.{1 if percent >= 10 else 2}f}"
