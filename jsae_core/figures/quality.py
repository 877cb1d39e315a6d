"""What sparsity costs in quality: reconstruction and the language model's loss by layer, for all variants.

Here: drawing measured numbers with their errors. Not here: measuring them (`measures.quality`), and how sparse the
Jacobians become in return (`sparsity`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jsae_core.figures.style import FONT_SIZE, Look, Variant, apply_style, looks, of_each, plain, require_variants

SIDES = {"input": "input SAE", "output": "output SAE", "pair": "both SAEs"}  # in columns
NOTE = ["Scores (reconstructions", "spliced in): 1 is no loss,", "0 as bad as zeros.", "Error bars: ± 2 SE."]
BEYOND = ("triangle-up", "triangle-down")
OFF_AXIS = "▲ ▼: beyond the axis."
ROOM = 0.1  # free space at each end of an axis, as a share of the range of the values
NARROWEST = 0.02  # the least range of an axis, as a share of the range from the best to the worst value
FEW_LAYERS = 8  # up to so many layers have a tick each, and large markers
HEIGHT, GAP = 176, 22  # px: the height of a panel, the space between panels
ABOVE, BELOW = 30, 130  # px: headings above the panels; ticks, title and legend below


class _Measure(NamedTuple):
    """A row of panels. The axis ends at `best` and `worst` even if there are values beyond."""

    title: str
    sides: tuple[str, ...]
    best: float
    worst: float
    has_error: bool = True
    unit: float = 1  # factor from the measured number to the drawn one


# Not drawn: L0, which is k by construction; MSE and cosine, which repeat what the explained variance shows.
_MEASURES = {
    "ce_score": _Measure("CE score", ("input", "output", "pair"), best=1, worst=0),
    "kl_score": _Measure("KL score", ("input", "output", "pair"), best=1, worst=0),
    "explained_variance": _Measure("explained variance", ("input", "output"), best=1, worst=0),
    "dead": _Measure("dead latents (%)", ("input", "output"), best=0, worst=100, has_error=False, unit=100),
}


def quality_by_layer_figure(variants: Mapping[Variant, pd.DataFrame], subtitle: str) -> go.Figure:
    """CE and KL score with the input SAE's, the output SAE's or both reconstructions spliced in, and explained variance
    and dead latents of each SAE, by layer, with error bars of two standard errors.

    A line is broken at layers that its variant lacks but another one has. The panels of a measure share an axis, from
    the best possible value to the worst that occurs, but not below 0 for scores and explained variance. Points beyond
    the axis are triangles at its end, without error bars. This is needed because a score is a ratio: it means nothing
    in layers where the model hardly depends on the MLP, and would make all other scores look alike.

    Args:
        variants: for each variant a table with one row for each layer: `layer` and the numbers of `pair_quality`. The
            layers of variants may differ.
        subtitle: model, tokens and settings.

    Raises:
        ValueError: no variant, no layer, a layer twice, a column missing, numbers that are not finite, negative errors.
    """
    require_variants(variants)
    frames = {variant: _checked(variant, frame) for variant, frame in variants.items()}
    layers = np.unique(np.concatenate([frame.index for frame in frames.values()]))
    height = (HEIGHT + GAP) * len(_MEASURES) - GAP
    figure = make_subplots(
        len(_MEASURES),
        len(SIDES),
        specs=[[{} if side in measure.sides else None for side in SIDES] for measure in _MEASURES.values()],
        column_titles=list(SIDES.values()),
        shared_xaxes="all",
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=GAP / height,
    )
    figure.update_annotations(font_size=FONT_SIZE)
    ends, shifts = _arrangement(layers, len(frames))
    look = looks(frames)
    figure.add_traces([_in_legend(variant, look[variant], layers.size) for variant in frames])
    for row, (name, measure) in enumerate(_MEASURES.items(), start=1):
        low, high = _axis(frames, name, measure)
        for column, side in enumerate(measure.sides, start=1):
            for (variant, frame), shift in zip(frames.items(), shifts, strict=True):
                of_side = frame.reindex(layers)
                trace = _points(variant, look[variant], of_side, f"{name}_{side}", measure, (low, high))
                figure.add_trace(trace.update(x=layers + shift), row=row, col=column)
        figure.update_yaxes(range=[low, high], nticks=5, row=row)
        figure.update_yaxes(title_text=measure.title, row=row, col=1)
    few = {"tickvals": layers} if layers.size <= FEW_LAYERS else {"nticks": 7}
    figure.update_xaxes(range=ends, showgrid=False, **few)
    for column, side in enumerate(SIDES, start=1):
        last = sum(side in measure.sides for measure in _MEASURES.values())
        figure.update_xaxes(title_text="layer", showticklabels=True, row=last, col=column)
    figure.add_annotation(_note(figure))
    apply_style(figure, "What did sparsity cost, layer by layer?", _answer(frames), subtitle, ABOVE + height + BELOW)
    figure.layout.margin.t += ABOVE
    return figure


def _answer(frames: Mapping[Variant, pd.DataFrame]) -> str:
    scores = {}
    for variant, frame in frames.items():
        low, high = (f"{score:.2f}" for score in (frame["kl_score_pair"].min(), frame["kl_score_pair"].max()))
        scores[variant] = (low if low == high else f"{low} to {high}").replace("-", "\N{MINUS SIGN}")
    return f"The KL score with both reconstructions spliced in is {of_each(scores)}."


def _checked(variant: Variant, frame: pd.DataFrame) -> pd.DataFrame:
    """The columns that are drawn, with the layer as index. Raises ValueError if they cannot be drawn."""
    where = f"the quality of {variant.label!r}"
    values = [f"{name}_{side}" for name, measure in _MEASURES.items() for side in measure.sides]
    errors = [f"{name}_{side}_se" for name, measure in _MEASURES.items() if measure.has_error for side in measure.sides]
    missing = [name for name in ["layer", *values, *errors] if name not in frame]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if frame.empty:
        raise ValueError(f"{where} has no layer; expected at least one")
    drawn = frame[["layer", *values, *errors]].astype(float)
    wrong = [name for name in drawn if not np.isfinite(drawn[name]).all()]
    if wrong:
        raise ValueError(f"{where} holds NaN or infinite values in {', '.join(wrong)}")
    negative = [name for name in errors if (drawn[name] < 0).any()]
    if negative:
        raise ValueError(f"{where} holds negative errors in {', '.join(negative)}")
    if drawn["layer"].duplicated().any():
        raise ValueError(f"{where} has layer {drawn['layer'][drawn['layer'].duplicated()].iloc[0]:g} twice")
    return drawn.set_index("layer")


def _arrangement(layers: np.ndarray, n_variants: int) -> tuple[list[float], np.ndarray]:
    """The ends of the layer axis, and the horizontal shift of each variant's points from their layer."""
    distance = np.diff(layers).min() if layers.size > 1 else 1
    room = max(distance / 2, 0.04 * (layers[-1] - layers[0]))
    ends = [layers[0] - room, layers[-1] + room]
    step = min(0.15 * distance, 0.04 * (ends[1] - ends[0]))
    return ends, step * (np.arange(n_variants) - (n_variants - 1) / 2)


def _axis(frames: Mapping[Variant, pd.DataFrame], name: str, measure: _Measure) -> tuple[float, float]:
    """The ends of a measure's axis, with room for the error bars of the values on it."""
    columns = [f"{name}_{side}" for side in measure.sides]
    values = measure.unit * np.concatenate([frame[columns].to_numpy().ravel() for frame in frames.values()])
    if measure.has_error:
        errors = [frame[[f"{column}_se" for column in columns]].to_numpy().ravel() for frame in frames.values()]
        bars = 2 * measure.unit * np.concatenate(errors)
        on_axis = (values - measure.best) * (values - measure.worst) <= 0
        values = np.concatenate([values, (values - bars)[on_axis], (values + bars)[on_axis]])
    shown = values.clip(min(measure.best, measure.worst), max(measure.best, measure.worst))
    possible = abs(measure.worst - measure.best)
    reach = max(np.abs(shown - measure.best).max(), NARROWEST * possible)
    farthest = measure.best + reach * (measure.worst - measure.best) / possible
    low, high = sorted((measure.best, farthest))
    return low - ROOM * reach, high + ROOM * reach


def _line(variant: Variant, look: Look, few: bool) -> dict:
    return {
        "name": plain(variant.label),
        "legendgroup": variant.label,
        "mode": "lines+markers",
        "line": {"color": variant.colour, "width": 2, "dash": look.dash},
        "marker": {"symbol": look.symbol, "size": 12 if few else 7},
    }


def _in_legend(variant: Variant, look: Look, n_layers: int) -> go.Scatter:
    """The legend entry of a variant, with its own symbol even if its first point is drawn as a triangle."""
    return go.Scatter(x=[None], y=[None], showlegend=True, **_line(variant, look, n_layers <= FEW_LAYERS))


def _points(
    variant: Variant, look: Look, frame: pd.DataFrame, name: str, measure: _Measure, ends: tuple[float, float]
) -> go.Scatter:
    values = measure.unit * frame[name].to_numpy()
    errors = 2 * measure.unit * frame[f"{name}_se"].to_numpy() if measure.has_error else np.zeros(values.size)
    low, high = ends
    inset = (high - low) / 16  # half the size of a triangle
    few = values.size <= FEW_LAYERS
    inside = ~((values > high) | (values < low))  # NaN, for a missing layer, counts as inside
    symbols = np.select([values > high, values < low], BEYOND, look.symbol)
    line = _line(variant, look, few)
    return go.Scatter(
        y=np.where(inside, values, values.clip(low + inset, high - inset)),
        error_y={
            "array": np.where(inside, errors, 0),
            "visible": measure.has_error,
            "width": 4 if few else 0,
        },
        **line | {"marker": {**line["marker"], "symbol": symbols.tolist()}},
        showlegend=False,
        customdata=np.stack([frame.index, values, errors], axis=1),
        hovertemplate="layer %{customdata[0]}: %{customdata[1]:.4~g} ± %{customdata[2]:.2~g}",
    )


def _note(figure: go.Figure) -> dict:
    """A note on what the marks mean, in the corner without a panel."""
    triangles = any(symbol in BEYOND for trace in figure.data for symbol in np.atleast_1d(trace.marker.symbol))
    return {
        "text": "<br>".join([*NOTE, OFF_AXIS] if triangles else NOTE),
        "align": "left",
        "showarrow": False,
        "font": {"size": FONT_SIZE - 2},
        "xref": "paper",
        "x": figure.layout.xaxis3.domain[0],
        "xanchor": "left",
        "yref": "paper",
        "y": 0,
        "yanchor": "bottom",
    }
