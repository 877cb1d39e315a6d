"""What sparse Jacobians cost over a sweep of the coefficient λ: the trade-off, and a grid of such charts.

Here: drawing a table of runs, and finding the knee of its curve. Not here: making the table
(`jsae_core.training_runs`), looking up reported runs (`jsae_core.reported`), figures of a single pair (`thresholds`,
`quality`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from jsae_core.figures.labels import SMALL, Room, along, around, beside, boxes
from jsae_core.figures.style import INK, WIDTH, apply_style, percent, plain
from jsae_core.figures.thresholds import REPORTED
from jsae_core.terms import AT_RECONSTRUCTION

SPARSITY = ("l1_over_l2", "kurtosis", "above_0.005", "above_0.01", "above_0.02")
QUALITY = ("ce_score", "kl_score", "explained_variance_output", "accounted_share")
LAMBDA, SHARE, SCORE, ACCOUNTED = "jacobian_coefficient", "above_0.01", "ce_score", "accounted_share"
DEFINITION = "jacobian_at"  # the column that says where a run's Jacobian was evaluated
EVALUATED = {"input": "at the true input", "reconstruction": "at the input SAE's reconstruction"}
# the settings, besides λ, in which runs may differ, and how their values are introduced; equal runs form a group
SETTINGS = {
    "model": "",
    "layer": "layer ",
    "k": "k = ",
    "d_sae": "d_sae = ",
    "objective": "",
    "randomize_llm_weights": "",
}
TEXTS = ("model", "objective")  # the settings that are text, not numbers
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
ROOM = 0.07  # free space at each end of an axis, as a share of the range of the values
JOINING = {"color": "#999999", "width": 1.5}
NO_PENALTY = "#BBBBBB"  # λ = 0, which has no logarithm


class _Measure(NamedTuple):
    """A measure that can be drawn on an axis. The axis ends at `least` and `most` even if there are values beyond."""

    name: str
    hint: str = ""  # added to the title
    least: float = -np.inf
    most: float = np.inf
    narrowest: float = 0  # the least range of the axis
    unit: float = 1  # factor from the number in the table to the drawn one
    log: bool = False  # a logarithmic axis; then `least`, `most` and `narrowest` are decimal logarithms

    def scaled(self, values: pd.Series) -> np.ndarray:
        numbers = self.unit * values.to_numpy(dtype=float)
        return np.log10(np.maximum(numbers, 1e-300)) if self.log else numbers


class _Axis(NamedTuple):
    """The range of a measure that an axis shows, in scaled numbers (see `_Measure.scaled`)."""

    measure: _Measure
    low: float
    high: float

    def beyond(self, values: pd.Series) -> np.ndarray:
        """-1 for values below the range, 1 for values above it, otherwise 0."""
        scaled = self.measure.scaled(values)
        return (scaled > self.high).astype(int) - (scaled < self.low).astype(int)

    def places(self, values: pd.Series) -> np.ndarray:
        """The positions at which values are drawn; values beyond the axis are drawn at its end."""
        scaled = self.measure.scaled(values)
        inset = ROOM / 2 * (self.high - self.low)
        ends = scaled.clip(self.low + inset, self.high - inset)
        inside = np.where(self.beyond(values) == 0, scaled, ends)
        return 10**inside if self.measure.log else inside

    def pixels(self, places: np.ndarray, length: float) -> np.ndarray:
        """Px from the lower end of an axis of this length; the axis must not be logarithmic."""
        return (places - self.low) / (self.high - self.low) * length

    def layout(self, nticks: int = 6) -> dict:
        layout = {"range": [self.low, self.high], "nticks": nticks}
        return layout | {"type": "log", **_log_ticks(self.low, self.high)} if self.measure.log else layout


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
    given = None if reported is None else _checked_reported(reported)
    numbers = [name for name in (SHARE, SCORE, ACCOUNTED) if name in runs]
    drawn, remark = _drawn(runs, [LAMBDA, SHARE, SCORE], numbers, given)
    reported = drawn.iloc[:0] if given is None else given
    x, y = (_axis(_measure(name), pd.concat([drawn[name], reported[name]])) for name in (SHARE, SCORE))
    groups = _groups(drawn)
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
    return _surround(figure, _colour_axis(drawn[LAMBDA]), LEFT, BELOW)


def _add_accounted(figure: go.Figure, drawn: pd.DataFrame, groups: pd.Series, x: _Axis, height: int) -> None:
    """Add a panel below with the share of the output latents that the input latents account for. A pair can make its
    Jacobian sparse by bypassing the input latents, which no score reveals."""
    y = _axis(_measure(ACCOUNTED), drawn[ACCOUNTED])
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
    drawn, remark = _drawn(runs, [LAMBDA], [name for name in measures if name in runs])
    known = [name for name in measures if name in drawn and drawn[name].notna().any()]
    rows, columns = ([name for name in names if name in known] for names in (quality, sparsity))
    for kind, names, left in (("sparsity", sparsity, columns), ("quality", quality, rows)):
        if not left:
            raise ValueError(f"no finished run has a number of {kind}; expected one of {', '.join(names)}")
    axes = {name: _axis(_measure(name), drawn[name]) for name in known}
    groups = _groups(drawn)

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
        figure.update_yaxes(title_text=_title(down), row=row, col=1)
    for column, across in enumerate(columns, start=1):
        # more or larger numbers would touch each other
        layout = axes[across].layout(nticks=4 if axes[across].measure.unit == 100 else 3)
        figure.update_xaxes(col=column, tickangle=0, tickfont={"size": SMALL - 2}, **layout)
        figure.update_xaxes(title_text=_title(across), row=len(rows), col=column)
    figure.add_traces(_symbols(groups, {}))
    unknown = [plain(_measure(name).name) for name in measures if name not in known]
    remark += f" · no run has {', '.join(unknown)}" if unknown else ""
    remark += _remark_on_marks(figure, groups)
    title = "Sparser, or merely smaller, and at what cost?"
    answered = [name for name in (SHARE, "kurtosis", "l1_over_l2", SCORE) if name in known] or known
    apply_style(figure, title, _answer(drawn, groups, *answered), subtitle + remark, height)
    return _surround(figure, _colour_axis(drawn[LAMBDA]), GRID_LEFT, BELOW + SECOND_LINE)


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
    measure = _measure(name)
    ends = [percent(end) if measure.unit == 100 else f"{end:#.3g}" for end in (first, last)]
    in_words = ends[0] if ends[0] == ends[1] else " → ".join(ends)
    return f"{measure.name} {in_words}".replace("-", "\N{MINUS SIGN}")


def _at_knees(knees: Mapping[str, _Knee]) -> str:
    """A sentence on where the curve of a single group bends; for several groups the legend shows it."""
    return "".join(
        f" The curve bends at λ = {_three_digits(knee.coefficient)}." for knee in knees.values() if len(knees) == 1
    )


def _drawn(
    runs: pd.DataFrame, required: Sequence[str], numbers: Sequence[str], reported: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, str]:
    """Select the runs to draw: the finished ones that have all `required` columns, with the columns `numbers` as
    floats. Also return a remark on these runs and on those left out. The definition of the shares depends on the
    reported runs, which are drawn beside them. Raises ValueError if no run is left."""
    missing = [name for name in ["name", "state", "deleted", DEFINITION, *SETTINGS, *required] if name not in runs]
    if missing:
        raise ValueError(f"the table of runs lacks {', '.join(missing)}")
    if runs.empty:
        raise ValueError("the table of runs has no run; expected at least one")
    finished = runs[runs["state"] == "finished"].reset_index(drop=True)
    if finished.empty:
        raise ValueError(f"none of the {len(runs)} runs is finished; expected at least one")
    finished, definition = _of_one_definition(finished, reported)
    odd = odd_runs(finished, numbers)
    possible = finished.drop(index=odd.index)
    if possible.empty:
        raise ValueError(f"none of the {len(finished)} finished runs has possible numbers: {', '.join(odd[:3])}")
    possible = possible.assign(**{name: possible[name].astype(float) for name in [LAMBDA, *numbers]})
    drawn = possible.dropna(subset=required).reset_index(drop=True)
    if drawn.empty:
        raise ValueError(f"no finished run has {' and '.join(required)}; expected at least one")
    return drawn, definition + _remark_on_runs(drawn, len(runs) - len(finished), len(possible) - len(drawn), odd)


def _of_one_definition(finished: pd.DataFrame, reported: pd.DataFrame | None) -> tuple[pd.DataFrame, str]:
    """The runs with their measures of the Jacobian by a single definition, so that no axis mixes two: at the
    reconstruction if any run, reported ones included, is only known there. And a remark on it for the subtitle."""
    named = {*finished[DEFINITION].dropna(), *(() if reported is None else reported[DEFINITION])}
    if "reconstruction" not in named:
        return finished, f" · J {EVALUATED['input']}" if named else ""
    only_at_reconstruction = finished[DEFINITION] == "reconstruction"
    unknown = pd.Series(np.nan, finished.index)
    name_at_reconstruction = {name: f"{name}{AT_RECONSTRUCTION}" for name in finished}
    of_jacobian = [
        name for name in name_at_reconstruction if name in SPARSITY or name_at_reconstruction[name] in finished
    ]
    at_reconstruction = {
        name: finished[name].where(only_at_reconstruction, finished.get(name_at_reconstruction[name], unknown))
        for name in of_jacobian
    }
    return finished.assign(**at_reconstruction), f" · J {EVALUATED['reconstruction']}"


def odd_runs(runs: pd.DataFrame, numbers: Sequence[str] = ()) -> pd.Series:
    """The finished runs with an impossible λ, share or other measure, which these figures do not draw. The series has
    the index of the table and names the impossible number of each run ("above_0.01 = 8.2").

    Args:
        numbers: columns to check besides those that the figures always show.
    """
    finished = runs[runs["state"] == "finished"]
    at_reconstruction = [f"{name}{AT_RECONSTRUCTION}" for name in SPARSITY]
    known = dict.fromkeys(
        [LAMBDA, *SPARSITY, *at_reconstruction, *QUALITY, "kl_score_input", "kl_score_output", *numbers]
    )
    complaints = {
        name: _impossible(name, finished[name].astype(float)).map(f"{name} = {{:g}}".format)
        for name in known
        if name in finished
    }
    return pd.concat(complaints.values()).groupby(level=0).first() if complaints else pd.Series(dtype="str")


def _impossible(name: str, numbers: pd.Series) -> pd.Series:
    """The numbers that no run can have: infinite ones, a λ below 0, a share outside [0, 1]."""
    wrong = np.isinf(numbers)
    wrong |= (numbers < 0) if name == LAMBDA or name.startswith("above_") else False
    wrong |= (numbers > 1) if name.startswith("above_") else False
    return numbers[wrong]


def _remark_on_runs(drawn: pd.DataFrame, unfinished: int, incomplete: int, odd: pd.Series) -> str:
    remark = f" · {len(drawn)} run{'s' if len(drawn) > 1 else ''}"
    deleted = int(drawn["deleted"].sum())
    remark += f", {deleted} of them deleted upstream" if deleted else ""
    examples = ", ".join(odd[:1]) + (", …" if len(odd) > 1 else "")
    reasons = ((unfinished, "not finished"), (incomplete, "incomplete"), (len(odd), f"odd ({examples})"))
    left_out = [f"{n} {reason}" for n, reason in reasons if n]
    return remark + (f"; left out: {', '.join(left_out)}" if left_out else "")


def _checked_reported(reported: pd.DataFrame) -> pd.DataFrame:
    names = [LAMBDA, SHARE, SCORE]
    missing = [name for name in [*names, DEFINITION] if name not in reported]
    if missing:
        raise ValueError(f"the table of reported runs lacks {', '.join(missing)}")
    reported = reported.assign(**{name: reported[name].astype(float) for name in names})
    for name in names:
        impossible = _impossible(name, reported[name])
        if not impossible.empty:
            raise ValueError(f"the table of reported runs holds {name} = {impossible.iloc[0]:g}, which is impossible")
    if reported[names].isna().any(axis=None):
        raise ValueError("the table of reported runs holds NaN")
    return reported


def _measure(name: str) -> _Measure:
    """How a column of the table is drawn."""
    if name.startswith("above_"):
        return _Measure(f"|J| ≥ {name.removeprefix('above_')}", "(%)", 0, 100, narrowest=2, unit=100)
    if name == "kurtosis":
        return _Measure("kurtosis", "↑ sparser", least=0, narrowest=0.3, log=True)
    if name == "l1_over_l2":
        return _Measure("L1/L2", "↓ sparser", 0, 1, narrowest=0.02)
    if name == ACCOUNTED:
        return _Measure("accounted share", "by the input latents", -1, 1.5, narrowest=0.02)
    scores = {"ce_score": "CE score", "kl_score": "KL score", "explained_variance": "explained variance"}
    sides = {"": "mean of both SAEs", "_input": "input SAE", "_output": "output SAE"}
    for score, title in scores.items():
        for side, hint in sides.items():
            if name == score + side:
                return _Measure(title, hint, 0, 1, narrowest=0.02)
    return _Measure(name)


def _title(name: str) -> str:
    measure = _measure(name)
    small = f'<span style="font-size:{SMALL - 2}px">{plain(measure.hint)}</span>'
    return plain(measure.name) + (f"<br>{small}" if measure.hint else "")


def _axis(measure: _Measure, values: pd.Series) -> _Axis:
    """The axis that shows these values, of which at least one is not NaN."""
    inside = measure.scaled(values.dropna()).clip(measure.least, measure.most)
    low, high = inside.min(), inside.max()
    reach = max(high - low, measure.narrowest) or 1
    middle, half = (low + high) / 2, (0.5 + ROOM) * reach
    return _Axis(measure, float(middle - half), float(middle + half))


def _log_ticks(low: float, high: float) -> dict:
    """Ticks for an axis or a colour bar from 10**low to 10**high: powers of ten; if these are few, also 2 and 5 times
    them; if even these are few, all multiples, of which only 1, 2 and 5 are written if there are many."""
    decades = 10.0 ** np.arange(np.floor(low), np.ceil(high) + 1)
    for steps in ([1], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]):
        ticks = np.outer(decades, steps).ravel()
        ticks = ticks[(ticks >= 10**low) & (ticks <= 10**high)]
        if ticks.size > 2:
            break
    round_ones = np.isin([f"{tick:.0e}"[0] for tick in ticks], ["1", "2", "5"])
    written = round_ones if ticks.size > 3 and round_ones.sum() > 1 else np.ones_like(round_ones)
    return {
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" if shown else "" for tick, shown in zip(ticks, written, strict=True)],
    }


def _groups(runs: pd.DataFrame) -> pd.Series:
    """The name of each run's group, a category."""
    if_missing = dict.fromkeys(TEXTS, "?") | {"randomize_llm_weights": False}
    settings = runs[list(SETTINGS)].fillna(if_missing).astype({name: float for name in SETTINGS if name not in TEXTS})
    differing = [name for name in SETTINGS if settings[name].nunique(dropna=False) > 1]
    numbers = settings.groupby(list(SETTINGS), dropna=False).ngroup()
    names = []
    for _, group in settings[differing].groupby(numbers):
        names.append(", ".join(_setting(name, group[name].iloc[0]) for name in differing))
    return pd.Series(pd.Categorical.from_codes(numbers, names), index=runs.index)


def _setting(name: str, value: str | float) -> str:
    if name in TEXTS:
        return str(value)
    if name == "randomize_llm_weights":
        return "randomised LM" if value == 1 else "pretrained LM"
    return SETTINGS[name] + ("?" if np.isnan(value) else f"{value:.0f}")


def _dots(runs: pd.DataFrame, groups: pd.Series, across: tuple[_Axis, str], down: tuple[_Axis, str]) -> pd.DataFrame:
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


def _circles(dots: pd.DataFrame, axes: tuple[_Axis, _Axis], size: int) -> go.Scatter:
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


def _diamonds(reported: pd.DataFrame, x: _Axis, y: _Axis) -> go.Scatter:
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
    axes: tuple[_Axis, _Axis],
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


def _pixels(axes: tuple[_Axis, _Axis], x: np.ndarray, y: np.ndarray) -> np.ndarray:
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


def _colour_axis(coefficients: pd.Series) -> dict:
    """Perceptually uniform over the logarithm of λ, with a block of another colour at the lower end for zero."""
    positive = coefficients[coefficients > 0]
    low, high = np.log10([positive.min(), positive.max()]) if positive.size else (0.0, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    ticks = _log_ticks(low, high)
    values, texts = np.log10(ticks["tickvals"]), ticks["ticktext"]
    zeros = (coefficients == 0).any()
    block = 0.1 * (high - low) if zeros else 0
    share = block / (high - low + block)
    # without the light end of the scale, which would not be visible on white
    colours = sample_colorscale("viridis", np.linspace(0, 0.93, 24))
    scale = [[float(place), colour] for place, colour in zip(np.linspace(share, 1, 24), colours, strict=True)]
    if zeros:
        edge = 0.99 * share  # so that rounding does not put the smallest λ into the block
        scale = [[0, NO_PENALTY], [edge, NO_PENALTY], [edge, colours[0]], *scale]
        values, texts = [low - block / 2, *values], ["0", *texts]
    return {
        "colorscale": scale,
        "cmin": low - block,
        "cmax": high,
        "showscale": coefficients.nunique() > 1,
        "colorbar": {
            "title": {"text": "λ", "side": "top"},
            "tickvals": values,
            "ticktext": texts,
            "tickfont": {"size": SMALL},
            "x": 1,
            "xpad": 14,
            "thickness": 18,
            "len": 1,
            "ypad": 0,
            "outlinewidth": 1,
        },
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
