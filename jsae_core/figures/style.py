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

# A figure is as wide as the page or panel that shows it. A picture of it is 900 px wide and may be shown at half that
# width, so every font must be readable at half its size. Layouts in px are computed for this width.
WIDTH = 900
FONT_SIZE, TITLE_SIZE, SUBTITLE_SIZE = 20, 26, 18
SUBTITLE_CHARACTERS = 88  # characters that fit into a line, in the widest of the fonts below
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
    """What distinguishes variants where colours do not: in greyscale, in print, for colour-blind readers."""

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
    """The look of each variant, by its position among the variants that are drawn."""
    return {variant: LOOKS[place % len(LOOKS)] for place, variant in enumerate(variants)}


def bar_marker(variant: Variant, look: Look) -> dict:
    """Plotly's marker of a variant's bars: its colour, with a white pattern on top."""
    pattern = {"shape": look.pattern, "fillmode": "overlay", "fgcolor": "white", "size": 9, "solidity": 0.18}
    return {"color": variant.colour} | ({"pattern": pattern} if look.pattern else {})


def of_each(values: Mapping[Variant, str]) -> str:
    """A text for each variant joined for a sentence: "62% (Traditional), 79% (JSAE)"."""
    return ", ".join(f"{value} ({variant.label})" for variant, value in values.items())


def percent(share: float) -> str:
    """A share in per cent with two significant digits and at most two decimals: 0.43%, 5.2%, 62%; nearly all of
    something is not called 100%."""
    number = 100 * share
    if 99.5 <= number < 100:
        return f"{number:.1f}%" if number < 99.95 else ">99.9%"
    if 0 < number < 0.01:
        return "<0.01%"
    if number == 0:
        return "0%"
    text = f"{number:.2f}" if 0 < abs(number) < 0.995 else f"{number:.1f}" if abs(number) < 9.95 else f"{number:.0f}"
    return f"{text}%".replace("-", "\N{MINUS SIGN}")


def decade_numbers(low: float, high: float) -> dict:
    """Plotly's settings for the numbers of a logarithmic axis from 10**low to 10**high: all as decimals if these are
    short, otherwise all as powers of ten."""
    if low >= -3.5 and high < 5:
        return {"tickformat": "~f"}
    return {"exponentformat": "power", "tickfont": {"size": 0.8 * FONT_SIZE}}  # Plotly draws powers a quarter larger


def require_variants(variants: Mapping[Variant, object]) -> None:
    """Raises ValueError if there is no variant."""
    if not variants:
        raise ValueError("there is no variant to draw; expected at least one")


def plain(text: str) -> str:
    """Escape a text for Plotly, which would take `<...>` and `&...;` for markup."""
    return html.escape(text, quote=False)


def apply_style(figure: go.Figure, title: str, answer: str, subtitle: str, height: int) -> go.Figure:
    """Give the figure the shared look, in place.

    Args:
        title: usually a question.
        answer: the answer to that question in a sentence, shown below the title and kept in the figure's `meta`; empty
            if the title is not a question.
        subtitle: what the figure is made from, shown below the answer.
        height: px of everything below the subtitle.
    """
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
    # "k = 16" and "0.2 / 0.1" must not be broken at the end of a line
    glued = text.replace(" = ", "\xa0=\xa0").replace(" / ", "\xa0/\xa0")
    return [line.replace("\xa0", " ") for line in textwrap.wrap(glued, SUBTITLE_CHARACTERS)]
