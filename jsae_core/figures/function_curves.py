"""Output latents as functions of input latents: a small chart for each sample, in pages.

Here: the figure and its slider. Not here: the charts (`curve_charts.py`), measuring curves (`measures.linearity`),
bars of their shapes (`function_shapes.py`), single interventions (`ablation.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from jsae_core.figures.curve_charts import (
    AXIS_TITLE,
    CHART,
    HEADING,
    READING,
    RIGHT,
    SMALL,
    all_curves,
    grid_of_charts,
    heading_of,
    traces_of,
    use_pixels,
)
from jsae_core.figures.style import WIDTH, Variant, apply_style, of_each, percent
from jsae_core.terms import FUNCTION_SHAPES as SHAPES

COLUMNS, ROWS = 5, 2  # charts of each variant on a page
LEFT = 36  # px beside all charts
SLIDER = 104  # px below charts


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
    curves = {variant: kept[:n_curves] for variant, kept in all_curves(variants).items()}
    for variant, kept in curves.items():
        if kept.empty:
            raise ValueError(f"no sample of {variant.label!r} has its curve; expected at least one")

    figure = go.Figure()
    block, on_page = HEADING + ROWS * CHART, COLUMNS * ROWS
    width = (WIDTH - LEFT - RIGHT) / COLUMNS
    most = max(map(len, curves.values()))
    starts = range(0, most, on_page)
    for start in starts:
        charts = {
            variant: grid_of_charts(kept[start : start + on_page], COLUMNS, width, 0, HEADING + row * block)
            for row, (variant, kept) in enumerate(curves.items())
        }
        figure.add_traces([trace.update(visible=start == 0, meta=start) for trace in traces_of(charts)])
    for row, variant in enumerate(curves):
        figure.add_annotation(heading_of(variant, row * block))

    height, below = len(curves) * block, AXIS_TITLE + (SLIDER if len(starts) > 1 else 0)
    title = "What are output latents as functions of input latents?"
    apply_style(figure, title, _answer(variants), subtitle + READING, height=height + below)
    use_pixels(figure, COLUMNS * width, height)
    if len(starts) > 1:
        figure.update_layout(sliders=[_slider(figure, {start: min(start + on_page, most) for start in starts})])
    margin = {"l": LEFT, "r": RIGHT, "b": below, "autoexpand": False}
    return figure.update_layout(showlegend=False, margin=margin)


def _answer(variants: Mapping[Variant, pd.DataFrame]) -> str:
    simple = {
        variant: percent(float(samples["shape"].isin(SHAPES[:2]).mean())) for variant, samples in variants.items()
    }
    return f"{of_each(simple)} of all that were sampled are {SHAPES[0]} or {SHAPES[1]} by the paper's rule."


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
