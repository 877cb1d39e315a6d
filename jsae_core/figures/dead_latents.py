"""How many latents are dead, and how certain that is: the share not active yet against the number of tokens.

Here: drawing. Not here: counting latents, and estimating how many more would become active (`measures/activity.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jsae_core.figures.style import (
    FONT_SIZE,
    Look,
    Variant,
    apply_style,
    looks,
    of_each,
    percent,
    plain,
    require_variants,
)

SIDES = {"input": "input SAE", "output": "output SAE"}
READING = " · dashed: what would stay dead of all text, at most (Chao's estimate from the rarest latents seen)"


def dead_latents_figure(activities: Mapping[Variant, pd.DataFrame], subtitle: str) -> go.Figure:
    """The share of latents that were not active in the first n tokens, in per cent, against n (logarithmic), in a panel
    for each SAE. A dashed line marks this share without the latents that are estimated to become active later.

    Args:
        activities: for each variant what `latent_activity` returns.
        subtitle: model, layer, tokens and settings.

    Raises:
        ValueError: no variant, a side or a column missing, or numbers that are not finite.
    """
    require_variants(activities)
    for variant, table in activities.items():
        _check(variant, table)
    look = looks(activities)
    figure = make_subplots(cols=2, horizontal_spacing=0.04, shared_yaxes=True, subplot_titles=list(SIDES.values()))
    for column, side in enumerate(SIDES, start=1):
        for variant, table in activities.items():
            rows = table[table["side"] == side].sort_values("n_tokens")
            figure.add_traces(
                [_curve(variant, rows, look[variant], column == 1), _left(variant, rows)], rows=1, cols=column
            )
    most = max(max(trace.y) for trace in figure.data)
    figure.update_xaxes(title_text="tokens", type="log", dtick=1, tickformat=",")
    figure.update_yaxes(range=[0, 1.08 * most or 1])
    figure.update_yaxes(title_text="latents not active yet (%)", col=1)
    figure.update_annotations(font_size=FONT_SIZE)
    apply_style(figure, "How many latents are dead?", _answer(activities), subtitle + READING, height=420)
    figure.layout.margin.t += 30  # for the titles of the panels
    return figure


def _answer(activities: Mapping[Variant, pd.DataFrame]) -> str:
    n_tokens = max(int(table["n_tokens"].max()) for table in activities.values())
    last = {
        variant: table.sort_values("n_tokens").groupby("side")["dead"].last() for variant, table in activities.items()
    }
    dead = {variant: f"{percent(of['input'])} / {percent(of['output'])}" for variant, of in last.items()}
    return f"In {n_tokens:,} tokens {of_each(dead)} of the input / output SAE's latents were never active."


def _check(variant: Variant, table: pd.DataFrame) -> None:
    where = f"the activity of {variant.label!r}"
    missing = {"side", "n_tokens", "dead", "unseen"} - set(table)
    if missing:
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    absent = set(SIDES) - set(table["side"])
    if absent:
        raise ValueError(f"{where} has no row of side {', '.join(sorted(absent))}")
    if not np.isfinite(table[["n_tokens", "dead", "unseen"]].to_numpy(float)).all():
        raise ValueError(f"{where} holds NaN or infinite values")


def _curve(variant: Variant, rows: pd.DataFrame, look: Look, in_legend: bool) -> go.Scatter:
    return go.Scatter(
        x=rows["n_tokens"],
        y=100 * rows["dead"],
        name=plain(variant.label),
        legendgroup=variant.label,
        showlegend=in_legend,
        mode="lines+markers",
        line={"color": variant.colour, "width": 2.5},
        marker={"size": 9, "symbol": look.symbol},
        hovertemplate="%{x:,} tokens: %{y:.3~g}% not active yet",
    )


def _left(variant: Variant, rows: pd.DataFrame) -> go.Scatter:
    left = 100 * float(rows["dead"].iloc[-1] - rows["unseen"].iloc[-1])
    return go.Scatter(
        x=rows["n_tokens"].iloc[[0, -1]],
        y=[left, left],
        name=plain(variant.label),
        legendgroup=variant.label,
        showlegend=False,
        mode="lines",
        line={"color": variant.colour, "width": 2, "dash": "dash"},
        hovertemplate="at most %{y:.3~g}% stay dead",
    )
