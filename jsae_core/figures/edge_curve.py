"""How many input latents an output latent needs, and how much of it comes from input latents at all: the edge curve and
the accounted share.

Here: drawing. Not here: measuring (`measures/accounting.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jsae_core.figures.style import (
    FONT_SIZE,
    INK,
    Look,
    Variant,
    apply_style,
    bar_marker,
    looks,
    of_each,
    plain,
    require_variants,
)
from jsae_core.terms import Z95

TITLES = ("Explained by the input latents kept", "From input latents at all")


def edge_curve_figure(accountings: Mapping[Variant, Mapping[str, float]], subtitle: str) -> go.Figure:
    """Left, R^2 of the output latents' pre-activations against the number of input latents that are kept for each of
    them: those with the largest attribution (solid), or random ones (dotted), a lower bound that any pair reaches.
    Right, the share of the pre-activations that the input latents account for. Error bars are 95% intervals.

    Args:
        accountings: for each variant the overall numbers of `latent_accountings`, with the orders "attribution" and
            "random".
        subtitle: model, layer, tokens and settings.

    Raises:
        ValueError: no variant, a variant without a number that is drawn, or with other numbers of kept latents than the
            first variant.
    """
    require_variants(accountings)
    kept = _kept(next(iter(accountings.values())), "attribution")
    for variant, accounting in accountings.items():
        for order in ("attribution", "random"):
            if not kept or _kept(accounting, order) != kept:
                raise ValueError(
                    f"{variant.label!r} has R^2 by {order} for {_kept(accounting, order)} latents kept; expected "
                    f"{kept or 'some'}"
                )
    figure = make_subplots(
        cols=2, column_widths=[0.68, 0.32], horizontal_spacing=0.13, subplot_titles=[plain(title) for title in TITLES]
    )
    look = looks(accountings)
    for place, (variant, accounting) in enumerate(accountings.items()):
        figure.add_trace(_curve(variant, accounting, kept, "attribution", look[variant]), row=1, col=1)
        figure.add_trace(_curve(variant, accounting, kept, "random", look[variant]), row=1, col=1)
        figure.add_trace(_share(variant, accounting, place, look[variant]), row=1, col=2)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    lowest = min(0.0, *(bar.y[0] - bar.error_y.array[0] for bar in bars))
    highest = max(1.0, *(bar.y[0] + bar.error_y.array[0] for bar in bars))
    figure.update_xaxes(title_text="input latents kept for each output latent", type="category", col=1)
    figure.update_yaxes(title_text="R²", range=[-0.04, 1.04], col=1)
    figure.update_xaxes(ticks="", side="bottom", col=2)
    figure.update_yaxes(
        title_text="accounted share",
        range=[1.15 * lowest, 1.12 * highest],
        zeroline=True,
        zerolinecolor=INK,
        zerolinewidth=1.5,
        col=2,
    )
    figure.update_annotations(font_size=FONT_SIZE)
    figure.update_layout(bargap=0.3)
    question = "How many input latents does an output latent need?"
    apply_style(figure, question, _answer(accountings, kept), subtitle, 460)
    figure.layout.margin.t += 30  # for the titles of the panels
    return figure


def _answer(accountings: Mapping[Variant, Mapping[str, float]], kept: list[int]) -> str:
    """The figure's result in a sentence: how much a few input latents explain, and how much all account for."""
    few = min(kept, key=lambda n: abs(n - 4))
    explained, accounted = (
        of_each({variant: _percent(of[name]) for variant, of in accountings.items()})
        for name in (f"r2_attribution_{few}", "accounted_share")
    )
    return f"{few} input latents explain {explained}; all of them account for {accounted}."


def _kept(accounting: Mapping[str, float], order: str) -> list[int]:
    numbers = (re.fullmatch(rf"r2_{order}_(\d+)", name) for name in accounting)
    return sorted(int(number[1]) for number in numbers if number)


def _curve(variant: Variant, accounting: Mapping[str, float], kept: list[int], order: str, look: Look) -> go.Scatter:
    names = [f"r2_{order}_{n}" for n in kept]
    by_attribution = order == "attribution"
    label = plain(variant.label) + ("" if by_attribution else ", random latents")
    return go.Scatter(
        x=[str(n) for n in kept],
        y=[accounting[name] for name in names],
        error_y={"array": [Z95 * accounting[f"{name}_se"] for name in names], "thickness": 1.5, "width": 4},
        name=label,
        mode="lines+markers",
        line={
            "color": variant.colour,
            "width": 3 if by_attribution else 2,
            "dash": "solid" if by_attribution else "dot",
        },
        marker={"size": 9 if by_attribution else 7, "symbol": look.symbol if by_attribution else f"{look.symbol}-open"},
        hovertemplate="%{x} kept: R² = %{y:.3f} ± %{error_y.array:.3f}<extra>" + label + "</extra>",
    )


def _share(variant: Variant, accounting: Mapping[str, float], place: int, look: Look) -> go.Bar:
    share, error = accounting["accounted_share"], Z95 * accounting["accounted_share_se"]
    return go.Bar(
        x=[
            f"<b>{_percent(share)}</b>" + "\u200b" * place
        ],  # zero-width spaces, so that equal numbers are separate bars
        y=[share],
        error_y={"array": [error], "thickness": 1.5, "width": 4},
        marker=bar_marker(variant, look),
        showlegend=False,
        hovertemplate=(
            f"p = {accounting['p']:.3g} at x, {accounting['p_without_latents']:.3g} without input latents, "
            f"{accounting['p_reconstruction']:.3g} at the reconstruction, {accounting['p_bias']:.3g} at the bias"
            f"<extra>{plain(variant.label)}</extra>"
        ),
    )


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("-", "\N{MINUS SIGN}")
