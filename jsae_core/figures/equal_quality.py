"""Pairs on the trained and on the randomised language model, at equal explained variance: how many elements of the
Jacobian are large, and how much the input latents account for.

Here: drawing points, lines and interpolated values. Not here: measuring, and interpolating between pairs
(`measures.interpolation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jsae_core.figures.labels import SMALL, Room, along, beside, boxes
from jsae_core.figures.style import INK, Variant, apply_style, plain, require_variants
from jsae_core.terms import Z95

QUANTITIES = {"share": "elements with |J| ≥ 0.01 (%)", "accounted": "accounted share (%)"}
READ_OFF = "read off at equal explained variance"
HEIGHT = 430
PANEL = (344, 322)  # px, the width and height of a panel in a picture
MARK = 11  # px
# of what an axis spans: room at its ends, and at the left for a label; and the least that it spans (percentage points)
ROOM, LABEL_ROOM, LEAST_SPAN = 0.12, 0.25, 1.0


class PairNumbers(NamedTuple):
    """Shares measured on a pair, each with its standard error; between 0 and 1, except the accounted share.

    Attributes:
        coefficient: λ; None for values interpolated between pairs.
        explained: share of the variance that the output SAE explains.
        share: share of the Jacobian's elements with |J| of 0.01 or more.
        accounted: the accounted share.
    """

    coefficient: float | None
    explained: tuple[float, float]
    share: tuple[float, float]
    accounted: tuple[float, float]


def equal_quality_figure(
    pairs: Mapping[Variant, Sequence[PairNumbers]],
    compared: PairNumbers,
    read_off: PairNumbers | None,
    subtitle: str,
) -> go.Figure:
    """Left the share of elements with |J| of 0.01 or more, right the accounted share, against the variance that the
    output SAE explains. Each language model has a line through its pairs, with a point for each λ. A dotted line marks
    the explained variance of the pair `compared`, a diamond the interpolated value of pairs on the randomised model
    there. Error bars are 95% intervals.

    Args:
        pairs: first the pairs on the trained language model, then those on the one with randomised weights, each in any
            order.
        compared: one of the pairs on the trained model.
        read_off: the values of pairs on the randomised model, interpolated at the explained variance of `compared`;
            None if no two of them enclose it.
        subtitle: model, layer and settings.

    Raises:
        ValueError: there are not exactly two language models, or one has no pair.
    """
    require_variants(pairs)
    if len(pairs) != 2 or not all(pairs.values()):
        raise ValueError(f"there are pairs of {len(pairs)} language models; expected two, with at least one pair each")
    figure = make_subplots(cols=2, horizontal_spacing=0.14)
    everything = [*(pair for of_variant in pairs.values() for pair in of_variant), *([read_off] if read_off else [])]
    x_reach = _reach([pair.explained for pair in everything], LABEL_ROOM)
    for column, (quantity, title) in enumerate(QUANTITIES.items(), start=1):
        y_reach = _reach([getattr(pair, quantity) for pair in everything])
        places = _label_places(pairs, compared, read_off, quantity, x_reach, y_reach)
        for place, (variant, of_variant) in enumerate(pairs.items()):
            line = _line(variant, of_variant, quantity, "solid" if place == 0 else "dash", places[place])
            figure.add_trace(line.update(showlegend=column == 1), row=1, col=column)
        if read_off is not None:
            figure.add_trace(_diamond(read_off, quantity).update(showlegend=column == 1), row=1, col=column)
        figure.add_vline(
            100 * compared.explained[0], line={"dash": "dot", "color": INK, "width": 1.5}, row=1, col=column
        )
        figure.update_xaxes(title_text="variance explained, output SAE (%)", nticks=6, range=x_reach, row=1, col=column)
        figure.update_yaxes(title_text=title, nticks=6, range=y_reach, row=1, col=column)
    question = "Does sparsity need a trained language model, at equal quality?"
    return apply_style(figure, question, _answer(pairs, compared, read_off), subtitle, HEIGHT)


def _answer(pairs: Mapping[Variant, Sequence[PairNumbers]], compared: PairNumbers, read_off: PairNumbers | None) -> str:
    trained, randomised = (variant.label for variant in pairs)
    explained = f"{100 * compared.explained[0]:.0f}% explained variance"
    if read_off is None:
        randomised_explained = [pair.explained[0] for pair in [*pairs.values()][1]]
        which = "larger" if min(randomised_explained) > compared.explained[0] else "smaller"
        return (
            f"At {explained} no pair on the randomised model can be compared with {trained}: they explain "
            f"{100 * min(randomised_explained):.0f} to {100 * max(randomised_explained):.0f}%. It takes a {which} λ "
            "in the sweep."
        )
    return (
        f"At {explained}, |J| ≥ 0.01: {_with_interval(compared.share)} ({trained}), {_with_interval(read_off.share)} "
        f"({randomised}, {READ_OFF}); accounted: {_with_interval(compared.accounted)}, "
        f"{_with_interval(read_off.accounted)}."
    )


def _with_interval(number: tuple[float, float]) -> str:
    value, error = (100 * part for part in number)
    return f"{value:.1f} ± {Z95 * error:.1f}%".replace("-", "\N{MINUS SIGN}")


def _reach(numbers: Sequence[tuple[float, float]], room_below: float = ROOM) -> list[float]:
    """The range of an axis in percent that holds these shares with their 95% intervals, with room at both ends."""
    low = min(100 * (value - Z95 * error) for value, error in numbers)
    high = max(100 * (value + Z95 * error) for value, error in numbers)
    span = max(high - low, LEAST_SPAN)
    return [low - room_below * span, high + ROOM * span]


def _in_order(pairs: Sequence[PairNumbers]) -> list[PairNumbers]:
    return sorted(pairs, key=lambda pair: pair.explained)


def _label(pair: PairNumbers) -> str:
    return f"λ {pair.coefficient:g}"


def _label_places(
    pairs: Mapping[Variant, Sequence[PairNumbers]],
    compared: PairNumbers,
    read_off: PairNumbers | None,
    quantity: str,
    x_reach: Sequence[float],
    y_reach: Sequence[float],
) -> list[list[str | tuple[float, float] | None]]:
    """For each language model, where the label of each of its pairs stands, in their order: where it covers no mark,
    line, interval or other label. None: nowhere, so that it is only shown when pointed at."""

    def px(points: Sequence[tuple[float, float]]) -> np.ndarray:
        lows, highs = np.transpose([x_reach, y_reach])
        return (100 * np.array(points) - lows) / (highs - lows) * PANEL

    def mark(pair: PairNumbers) -> tuple[float, float]:
        return pair.explained[0], getattr(pair, quantity)[0]

    def interval(pair: PairNumbers) -> list[np.ndarray]:
        (x, x_error), (y, y_error) = pair.explained, getattr(pair, quantity)
        across = px([(x - Z95 * x_error, y), (x + Z95 * x_error, y)])
        return [across, px([(x, y - Z95 * y_error), (x, y + Z95 * y_error)])]

    ordered = [_in_order(of_variant) for of_variant in pairs.values()]
    shown = [pair for of_variant in ordered for pair in of_variant] + ([read_off] if read_off else [])
    x_compared = px([mark(compared)])[0, 0]
    dotted = np.array([[x_compared, 0], [x_compared, PANEL[1]]])
    lines = [dotted, *(px([mark(pair) for pair in of_variant]) for of_variant in ordered)]
    lines += [line for pair in shown for line in interval(pair)]
    room = Room(
        PANEL,
        boxes(px([mark(pair) for pair in shown]), MARK / 2 + 1),
        boxes(np.concatenate([along(line) for line in lines if len(line) > 1]), 1),
    )
    return [
        [room.first_free(beside(px([mark(pair)])[0], MARK, len(_label(pair)))) for pair in of_variant]
        for of_variant in ordered
    ]


def _line(
    variant: Variant,
    pairs: Sequence[PairNumbers],
    quantity: str,
    dash: str,
    places: Sequence[str | tuple[float, float] | None],
) -> go.Scatter:
    ordered = _in_order(pairs)
    numbers = [getattr(pair, quantity) for pair in ordered]
    return go.Scatter(
        x=[100 * pair.explained[0] for pair in ordered],
        y=[100 * value for value, _ in numbers],
        error_x={"array": [100 * Z95 * pair.explained[1] for pair in ordered], "thickness": 1, "width": 3},
        error_y={"array": [100 * Z95 * error for _, error in numbers], "thickness": 1, "width": 3},
        mode="lines+markers+text",
        name=plain(variant.label),
        line={"color": variant.colour, "width": 2.5, "dash": dash},
        marker={"size": MARK, "symbol": "circle" if dash == "solid" else "square"},
        text=[_label(pair) if place else "" for pair, place in zip(ordered, places, strict=True)],
        textposition=[place or "middle right" for place in places],
        textfont={"size": SMALL - 2},
        customdata=[_label(pair) for pair in ordered],
        cliponaxis=False,
        hovertemplate="%{customdata}: %{y:.3g}% at %{x:.3g}% explained<extra>" + plain(variant.label) + "</extra>",
    )


def _diamond(pair: PairNumbers, quantity: str) -> go.Scatter:
    value, error = getattr(pair, quantity)
    return go.Scatter(
        x=[100 * pair.explained[0]],
        y=[100 * value],
        error_y={"array": [100 * Z95 * error], "thickness": 2, "width": 6, "color": INK},
        mode="markers",
        name=READ_OFF,
        marker={"symbol": "diamond", "size": 14, "color": "white", "line": {"color": INK, "width": 2.5}},
        hovertemplate=f"{READ_OFF}: %{{y:.3g}}%<extra></extra>",
    )
