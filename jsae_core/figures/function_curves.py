"""The shapes of output latents as functions of input latents: small charts of such functions, and bars of their shapes.

Here: drawing measured curves. Not here: measuring and classifying them (`measures.linearity`), single interventions
(`ablation`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from jsae_core.figures.style import (
    FONT_SIZE,
    INK,
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
from jsae_core.figures.thresholds import REPORTED
from jsae_core.terms import FUNCTION_SHAPES as SHAPES
from jsae_core.terms import RELATIVE_SHAPES, STRAIGHT_WITHIN, STRAIGHT_WITHIN_SHARE

LEAST_HEIGHT = 0.1  # activation; magnified further, a curve that counts as linear (within 0.01) would look bent
STRAIGHT = 0.3  # px; a point of a curve is left out if it is nearer than this to the line between its neighbours

COLUMNS, ROWS = 5, 2  # charts of each variant on a page
EXAMPLE_COLUMNS, EXAMPLE_ROWS = 2, 2  # charts of each shape and variant
SMALL = 16  # font size in charts
# px of a chart: its frame, and the space above it (names of latents), below (input values) and left (output values)
FRAME, FRAME_ABOVE, FRAME_BELOW, FRAME_LEFT, FRAME_RIGHT = 76, 32, 26, 54, 10
CHART = FRAME_ABOVE + FRAME + FRAME_BELOW
HEADING = 32  # px above a block of charts
LEGEND_ROW, LEGEND_SYMBOL, LEGEND_CHARACTER = 30, 42, 9  # px
CHARTS_LEFT, BARS_LEFT, RIGHT = 36, 68, 12  # px beside all charts, and beside charts above bars
AXIS_TITLE, SLIDER = 44, 104  # px below charts
BARS, BARS_BELOW = 280, 90  # px: the height of the bars' axis, and of the space below it with one row of legend
READING = " · above each chart: input → output latent; dot: where the token was"
RULE = f"; linear: within {STRAIGHT_WITHIN:g} of a line"
RELATIVE, RELATIVE_RULE = "relative_shape", f"relative rule: within {STRAIGHT_WITHIN_SHARE:.0%} of its range"
ERRORS = " · error bars: ± 2 SE, by document"
MEASURED = " · numbers as measured here"

_NUMBERS = ["drawn", "input_latent", "output_latent", "input_activation", "output_activation"]
_CURVE = ["input_values", "output_values"]


@dataclass(frozen=True)
class _Chart:
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


def function_curves_figure(variants: Mapping[Variant, pd.DataFrame], subtitle: str, n_curves: int = 100) -> go.Figure:
    """A small chart for each sample: an output latent as a function of an input latent, with a dot at the activations
    in the sample's token.

    A page has ten charts of each variant, one variant below the other; a slider turns the pages. Every chart has its
    own axes: inputs from 0 to the number at its right, outputs between the numbers at its left, at least 0.1 apart.

    Args:
        variants: for each variant the samples as `function_shapes` returns them, some with curves.
        subtitle: model, layer, tokens and settings. A remark on how to read a chart is added.
        n_curves: the most curves to show of each variant, in the order in which they were sampled.

    Raises:
        ValueError: no variant, no sample, no curve, a column missing, numbers that are not finite, values that do not
            make a curve, an unknown shape, or `n_curves` below 1.
    """
    if n_curves < 1:
        raise ValueError(f"n_curves is {n_curves}; expected at least 1")
    curves = {variant: kept[:n_curves] for variant, kept in _all_curves(variants).items()}
    for variant, kept in curves.items():
        if kept.empty:
            raise ValueError(f"no sample of {variant.label!r} has its curve; expected at least one")

    figure = go.Figure()
    block, on_page = HEADING + ROWS * CHART, COLUMNS * ROWS
    width = (WIDTH - CHARTS_LEFT - RIGHT) / COLUMNS
    most = max(map(len, curves.values()))
    starts = range(0, most, on_page)
    for start in starts:
        charts = {
            variant: _grid(kept[start : start + on_page], COLUMNS, width, 0, HEADING + row * block)
            for row, (variant, kept) in enumerate(curves.items())
        }
        figure.add_traces([trace.update(visible=start == 0, meta=start) for trace in _traces(charts)])
    for row, variant in enumerate(curves):
        figure.add_annotation(_heading(variant, row * block))

    height, below = len(curves) * block, AXIS_TITLE + (SLIDER if len(starts) > 1 else 0)
    title = "What are output latents as functions of input latents?"
    apply_style(figure, title, _answer(variants), subtitle + READING, height=height + below)
    _use_pixels(figure, COLUMNS * width, height)
    if len(starts) > 1:
        figure.update_layout(sliders=[_slider(figure, {start: min(start + on_page, most) for start in starts})])
    margin = {"l": CHARTS_LEFT, "r": RIGHT, "b": below, "autoexpand": False}
    return figure.update_layout(showlegend=False, margin=margin)


def function_shapes_figure(
    variants: Mapping[Variant, pd.DataFrame],
    subtitle: str,
    reported: Mapping[Variant, Mapping[str, float]] | None = None,
    errors: Mapping[Variant, Mapping[str, Mapping[str, float]]] | None = None,
) -> go.Figure:
    """Examples of linear, jumprelu and other functions for each variant (above), in charts like those of
    `function_curves_figure`, and bars of the share of each shape in per cent (below). The part of a bar that stands for
    flat functions, whose range is below 0.01, is hollow. If the samples are also classified by the relative rule, bars
    of those shapes are beside the others.

    Examples are the curves that were sampled first, flat ones only if there are no others. The bars count all samples.

    Args:
        variants: for each variant the samples as `function_shapes` returns them, with columns for curves.
        subtitle: model, layer, tokens and settings. A remark on how to read a chart is added.
        reported: for some variants the reported shares of shapes, in [0, 1], drawn as diamonds on their bars.
        errors: for each variant, by the column of the rule ("shape", "relative_shape"), the standard error of the share
            of each shape. None: no error bars.

    Raises:
        ValueError: no variant, no sample, a column missing, numbers that are not finite, values that do not make a
            curve, an unknown shape, or reported shares outside [0, 1] or of a variant that is not drawn.
    """
    curves = _all_curves(variants)
    expected = {variant: _reported_percents(variant, given, curves) for variant, given in (reported or {}).items()}

    figure = go.Figure()
    width = (WIDTH - BARS_LEFT - RIGHT) / (EXAMPLE_COLUMNS * len(SHAPES))
    group, block = EXAMPLE_COLUMNS * width, HEADING + EXAMPLE_ROWS * CHART
    charts: dict[Variant, list[_Chart]] = {variant: [] for variant in curves}
    for column, shape in enumerate(SHAPES):
        centre = (column + 0.5) * group
        figure.add_annotation(_note(f"<b>{shape}</b>", centre, 0))
        for row, (variant, kept) in enumerate(curves.items()):
            top = 2 * HEADING + row * block
            examples = kept[kept["shape"] == shape].sort_values("flat", kind="stable")
            examples = examples[: EXAMPLE_COLUMNS * EXAMPLE_ROWS]
            charts[variant] += _grid(examples, EXAMPLE_COLUMNS, width, column * group, top)
            if examples.empty:
                figure.add_annotation(_note("none among the kept curves", centre, top + CHART / 2, size=SMALL))
    figure.add_traces(_traces(charts))
    for row, variant in enumerate(curves):
        figure.add_annotation(_heading(variant, HEADING + row * block))
    _add_bars(figure, variants, expected, errors or {})

    height = HEADING + len(curves) * block
    whole = height + AXIS_TITLE + HEADING + BARS
    below = BARS_BELOW + LEGEND_ROW * (_legend_rows(figure) - 1)
    remark = READING + RULE + (ERRORS if errors else "") + (MEASURED if any(expected.values()) else "")
    title = "How many of these functions are linear?"
    apply_style(figure, title, _answer_on_shapes(variants), subtitle + remark, height=whole + below)
    _use_pixels(figure, len(SHAPES) * group, height)
    return figure.update_layout(
        yaxis={"domain": [1 - height / whole, 1], "title": {"standoff": 42}},
        yaxis2={"domain": [0, BARS / whole]},
        margin={"l": BARS_LEFT, "r": RIGHT, "b": below, "autoexpand": False},
        legend={"traceorder": "normal"},
    )


def _answer(variants: Mapping[Variant, pd.DataFrame]) -> str:
    simple = {
        variant: percent(float(samples["shape"].isin(SHAPES[:2]).mean())) for variant, samples in variants.items()
    }
    return f"{of_each(simple)} of all that were sampled are {SHAPES[0]} or {SHAPES[1]} by the paper's rule."


def _answer_on_shapes(variants: Mapping[Variant, pd.DataFrame]) -> str:
    by_rule = [
        of_each(
            {variant: percent(float((samples[column] == "linear").mean())) for variant, samples in variants.items()}
        )
        for column in ("shape", RELATIVE)
        if all(column in samples for samples in variants.values())
    ]
    return f"By the paper's rule {by_rule[0]}" + "".join(f"; by the relative rule {of}" for of in by_rule[1:]) + "."


def _all_curves(variants: Mapping[Variant, pd.DataFrame]) -> dict[Variant, pd.DataFrame]:
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


def _reported_percents(
    variant: Variant, given: Mapping[str, float], drawn: Mapping[Variant, object]
) -> dict[str, float]:
    if variant not in drawn:
        raise ValueError(f"there are reported shares of {variant.label!r}, which is not drawn")
    for shape, share in given.items():
        if shape not in SHAPES or not 0 <= share <= 1:  # NaN is wrong, too
            raise ValueError(
                f"the reported share of {shape!r} of {variant.label!r} is {share}; expected a number between 0 and 1 "
                f"for one of {', '.join(SHAPES)}"
            )
    return {shape: 100 * float(share) for shape, share in given.items()}


def _grid(samples: pd.DataFrame, columns: int, width: float, left: float, top: float) -> list[_Chart]:
    """Charts in rows of `columns`, each `width` px wide, starting at the upper left corner (`left`, `top`)."""
    charts = []
    for place, (_, sample) in enumerate(samples.iterrows()):
        row, column = divmod(place, columns)
        start = left + column * width
        charts.append(_Chart(sample, start + FRAME_LEFT, top + row * CHART + FRAME_ABOVE, start + width - FRAME_RIGHT))
    return charts


def _traces(charts: Mapping[Variant, Sequence[_Chart]]) -> list[go.Scatter]:
    """All charts as a few traces on one pair of axes, since hundreds of axes would take seconds to draw."""
    every = [chart for of_variant in charts.values() for chart in of_variant]
    traces = [_frames(every), _numbers(every)]
    for variant, of_variant in charts.items():
        traces += [_lines(variant, of_variant), _dots(variant, of_variant)]
    return [trace.update(showlegend=False) for trace in traces]


def _frames(charts: Sequence[_Chart]) -> go.Scatter:
    paths = [([c.left, c.left, c.right], [c.top, c.bottom, c.bottom]) for c in charts]
    return go.Scatter(**_joined(paths), mode="lines", line={"color": INK, "width": 1}, hoverinfo="skip")


def _lines(variant: Variant, charts: Sequence[_Chart]) -> go.Scatter:
    paths = [_without_straight(*c.place(*c.sample[_CURVE])) for c in charts]
    return go.Scatter(
        **_joined(paths),
        mode="lines",
        name=plain(variant.label),
        line={"color": variant.colour, "width": 2.5, "simplify": False},
        hoverinfo="skip",
    )


def _dots(variant: Variant, charts: Sequence[_Chart]) -> go.Scatter:
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


def _numbers(charts: Sequence[_Chart]) -> go.Scatter:
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


def _use_pixels(figure: go.Figure, width: float, height: float) -> None:
    """Make the first axes a canvas measured in px from its upper left corner, and note this in the figure's `meta`."""
    figure.layout.meta = {**figure.layout.meta, "canvas": True}
    canvas = {"showline": False, "showticklabels": False, "ticks": "", "showgrid": False, "automargin": False}
    figure.update_layout(
        xaxis={**canvas, "range": [0, width], "title": {"text": "input latent (activation)", "standoff": 12}},
        yaxis={**canvas, "range": [height, 0], "title": {"text": "output latent (activation)", "standoff": 8}},
    )


def _note(text: str, x: float, y: float, size: int = FONT_SIZE, anchor: str = "center") -> dict:
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


def _heading(variant: Variant, top: float) -> dict:
    return _note(f'<b style="color:{variant.colour}">{plain(variant.label)}</b>', 0, top, anchor="left")


def _slider(figure: go.Figure, pages: Mapping[int, int]) -> dict:
    """A slider that shows the traces of one page. `pages` maps the number of a page's first curve to that after its
    last; the `meta` of a trace is the number of the first curve of its page."""
    return {
        "steps": [
            {
                "label": f"{start + 1}–{stop}",
                "method": "restyle",
                "args": [{"visible": [trace.meta == start for trace in figure.data]}],
            }
            for start, stop in pages.items()
        ],
        "currentvalue": {"prefix": "curves ", "font": {"size": SMALL}},
        "font": {"size": SMALL},
        "pad": {"t": AXIS_TITLE, "l": 20, "r": 30},  # room for the labels at its ends
    }


class _Kind(NamedTuple):
    """A group of bars, one for each variant: the share of samples with this shape in this column, drawn around
    `centre`."""

    column: str
    shape: str
    centre: float


def _kinds(variants: Mapping[Variant, pd.DataFrame]) -> list[_Kind]:
    kinds = [_Kind("shape", shape, place) for place, shape in enumerate(SHAPES)]
    if all(RELATIVE in samples for samples in variants.values()):
        kinds += [_Kind(RELATIVE, shape, len(SHAPES) + 0.5 + place) for place, shape in enumerate(RELATIVE_SHAPES)]
    return kinds


def _add_bars(
    figure: go.Figure,
    variants: Mapping[Variant, pd.DataFrame],
    reported: Mapping[Variant, Mapping[str, float]],
    errors: Mapping[Variant, Mapping[str, Mapping[str, float]]],
) -> None:
    """Draw, on the second axes, the bars of each shape for each variant, first by the paper's rule, then by the
    relative one if the samples have it; with the reported share if there is one."""
    width, kinds, look = 0.8 / len(variants), _kinds(variants), looks(variants)
    highest, numbers, diamonds = 0.0, [], []
    for place, (variant, samples) in enumerate(variants.items()):
        centres = [kind.centre - 0.4 + width * (place + 0.5) for kind in kinds]
        percents = [100 * float((samples[kind.column] == kind.shape).mean()) for kind in kinds]
        of_variant = errors.get(variant, {})
        reaches = [200 * of_variant.get(kind.column, {}).get(kind.shape, 0.0) for kind in kinds]
        figure.add_traces(_bars(variant, look[variant], samples, kinds, centres, percents, 0.94 * width))
        if any(reaches):
            figure.add_trace(_error_bars(centres, percents, reaches))
        given = reported.get(variant, {})
        numbers += [
            (x, percent, percent + reach, given.get(kind.shape) if kind.column == "shape" else None)
            for x, percent, reach, kind in zip(centres, percents, reaches, kinds, strict=True)
        ]
        diamonds += [(centres[SHAPES.index(shape)], percent, variant) for shape, percent in given.items()]
        highest = max([highest, *(top for _, _, top, _ in numbers), *given.values()])
    both_rules = len(kinds) > len(SHAPES)
    pixel = (1.15 if not both_rules else 1.3) * highest / BARS  # with room for the names of the rules
    figure.add_trace(_bar_numbers(numbers, pixel, FONT_SIZE - (4 if both_rules else 2)))
    figure.add_trace(_flat_in_legend())
    if diamonds:
        figure.add_trace(_diamonds(diamonds))
    for text, first in ((f"paper's rule: within {STRAIGHT_WITHIN:g}", 0), (RELATIVE_RULE, len(SHAPES))):
        if both_rules:
            figure.add_annotation(
                _note(f"<b>{text}</b>", kinds[first].centre - 0.45, pixel * BARS, FONT_SIZE - 2, "left")
                | {"xref": "x2", "yref": "y2"}
            )
    figure.update_layout(
        xaxis2={
            "anchor": "y2",
            "range": [-0.5, kinds[-1].centre + 0.5],
            "tickvals": [kind.centre for kind in kinds],
            "tickfont": {"size": FONT_SIZE - (2 if both_rules else 0)},
        },
        yaxis2={"anchor": "x2", "range": [0, pixel * BARS], "title": {"text": "sampled functions (%)"}},
        barmode="overlay",
    )
    figure.update_layout(xaxis2={"ticktext": [kind.shape for kind in kinds], "ticks": "", "showgrid": False})


def _bars(
    variant: Variant,
    look: Look,
    samples: pd.DataFrame,
    kinds: Sequence[_Kind],
    centres: list[float],
    percents: list[float],
    width: float,
) -> list[go.Bar]:
    """Hollow bars of all functions, and in front of them filled bars of those that are not flat. By the relative rule,
    flat is a shape of its own, so its bars are filled entirely."""
    flat = samples["flat"].astype(bool)
    steep = [
        100 * float(((samples[kind.column] == kind.shape) & ~(flat & (kind.column == "shape"))).mean())
        for kind in kinds
    ]
    drawn = {
        "flat ones included": (percents, {"color": "white", "line": {"color": variant.colour, "width": 2}}),
        "not flat": (steep, bar_marker(variant, look)),
    }
    return [
        go.Bar(
            x=centres,
            y=heights,
            width=width,
            name=plain(variant.label),
            legendgroup=variant.label,
            showlegend=which == "not flat",
            marker=drawn_as,
            customdata=[f"{kind.shape}, {which if kind.column == 'shape' else RELATIVE_RULE}" for kind in kinds],
            hovertemplate="%{customdata}: %{y:.3~g}%",
            xaxis="x2",
            yaxis="y2",
        )
        for which, (heights, drawn_as) in drawn.items()
    ]


def _error_bars(centres: list[float], percents: list[float], reaches: list[float]) -> go.Scatter:
    """Error bars at the ends of bars, as a trace of their own, so that no other bar covers them."""
    return go.Scatter(
        x=centres,
        y=percents,
        error_y={"array": reaches, "width": 3, "thickness": 1.5, "color": INK},
        mode="markers",
        marker={"size": 1, "color": INK},
        showlegend=False,
        hoverinfo="skip",
        xaxis="x2",
        yaxis="y2",
    )


def _bar_numbers(bars: Sequence[tuple[float, float, float, float | None]], pixel: float, size: int) -> go.Scatter:
    """The numbers on bars. A bar is given by its centre, its per cent, the upper end of its error bar, and the reported
    per cent, whose diamond the number must not cover. `pixel` is the height of one px in per cent."""
    heights = [
        above + 12 * pixel if above is not None and -10 * pixel < above - top < 32 * pixel else top
        for _, _, top, above in bars
    ]
    return go.Scatter(
        x=[centre for centre, *_ in bars],
        y=heights,
        text=[f"{percent:.1f}" for _, percent, *_ in bars],
        mode="text",
        textposition="top center",
        textfont={"size": size},
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
        xaxis="x2",
        yaxis="y2",
    )


def _flat_in_legend() -> go.Bar:
    return go.Bar(
        x=[None],
        y=[None],
        name=f"flat: range below {STRAIGHT_WITHIN:g}",
        marker={"color": "white", "line": {"color": INK, "width": 2}},
        xaxis="x2",
        yaxis="y2",
    )


def _legend_rows(figure: go.Figure) -> int:
    """The rows of the legend: if the entries do not fit into one row, they form columns as wide as the widest entry."""
    shown = [trace.name for trace in figure.data if trace.showlegend is not False]
    widths = [LEGEND_SYMBOL + LEGEND_CHARACTER * len(name) for name in shown]
    columns = len(shown) if sum(widths) <= WIDTH else max(1, WIDTH // max(widths))
    return -(-len(shown) // columns)


def _diamonds(shares: Sequence[tuple[float, float, Variant]]) -> go.Scatter:
    return go.Scatter(
        x=[x for x, _, _ in shares],
        y=[percent for _, percent, _ in shares],
        mode="markers",
        name=REPORTED,
        marker={"symbol": "diamond", "size": 14, "color": "white", "line": {"color": INK, "width": 2.5}},
        cliponaxis=False,
        customdata=[plain(variant.label) for _, _, variant in shares],
        hovertemplate="%{customdata}: %{y:.3~g}%",
        xaxis="x2",
        yaxis="y2",
    )
