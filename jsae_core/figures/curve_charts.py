"""Small charts of an output latent as a function of an input latent, laid out in px.

Here: the charts, their frames, curves, dots and numbers, and which samples have a curve. Not here: the figures that are
made of them (`function_curves.py`, `function_shapes.py`), measuring curves (`measures.linearity`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from jsae_core.figures.style import FONT_SIZE, INK, Variant, plain, require_variants
from jsae_core.terms import FUNCTION_SHAPES as SHAPES

LEAST_HEIGHT = 0.1  # activation; magnified further, a curve that counts as linear (within 0.01) would look bent
STRAIGHT = 0.3  # px; a point of a curve is left out if it is nearer than this to the line between its neighbours

SMALL = 16  # font size in charts
# px of a chart: its frame, and the space above it (names of latents), below (input values) and left (output values)
FRAME, FRAME_ABOVE, FRAME_BELOW, FRAME_LEFT, FRAME_RIGHT = 76, 32, 26, 54, 10
CHART = FRAME_ABOVE + FRAME + FRAME_BELOW
HEADING = 32  # px above a block of charts
RIGHT = 12  # px beside all charts
AXIS_TITLE = 44  # px below charts
READING = " · above each chart: input → output latent; dot: where the token was"

_NUMBERS = ["drawn", "input_latent", "output_latent", "input_activation", "output_activation"]
_CURVE = ["input_values", "output_values"]


@dataclass(frozen=True)
class Chart:
    """The chart of a curve; its frame is given in px from the upper left corner of all charts."""

    sample: pd.Series
    left: float
    top: float
    right: float

    @property
    def bottom(self) -> float:
        return self.top + FRAME

    @property
    def last_input(self) -> float:
        """The input at the right end of the chart; the left end is 0."""
        return float(np.max(self.sample["input_values"]))

    @property
    def outputs(self) -> tuple[float, float]:
        """The outputs at the bottom and at the top of the chart."""
        reached = np.append(self.sample["output_values"], self.sample["output_activation"])
        low, high = float(reached.min()), float(reached.max())
        least = min(LEAST_HEIGHT, high) or LEAST_HEIGHT  # if activations are smaller, the axis runs from zero to `high`
        # a narrow range is centred, unless the axis would begin below zero, where no activation is
        low = max(low - max(0, least - (high - low)) / 2, min(low, 0))
        return low, max(high, low + least)

    def place(self, inputs: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates at which points are drawn, in px."""
        low, high = self.outputs
        x = self.left + (self.right - self.left) * np.asarray(inputs) / self.last_input
        return x, self.bottom - FRAME * (np.asarray(outputs) - low) / (high - low)


def all_curves(variants: Mapping[Variant, pd.DataFrame]) -> dict[Variant, pd.DataFrame]:
    """The samples of each variant that have a curve, in the order in which they were sampled."""
    require_variants(variants)
    return {variant: _curves(variant, samples) for variant, samples in variants.items()}


def _curves(variant: Variant, samples: pd.DataFrame) -> pd.DataFrame:
    where = f"the samples of {variant.label!r}"
    missing = {*_NUMBERS, *_CURVE, "shape", "flat"} - set(samples.columns)
    if missing:
        raise ValueError(f"{where} lack {', '.join(sorted(missing))}")
    if samples.empty:
        raise ValueError(f"there are no samples of {variant.label!r}; expected at least one")
    if samples["flat"].isna().any() or not np.isfinite(samples[_NUMBERS].to_numpy(dtype=float)).all():
        raise ValueError(f"{where} hold NaN or infinite values")
    unknown = set(samples["shape"]) - set(SHAPES)
    if unknown:
        raise ValueError(f"{where} have the shape {unknown.pop()!r}; expected one of {', '.join(SHAPES)}")
    kept = samples[samples["output_values"].notna()].sort_values("drawn")
    for _, sample in kept.iterrows():
        inputs, outputs = (np.asarray(sample[name], dtype=float) for name in _CURVE)
        paired = inputs.ndim == 1 and inputs.size > 1 and inputs.shape == outputs.shape
        finite = paired and np.isfinite([inputs, outputs]).all()
        if not finite or inputs[0] < 0 or not (np.diff(inputs) > 0).all():
            raise ValueError(
                f"{where} have no curve where drawn is {sample['drawn']}; expected output_values and as many "
                "input_values that increase from 0 on, all finite"
            )
    return kept


def grid_of_charts(samples: pd.DataFrame, columns: int, width: float, left: float, top: float) -> list[Chart]:
    """Charts in rows of `columns`, each `width` px wide, starting at the upper left corner (`left`, `top`)."""
    charts = []
    for place, (_, sample) in enumerate(samples.iterrows()):
        row, column = divmod(place, columns)
        start = left + column * width
        charts.append(Chart(sample, start + FRAME_LEFT, top + row * CHART + FRAME_ABOVE, start + width - FRAME_RIGHT))
    return charts


def traces_of(charts: Mapping[Variant, Sequence[Chart]]) -> list[go.Scatter]:
    """All charts as a few traces on one pair of axes, since hundreds of axes would take seconds to draw."""
    every = [chart for of_variant in charts.values() for chart in of_variant]
    traces = [_frames(every), _numbers(every)]
    for variant, of_variant in charts.items():
        traces += [_lines(variant, of_variant), _dots(variant, of_variant)]
    return [trace.update(showlegend=False) for trace in traces]


def _frames(charts: Sequence[Chart]) -> go.Scatter:
    paths = [([c.left, c.left, c.right], [c.top, c.bottom, c.bottom]) for c in charts]
    return go.Scatter(**_joined(paths), mode="lines", line={"color": INK, "width": 1}, hoverinfo="skip")


def _lines(variant: Variant, charts: Sequence[Chart]) -> go.Scatter:
    paths = [_without_straight(*c.place(*c.sample[_CURVE])) for c in charts]
    return go.Scatter(
        **_joined(paths),
        mode="lines",
        name=plain(variant.label),
        line={"color": variant.colour, "width": 2.5, "simplify": False},
        hoverinfo="skip",
    )


def _dots(variant: Variant, charts: Sequence[Chart]) -> go.Scatter:
    places = [c.place(c.sample["input_activation"], c.sample["output_activation"]) for c in charts]
    return go.Scatter(
        x=[round(float(x), 1) for x, _ in places],
        y=[round(float(y), 1) for _, y in places],
        mode="markers",
        name=plain(variant.label),
        marker={"color": INK, "size": 9, "line": {"color": "white", "width": 1.5}},
        cliponaxis=False,
        # x and y are px on the canvas; the hover text shows the activations that they stand for
        customdata=[[float(c.sample["input_activation"]), float(c.sample["output_activation"])] for c in charts],
        text=[_hover(c.sample) for c in charts],
        hovertemplate="%{text}",
    )


def _hover(sample: pd.Series) -> str:
    return (
        f"{sample['shape']}{', flat' if sample['flat'] else ''}<br>"
        f"input latent {sample['input_latent']} at {sample['input_activation']:.3g}<br>"
        f"output latent {sample['output_latent']} at {sample['output_activation']:.3g}"
    )


def _numbers(charts: Sequence[Chart]) -> go.Scatter:
    """The texts around the frames: the names of the latents, and the ends of both axes."""
    written = []
    for chart in charts:
        low, high = chart.outputs
        decimals = max(0, 1 - int(np.floor(np.log10(high - low))))
        middle = (chart.left + chart.right - FRAME_LEFT) / 2
        written += [
            (f"{chart.sample['input_latent']} → {chart.sample['output_latent']}", middle, chart.top - 7, "top center"),
            ("0", chart.left, chart.bottom + 3, "bottom center"),
            (f"{chart.last_input:.3g}", chart.right, chart.bottom + 3, "bottom center"),
            (f"{high:.{decimals}f}", chart.left - 5, chart.top + 5, "middle left"),
            (f"{low:.{decimals}f}" if low else "0", chart.left - 5, chart.bottom - 5, "middle left"),
        ]
    return go.Scatter(
        text=[text for text, *_ in written],
        x=[round(x, 1) for _, x, _, _ in written],
        y=[round(y, 1) for _, _, y, _ in written],
        textposition=[position for *_, position in written],
        mode="text",
        textfont={"size": SMALL},
        cliponaxis=False,
        hoverinfo="skip",
    )


def _joined(paths: Sequence[tuple[Iterable[float], Iterable[float]]]) -> dict[str, list[float | None]]:
    """Join many paths into the coordinates of a single one, with a gap after each."""
    return {
        name: [value for path in paths for value in (*(round(float(v), 1) for v in path[axis]), None)]
        for axis, name in enumerate("xy")
    }


def _without_straight(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out the points of a curve (of increasing x) that do not change its picture. Between two points that are
    kept, the one farthest from their line is kept as well, until no point is farther from it than STRAIGHT."""
    kept, spans = {0, len(x) - 1}, [(0, len(x) - 1)]
    while spans:
        start, stop = spans.pop()
        between = slice(start, stop + 1)
        distance = np.abs(y[between] - np.interp(x[between], x[[start, stop]], y[[start, stop]]))
        farthest = start + int(distance.argmax())
        if distance.max() > STRAIGHT:
            kept.add(farthest)
            spans += [(start, farthest), (farthest, stop)]
    places = sorted(kept)
    return x[places], y[places]


def use_pixels(figure: go.Figure, width: float, height: float) -> None:
    """Make the first axes a canvas measured in px from its upper left corner, and note this in the figure's `meta`."""
    figure.layout.meta = {**figure.layout.meta, "canvas": True}
    canvas = {"showline": False, "showticklabels": False, "ticks": "", "showgrid": False, "automargin": False}
    figure.update_layout(
        xaxis={**canvas, "range": [0, width], "title": {"text": "input latent (activation)", "standoff": 12}},
        yaxis={**canvas, "range": [height, 0], "title": {"text": "output latent (activation)", "standoff": 8}},
    )


def note(text: str, x: float, y: float, size: int = FONT_SIZE, anchor: str = "center") -> dict:
    return {
        "text": text,
        "x": x,
        "y": y,
        "xref": "x",
        "yref": "y",
        "xanchor": anchor,
        "yanchor": "top",
        "showarrow": False,
        "font": {"size": size},
    }


def heading_of(variant: Variant, top: float) -> dict:
    return note(f'<b style="color:{variant.colour}">{plain(variant.label)}</b>', 0, top, anchor="left")
