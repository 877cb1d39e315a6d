"""The shapes of output latents as functions of input latents: examples of each shape, and bars of their shares.

Here: the figure and its bars. Not here: charts of curves (`curve_charts.py`), measuring and classifying curves
(`measures.linearity`), the curves of a sample (`function_curves.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go

from jsae_core.figures.curve_charts import (
    AXIS_TITLE,
    CHART,
    HEADING,
    READING,
    RIGHT,
    SMALL,
    Chart,
    all_curves,
    grid_of_charts,
    heading_of,
    note,
    traces_of,
    use_pixels,
)
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
)
from jsae_core.figures.thresholds import REPORTED
from jsae_core.terms import FUNCTION_SHAPES as SHAPES
from jsae_core.terms import RELATIVE_SHAPES, STRAIGHT_WITHIN, STRAIGHT_WITHIN_SHARE

EXAMPLE_COLUMNS, EXAMPLE_ROWS = 2, 2  # charts of each shape and variant
LEFT = 68  # px beside charts above bars
LEGEND_ROW, LEGEND_SYMBOL, LEGEND_CHARACTER = 30, 42, 9  # px
BARS, BARS_BELOW = 280, 90  # px: the height of the bars' axis, and of the space below it with one row of legend
RULE = f"; linear: within {STRAIGHT_WITHIN:g} of a line"
RELATIVE, RELATIVE_RULE = "relative_shape", f"relative rule: within {STRAIGHT_WITHIN_SHARE:.0%} of its range"
ERRORS = " · error bars: ± 2 SE, by document"
MEASURED = " · numbers as measured here"


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
    curves = all_curves(variants)
    expected = {variant: _reported_percents(variant, given, curves) for variant, given in (reported or {}).items()}

    figure = go.Figure()
    width = (WIDTH - LEFT - RIGHT) / (EXAMPLE_COLUMNS * len(SHAPES))
    group, block = EXAMPLE_COLUMNS * width, HEADING + EXAMPLE_ROWS * CHART
    charts: dict[Variant, list[Chart]] = {variant: [] for variant in curves}
    for column, shape in enumerate(SHAPES):
        centre = (column + 0.5) * group
        figure.add_annotation(note(f"<b>{shape}</b>", centre, 0))
        for row, (variant, kept) in enumerate(curves.items()):
            top = 2 * HEADING + row * block
            examples = kept[kept["shape"] == shape].sort_values("flat", kind="stable")
            examples = examples[: EXAMPLE_COLUMNS * EXAMPLE_ROWS]
            charts[variant] += grid_of_charts(examples, EXAMPLE_COLUMNS, width, column * group, top)
            if examples.empty:
                figure.add_annotation(note("none among the kept curves", centre, top + CHART / 2, size=SMALL))
    figure.add_traces(traces_of(charts))
    for row, variant in enumerate(curves):
        figure.add_annotation(heading_of(variant, HEADING + row * block))
    _add_bars(figure, variants, expected, errors or {})

    height = HEADING + len(curves) * block
    whole = height + AXIS_TITLE + HEADING + BARS
    below = BARS_BELOW + LEGEND_ROW * (_legend_rows(figure) - 1)
    remark = READING + RULE + (ERRORS if errors else "") + (MEASURED if any(expected.values()) else "")
    title = "How many of these functions are linear?"
    apply_style(figure, title, _answer_on_shapes(variants), subtitle + remark, height=whole + below)
    use_pixels(figure, len(SHAPES) * group, height)
    return figure.update_layout(
        yaxis={"domain": [1 - height / whole, 1], "title": {"standoff": 42}},
        yaxis2={"domain": [0, BARS / whole]},
        margin={"l": LEFT, "r": RIGHT, "b": below, "autoexpand": False},
        legend={"traceorder": "normal"},
    )


def _answer_on_shapes(variants: Mapping[Variant, pd.DataFrame]) -> str:
    by_rule = [
        of_each(
            {variant: percent(float((samples[column] == "linear").mean())) for variant, samples in variants.items()}
        )
        for column in ("shape", RELATIVE)
        if all(column in samples for samples in variants.values())
    ]
    return f"By the paper's rule {by_rule[0]}" + "".join(f"; by the relative rule {of}" for of in by_rule[1:]) + "."


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
                note(f"<b>{text}</b>", kinds[first].centre - 0.45, pixel * BARS, FONT_SIZE - 2, "left")
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
