"""What sparse Jacobians cost over a sweep of the coefficient λ: the trade-off, and a grid of such charts.

Here: the two figures, the curve of each group of runs and its knee, the marks and their labels. Not here: which runs
are drawn (`sweep_runs`), how a measure is drawn on an axis (`sweep_axes`), making the table
(`jsae_core.training_runs`), looking up reported runs (`jsae_core.reported`), figures of a single pair (`thresholds`,
`quality`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jsae_core.figures.labels import SMALL, Room, along, around, beside, boxes
from jsae_core.figures.style import INK, WIDTH, apply_style, percent, plain
from jsae_core.figures.sweep_axes import Axis, axis_of, colour_axis, measure_of, title_of
from jsae_core.figures.sweep_runs import (
    ACCOUNTED,
    LAMBDA,
    QUALITY,
    SCORE,
    SHARE,
    SPARSITY,
    checked_reported,
    drawn_runs,
    groups_of,
)
from jsae_core.figures.thresholds import REPORTED

SYMBOLS = ("circle", "square", "cross", "star", "bowtie", "hourglass")  # of groups; more could not be distinguished
KNEE = " · ring: the knee, farthest from the line between both ends"
ENOUGH_RUNS = 8  # a group with fewer runs has no knee, since chance decides where its curve bends
LEAST_BEND = 0.02  # of the distance between the ends; a curve that bends less counts as straight and has no knee
JOINED = 25  # a line joins at most so many λ of a group; through more it would be a scribble
SPREAD = " · bars: ± one standard deviation over the runs of a λ"
MANY = 60  # with more runs, the dots are smaller
BEYOND = " · triangles: beyond the axis"

DOT, SMALL_DOT, GRID_DOT, SMALL_GRID_DOT, DIAMOND, RING = 14, 8, 10, 6, 14, 28  # px across
LEFT, RIGHT, BELOW = 108, 96, 84  # px beside the panels (with the colour bar) and below them (without the legend)
GRID_LEFT = 128  # px left of the grid, for titles in two lines and numbers with three decimals
LEGEND_ROW, LEGEND_SYMBOL, LEGEND_CHARACTER = 30, 46, 10  # px
PANEL_WIDTH = WIDTH - LEFT - RIGHT  # px
HEIGHT, BETWEEN = 470, 40  # px: the height of a panel of the trade-off, and the space between two
CELL, GAP, SECOND_LINE = 150, 20, 24  # px in the grid: the height of a panel, the space between panels, a title's line
JOINING = {"color": "#999999", "width": 1.5}


def _three_digits(coefficient: float) -> str:
    """Without an exponent as long as it is short: 3,000."""
    return f"{float(f'{coefficient:.3g}'):,g}"


class _Knee(NamedTuple):
    coefficient: float
    x: float
    y: float

    @property
    def text(self) -> str:
        return f"knee: λ = {_three_digits(self.coefficient)}"


def sweep_tradeoff_figure(runs: pd.DataFrame, subtitle: str, reported: pd.DataFrame | None = None) -> go.Figure:
    """Cross-entropy score against the share of elements with |J| above 0.01: a dot for each run, coloured by its λ and
    labelled with it if the label covers nothing.

    Runs that differ only in λ and the seed form a group. Each group has a symbol, a line through its means at each λ in
    the order of λ, bars of one standard deviation if there are several runs at a λ, and a ring around its knee. The
    knee is the mean that is farthest from the straight line between the means at the smallest and the largest λ, on the
    side of better scores and fewer large elements. (Scaling an axis does not move it.) A group has no knee if its curve
    hardly bends to that side, or if it has fewer than 8 runs; no line if it has more than 25 λ. If there are more
    groups than symbols, there are neither symbols nor knees.

    If the accounted share was measured, a panel below shows it against the same shares of elements.

    All shares have the same definition, which the subtitle names: at the MLP's true input, unless some of the runs or
    of the reported runs are only known at the input SAE's reconstruction. Then all shares are at the reconstruction,
    and runs that are not known there count as incomplete.

    Left out are unfinished runs, finished runs without λ or one of the numbers, and `odd_runs`; runs deleted in wandb
    are drawn. The axis of scores is limited to 0 to 1: scores beyond are triangles at its end.

    Args:
        runs: the table of runs.
        subtitle: model, layer and settings. A remark on how many runs are drawn, deleted and left out is added.
        reported: `jacobian_coefficient`, `above_0.01`, `jacobian_at` and `ce_score` of reported runs, drawn as
            diamonds; may be empty.

    Raises:
        ValueError: a column is missing, there is no finished run with the numbers, or a reported run has an impossible
            number.
    """
    given = None if reported is None else checked_reported(reported)
    numbers = [name for name in (SHARE, SCORE, ACCOUNTED) if name in runs]
    drawn, remark = drawn_runs(runs, [LAMBDA, SHARE, SCORE], numbers, given)
    reported = drawn.iloc[:0] if given is None else given
    x, y = (axis_of(measure_of(name), pd.concat([drawn[name], reported[name]])) for name in (SHARE, SCORE))
    groups = groups_of(drawn)
    dots = _dots(drawn, groups, (x, SHARE), (y, SCORE))
    curves = _curves(dots)
    groups_have_symbols = len(groups.cat.categories) <= len(SYMBOLS)
    knees = {group: knee for group, curve in curves.items() if groups_have_symbols and (knee := _knee(curve))}

    lines, circles = _lines(curves), _circles(dots, (x, y), DOT if len(dots) <= MANY else SMALL_DOT)
    reported = reported.sort_values(LAMBDA).assign(group=REPORTED)
    diamonds = _diamonds(reported, x, y)
    names = _write_labels((x, y), lines, [*knees.values()], [(circles, dots), (diamonds, reported)])
    rings, symbols = _rings([*knees.values()]), _symbols(groups, knees)
    figure = go.Figure([lines, diamonds, circles, rings, *symbols], layout={"annotations": names})
    figure.update_xaxes(title_text="elements with |J| above 0.01 (%)", **x.layout())
    figure.update_yaxes(title_text="CE score (mean of both SAEs)", **y.layout())
    height = HEIGHT
    if ACCOUNTED in drawn and drawn[ACCOUNTED].notna().any():
        height += BETWEEN + HEIGHT
        _add_accounted(figure, drawn, groups, x, height)
    remark += _remark_on_marks(figure, groups) + (KNEE if knees else "")
    title = "What does a sparse Jacobian cost?"
    apply_style(figure, title, _answer(drawn, groups, SHARE, SCORE) + _at_knees(knees), subtitle + remark, height)
    return _surround(figure, colour_axis(drawn[LAMBDA]), LEFT, BELOW)


def _add_accounted(figure: go.Figure, drawn: pd.DataFrame, groups: pd.Series, x: Axis, height: int) -> None:
    """Add a panel below with the share of the output latents that the input latents account for. A pair can make its
    Jacobian sparse by bypassing the input latents, which no score reveals."""
    y = axis_of(measure_of(ACCOUNTED), drawn[ACCOUNTED])
    dots = _dots(drawn, groups, (x, SHARE), (y, ACCOUNTED))
    for trace in (_lines(_curves(dots)), _circles(dots, (x, y), DOT if len(dots) <= MANY else SMALL_DOT)):
        figure.add_trace(trace.update(yaxis="y2"))
    figure.update_layout(
        yaxis_domain=[(HEIGHT + BETWEEN) / height, 1],
        yaxis2={"title": {"text": "accounted share"}, "domain": [0, HEIGHT / height], **y.layout()},
        xaxis_anchor="y2",
    )


def sweep_grid_figure(
    runs: pd.DataFrame, subtitle: str, sparsity: Sequence[str] = SPARSITY, quality: Sequence[str] = QUALITY
) -> go.Figure:
    """A grid of charts for each measure of quality (rows) and of sparsity (columns), with a dot for each run, coloured
    by its λ.

    Charts in a row share their y axis, charts in a column their x axis. Groups have symbols and lines, and measures of
    the Jacobian have one definition, as in `sweep_tradeoff_figure`. A run is missing from charts of numbers that it
    lacks; `odd_runs` are missing from all. Axes are limited to 0 to 1 for scores, explained variance and L1/L2, and
    start at 1 for the kurtosis, whose axis is logarithmic; values beyond are triangles at the end.

    Args:
        runs: the table of runs.
        subtitle: model, layer and settings. A remark is added on how many runs are drawn, deleted and left out, and on
            measures of which no run has a number.
        sparsity: columns of the table.
        quality: columns of the table; if there is no column `kl_score`, it is the mean of `kl_score_input` and
            `kl_score_output`.

    Raises:
        ValueError: a column that describes runs is missing, there is no finished run with a λ, or no run has a number
            of sparsity or none has one of quality.
    """
    if "kl_score" not in runs and {"kl_score_input", "kl_score_output"} <= set(runs):
        runs = runs.assign(kl_score=(runs["kl_score_input"] + runs["kl_score_output"]) / 2)
    measures = dict.fromkeys([*sparsity, *quality])
    drawn, remark = drawn_runs(runs, [LAMBDA], [name for name in measures if name in runs])
    known = [name for name in measures if name in drawn and drawn[name].notna().any()]
    rows, columns = ([name for name in names if name in known] for names in (quality, sparsity))
    for kind, names, left in (("sparsity", sparsity, columns), ("quality", quality, rows)):
        if not left:
            raise ValueError(f"no finished run has a number of {kind}; expected one of {', '.join(names)}")
    axes = {name: axis_of(measure_of(name), drawn[name]) for name in known}
    groups = groups_of(drawn)

    height = len(rows) * (CELL + GAP) - GAP
    figure = make_subplots(
        len(rows),
        len(columns),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=GAP / (WIDTH - GRID_LEFT - RIGHT),
        vertical_spacing=GAP / height,
    )
    for row, down in enumerate(rows, start=1):
        for column, across in enumerate(columns, start=1):
            dots = _dots(drawn, groups, (axes[across], across), (axes[down], down))
            circles = _circles(dots, (axes[across], axes[down]), GRID_DOT if len(drawn) <= MANY else SMALL_GRID_DOT)
            figure.add_trace(_lines(_curves(dots)), row=row, col=column)
            figure.add_trace(circles, row=row, col=column)
        figure.update_yaxes(row=row, **axes[down].layout(nticks=4))
        figure.update_yaxes(title_text=title_of(down), row=row, col=1)
    for column, across in enumerate(columns, start=1):
        # more or larger numbers would touch each other
        layout = axes[across].layout(nticks=4 if axes[across].measure.unit == 100 else 3)
        figure.update_xaxes(col=column, tickangle=0, tickfont={"size": SMALL - 2}, **layout)
        figure.update_xaxes(title_text=title_of(across), row=len(rows), col=column)
    figure.add_traces(_symbols(groups, {}))
    unknown = [plain(measure_of(name).name) for name in measures if name not in known]
    remark += f" · no run has {', '.join(unknown)}" if unknown else ""
    remark += _remark_on_marks(figure, groups)
    title = "Sparser, or merely smaller, and at what cost?"
    answered = [name for name in (SHARE, "kurtosis", "l1_over_l2", SCORE) if name in known] or known
    apply_style(figure, title, _answer(drawn, groups, *answered), subtitle + remark, height)
    return _surround(figure, colour_axis(drawn[LAMBDA]), GRID_LEFT, BELOW + SECOND_LINE)


def _answer(drawn: pd.DataFrame, groups: pd.Series, *names: str) -> str:
    """The range of the numbers in a sentence: from the smallest λ to the largest for a single group, over all runs for
    several groups."""
    if len(groups.cat.categories) > 1 or drawn[LAMBDA].nunique() == 1:
        ranges = [_range_in_words(name, drawn[name].min(), drawn[name].max()) for name in names]
        which = "Over all runs" if len(drawn) > 1 else f"The only run, λ = {drawn[LAMBDA].iloc[0]:g}"
        return f"{which}: {', '.join(ranges)}."
    means = drawn.groupby(LAMBDA)[[*names]].mean()
    ranges = [_range_in_words(name, *means[name].dropna().iloc[[0, -1]]) for name in names]
    return f"From λ = {means.index[0]:g} to {means.index[-1]:g}, {', '.join(ranges)}."


def _range_in_words(name: str, first: float, last: float) -> str:
    measure = measure_of(name)
    ends = [percent(end) if measure.unit == 100 else f"{end:#.3g}" for end in (first, last)]
    in_words = ends[0] if ends[0] == ends[1] else " → ".join(ends)
    return f"{measure.name} {in_words}".replace("-", "\N{MINUS SIGN}")


def _at_knees(knees: Mapping[str, _Knee]) -> str:
    """A sentence on where the curve of a single group bends; for several groups the legend shows it."""
    return "".join(
        f" The curve bends at λ = {_three_digits(knee.coefficient)}." for knee in knees.values() if len(knees) == 1
    )


def _dots(runs: pd.DataFrame, groups: pd.Series, across: tuple[Axis, str], down: tuple[Axis, str]) -> pd.DataFrame:
    """The position and look of the dots of all runs that have both numbers."""
    runs = runs.dropna(subset=[across[1], down[1]])
    groups = groups[runs.index]
    several = 1 < len(groups.cat.categories)
    symbols = np.array(SYMBOLS)[groups.cat.codes % len(SYMBOLS)]
    if len(groups.cat.categories) > len(SYMBOLS):
        symbols = SYMBOLS[0]
    right, up = (axis.beyond(runs[name]) for axis, name in (across, down))
    return pd.DataFrame(
        {
            "x": across[0].places(runs[across[1]]).astype(np.float32),  # half the size
            "y": down[0].places(runs[down[1]]).astype(np.float32),
            "across": across[0].measure.unit * runs[across[1]],
            "down": down[0].measure.unit * runs[down[1]],
            "symbol": np.select(
                [up > 0, up < 0, right > 0, right < 0],
                ["triangle-up", "triangle-down", "triangle-right", "triangle-left"],
                symbols,
            ),
            "run": [
                f"{plain(str(name))}<br>λ = {coefficient:g}" + (f", {plain(group)}" if several else "")
                for name, coefficient, group in zip(runs["name"], runs[LAMBDA], groups, strict=True)
            ],
            "beyond": (right != 0) | (up != 0),
            "group": groups,
            LAMBDA: runs[LAMBDA],
        }
    )


def _curves(dots: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The curve of each group. In the order of λ, and without runs beyond the axes: the means `x` and `y`, the standard
    deviations `sd_x` and `sd_y` (NaN for a single run), and the number of runs `n`."""
    dots = dots[~dots["beyond"]]
    curves = {}
    for name, group in dots.groupby("group", observed=True):
        runs = group.groupby(LAMBDA)[["x", "y"]]
        curves[name] = runs.mean().join(runs.std().add_prefix("sd_")).assign(n=runs.size())
    return curves


def _knee(curve: pd.DataFrame) -> _Knee | None:
    if curve["n"].sum() < ENOUGH_RUNS:
        return None
    curve = curve[["x", "y"]]
    ends = curve.iloc[-1] - curve.iloc[0]
    if not ends["x"] * ends["y"] > 0:
        return None  # there is no trade-off
    moved = (curve - curve.iloc[0]) / ends.abs()
    gained = moved["y"] - moved["x"]
    if not gained.max() > LEAST_BEND:
        return None
    return _Knee(float(gained.idxmax()), *curve.loc[gained.idxmax(), ["x", "y"]])


def _lines(curves: Mapping[str, pd.DataFrame]) -> go.Scatter:
    """The lines of all groups in one trace, with gaps between them; with bars of one standard deviation if several runs
    have the same λ."""
    joined = [curve for curve in curves.values() if len(curve) <= JOINED and (len(curve) > 1 or curve["n"].max() > 1)]

    def end_to_end(name: str) -> np.ndarray:
        return np.concatenate([np.append(curve[name], np.nan) for curve in joined] or [np.empty(0)])

    bars = {"type": "data", "color": JOINING["color"], "thickness": JOINING["width"], "width": 3}
    several = any(curve["n"].max() > 1 for curve in joined)
    return go.Scatter(
        x=end_to_end("x"),
        y=end_to_end("y"),
        error_x={**bars, "array": end_to_end("sd_x")} if several else None,
        error_y={**bars, "array": end_to_end("sd_y")} if several else None,
        mode="lines",
        line=JOINING,
        hoverinfo="skip",
        showlegend=False,
    )


def _circles(dots: pd.DataFrame, axes: tuple[Axis, Axis], size: int) -> go.Scatter:
    names = [plain(axis.measure.name) for axis in axes]
    units = ["%" if axis.measure.unit == 100 else "" for axis in axes]
    return go.Scatter(
        x=dots["x"],
        y=dots["y"],
        mode="markers+text",
        marker={
            "symbol": dots["symbol"].tolist(),
            "size": size,
            "color": np.log10(dots[LAMBDA].clip(lower=1e-30)).astype(np.float32),  # zero is below all others
            "coloraxis": "coloraxis",
            "line": {"color": INK, "width": 1 if size > 6 else 0.5},
        },
        textfont={"size": SMALL},
        hovertext=dots["run"].tolist(),
        customdata=dots[["across", "down"]].to_numpy(dtype=np.float32),
        hovertemplate="%{hovertext}"
        + "".join(
            f"<br>{name}: %{{customdata[{place}]:.4~g}}{unit}"
            for place, (name, unit) in enumerate(zip(names, units, strict=True))
        )
        + "<extra></extra>",
        showlegend=False,
    )


def _diamonds(reported: pd.DataFrame, x: Axis, y: Axis) -> go.Scatter:
    return go.Scatter(
        x=x.places(reported[SHARE]),
        y=y.places(reported[SCORE]),
        mode="lines+markers+text",
        name=REPORTED,
        line={**JOINING, "dash": "dot"},
        marker={"symbol": "diamond", "size": DIAMOND, "color": "white", "line": {"color": INK, "width": 2}},
        textfont={"size": SMALL},
        customdata=reported[[LAMBDA, SHARE, SCORE]] * [1, 100, 1],
        hovertemplate=f"{REPORTED}<br>λ = %{{customdata[0]:~g}}<br>|J| ≥ 0.01: %{{customdata[1]:.4~g}}%<br>"
        "CE score: %{customdata[2]:.4~g}<extra></extra>",
        showlegend=not reported.empty,
    )


def _rings(knees: Sequence[_Knee]) -> go.Scatter:
    return go.Scatter(
        x=[knee.x for knee in knees],
        y=[knee.y for knee in knees],
        mode="markers",
        marker={"symbol": "circle-open", "size": RING, "color": INK, "line": {"width": 2.5}},
        hoverinfo="skip",
        showlegend=False,
    )


def _symbols(groups: pd.Series, knees: Mapping[str, _Knee]) -> list[go.Scatter]:
    """Legend entries for the symbols of groups. They also name the knees, since the panel may have no room for that."""
    names = groups.cat.categories
    return [
        go.Scatter(
            x=[None],
            y=[None],
            mode="markers",
            name=plain(name) + (f" ({knees[name].text})" if name in knees else ""),
            marker={"symbol": symbol, "size": DOT, "color": "white", "line": {"color": INK, "width": 2}},
        )
        for symbol, name in zip(SYMBOLS, names, strict=False)
        if 1 < len(names) <= len(SYMBOLS)
    ]


def _remark_on_marks(figure: go.Figure, groups: pd.Series) -> str:
    n_groups = len(groups.cat.categories)
    remark = f" · {n_groups} settings, not told apart" if n_groups > len(SYMBOLS) else ""
    coloured = [trace for trace in figure.data if trace.marker.coloraxis]
    beyond = any(symbol.startswith("triangle") for trace in coloured for symbol in trace.marker.symbol)
    bars = any(np.isfinite(trace.error_y.array).any() for trace in figure.data if trace.error_y.array is not None)
    return remark + (BEYOND if beyond else "") + (SPREAD if bars else "")


def _write_labels(
    axes: tuple[Axis, Axis],
    lines: go.Scatter,
    knees: Sequence[_Knee],
    marked: Sequence[tuple[go.Scatter, pd.DataFrame]],
) -> list[dict]:
    """Label marks with their λ, in place, if there is room, and return the labels of the knees, which are placed first.
    Of several runs of a group with the same λ, one is labelled."""
    rings = _pixels(axes, np.array([knee.x for knee in knees]), np.array([knee.y for knee in knees]))
    marks, lines = [boxes(rings, RING / 2)], [_pixels(axes, lines.x, lines.y)]
    for trace, _ in marked:
        marks.append(boxes(_pixels(axes, trace.x, trace.y), 0.6 * trace.marker.size))
        if "lines" in trace.mode:
            lines.append(_pixels(axes, trace.x, trace.y))
    room = Room((PANEL_WIDTH, HEIGHT), np.concatenate(marks), boxes(np.concatenate([along(line) for line in lines]), 1))

    names, named = [], set()
    for knee, ring in zip(knees, rings, strict=True):
        shift = room.first_free(around(ring, RING, len(knee.text)))
        if isinstance(shift, tuple):
            named.add((knee.x, knee.y))
            names.append(_name_of_knee(knee, shift))
    for trace, runs in marked:
        labels, labelled = [], set()
        at = _pixels(axes, trace.x, trace.y)
        for x, y, mark, run in zip(trace.x, trace.y, at, zip(runs["group"], runs[LAMBDA], strict=True), strict=True):
            text = f"\xa0{_three_digits(run[1])}\xa0"
            known = run in labelled or (x, y) in named
            place = None if known else room.first_free(beside(mark, trace.marker.size, len(text)))
            labels.append((text, place) if place else ("", "middle right"))
            if place:
                labelled.add(run)
        trace.update(text=[text for text, _ in labels], textposition=[place for _, place in labels])
    return names


def _pixels(axes: tuple[Axis, Axis], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Points in px, one in each row."""
    return np.stack([axes[0].pixels(x, PANEL_WIDTH), axes[1].pixels(y, HEIGHT)], axis=1)


def _name_of_knee(knee: _Knee, shift: tuple[float, float]) -> dict:
    return {
        "text": f"<b>{knee.text}</b>",
        "x": knee.x,
        "y": knee.y,
        "ax": shift[0],
        "ay": shift[1],
        "showarrow": True,
        "arrowhead": 0,
        "arrowwidth": 1.5,
        "arrowcolor": INK,
        "standoff": RING / 2,
        "font": {"size": SMALL},
    }


def _surround(figure: go.Figure, coloraxis: dict, left: int, below: int) -> go.Figure:
    """Add the colour bar, the legend and the margins, in place, and keep Plotly from resizing the panels for them."""
    names = [trace.name for trace in figure.data if trace.showlegend is not False]
    width = LEGEND_SYMBOL + LEGEND_CHARACTER * max(map(len, names), default=0)
    columns = max(1, min(len(names), PANEL_WIDTH // width))
    below += LEGEND_ROW * -(-len(names) // columns)
    return figure.update_layout(
        coloraxis=coloraxis,
        height=figure.layout.height + below,
        margin={"l": left, "r": RIGHT, "b": below, "autoexpand": False},
        legend={"entrywidth": width - LEGEND_SYMBOL, "itemclick": False, "itemdoubleclick": False},
    )
