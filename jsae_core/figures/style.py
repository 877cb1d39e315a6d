"""How every figure looks: size, fonts, title and subtitle, axes, legend; and how a variant is drawn.

Here: what all figures share. Not here: what one figure draws, and the colours of variants, which the caller's catalog
chooses.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import plotly.graph_objects as go

# A figure is as wide as what it is shown in; a picture of it is 900 px wide and may be shown at half of that, so every
# font must still be read at half its size. Where px are counted, it is for this width.
WIDTH = 900
FONT_SIZE, TITLE_SIZE, SUBTITLE_SIZE = 20, 26, 18
SUBTITLE_CHARACTERS = 88  # that fit into one line, in the widest of the fonts below
ANSWER = "answer"
INK, GRID = "#222222", "#DDDDDD"
MAGNITUDE = "|J| (output per unit of input)"

_AXIS = {
    "showline": True,
    "linecolor": INK,
    "linewidth": 1.5,
    "ticks": "outside",
    "tickcolor": INK,
    "gridcolor": GRID,
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 10, "font": {"size": FONT_SIZE}},
}
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "Helvetica, Arial, Liberation Sans, sans-serif", "size": FONT_SIZE, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        # below the axes, where it covers no data
        "legend": {"orientation": "h", "x": 0.5, "xanchor": "center", "y": 0, "yanchor": "bottom", "yref": "container"},
        "hoverlabel": {"font": {"size": FONT_SIZE}},
    }
)


@dataclass(frozen=True)
class Variant:
    """How a variant is drawn in every figure."""

    label: str
    colour: str


class Look(NamedTuple):
    """What tells a variant from others where colours do not: in grey, in print, to the colour-blind."""

    dash: str
    symbol: str
    pattern: str  # of bars


LOOKS = (
    Look("solid", "circle", ""),
    Look("dash", "diamond", "/"),
    Look("dot", "square", "."),
    Look("dashdot", "cross", "x"),
)


def looks(variants: Iterable[Variant]) -> dict[Variant, Look]:
    """Of each variant, by its place among those that are drawn."""
    return {variant: LOOKS[place % len(LOOKS)] for place, variant in enumerate(variants)}


def bar_marker(variant: Variant, look: Look) -> dict:
    """Of a variant's bars: its colour, under a pattern of white."""
    pattern = {"shape": look.pattern, "fillmode": "overlay", "fgcolor": "white", "size": 9, "solidity": 0.18}
    return {"color": variant.colour} | ({"pattern": pattern} if look.pattern else {})


def of_each(values: Mapping[Variant, str]) -> str:
    """What a sentence says of each variant: "62% (Traditional), 79% (JSAE)"."""
    return ", ".join(f"{value} ({variant.label})" for variant, value in values.items())


def percent(share: float) -> str:
    """Two digits that matter, and none after the first decimal: 0.43%, 5.2%, 62%."""
    number = 100 * share
    if 0 < number < 0.01:
        return "<0.01%"
    if number == 0:
        return "0%"
    text = f"{number:.2f}" if 0 < abs(number) < 0.995 else f"{number:.1f}" if abs(number) < 9.95 else f"{number:.0f}"
    return f"{text}%".replace("-", "\N{MINUS SIGN}")


def decade_numbers(low: float, high: float) -> dict:
    """How the numbers of a logarithmic axis from 10**low to 10**high are written, all alike: as decimals while they are
    short, else as powers of ten."""
    if low >= -3.5 and high < 5:
        return {"tickformat": "~f"}
    return {"exponentformat": "power", "tickfont": {"size": 0.8 * FONT_SIZE}}  # Plotly draws those larger by a quarter


def require_variants(variants: Mapping[Variant, object]) -> None:
    """Raises ValueError if there is none."""
    if not variants:
        raise ValueError("there is no variant to draw; expected at least one")


def plain(text: str) -> str:
    """Text that Plotly draws as it stands: it would take `<...>` and `&...;` for markup."""
    return html.escape(text, quote=False)


def apply_style(figure: go.Figure, title: str, answer: str, subtitle: str, height: int) -> go.Figure:
    """Give the figure the shared look, in place: a title, below it on lines of its own the answer to the figure's
    question in a sentence, then what it is made from. The answer also goes into the figure's `meta`, for whoever shows
    the figure; it is empty where nothing is asked. `height` in px is that of what lies below the subtitle."""
    lines = [*_lines(answer), *_lines(subtitle)]
    top = 76 + 22 * len(lines)
    return figure.update_layout(
        template=_TEMPLATE,
        autosize=True,
        meta={ANSWER: answer},
        height=top + height,
        margin={"t": top, "r": 20, "b": 20, "l": 20},
        title={
            "text": title,
            "font": {"size": TITLE_SIZE},
            "x": 0,
            "xref": "container",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 16, "l": 20},
            "subtitle": {"text": "<br>".join(map(plain, lines)), "font": {"size": SUBTITLE_SIZE}},
        },
    )


def _lines(text: str) -> list[str]:
    # "k = 16" and "0.2 / 0.1" are not torn apart at the end of a line
    glued = text.replace(" = ", "\xa0=\xa0").replace(" / ", "\xa0/\xa0")
    return [line.replace("\xa0", " ") for line in textwrap.wrap(glued, SUBTITLE_CHARACTERS)]
