"""How every figure looks: size, fonts, title and subtitle, axes, legend; and how a variant is drawn.

Here: what all figures share. Not here: what one figure draws, and the colours of variants, which the caller's catalog
chooses.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

import plotly.graph_objects as go

# A figure is exported 900 px wide and shown at half of that: every font must still be read at half its size.
WIDTH = 900
FONT_SIZE, TITLE_SIZE, SUBTITLE_SIZE = 20, 26, 18
SUBTITLE_CHARACTERS = 88  # that fit into one line, in the widest of the fonts below
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


def require_variants(variants: Mapping[Variant, object]) -> None:
    """Raises ValueError if there is none."""
    if not variants:
        raise ValueError("there is no variant to draw; expected at least one")


def plain(text: str) -> str:
    """Text that Plotly draws as it stands: it would take `<...>` and `&...;` for markup."""
    return html.escape(text, quote=False)


def apply_style(figure: go.Figure, title: str, subtitle: str, height: int) -> go.Figure:
    """Give the figure the shared look, in place. `height` in px is that of what lies below the subtitle."""
    # "k = 16" and "0.1 %" are not torn apart at the end of a line
    glued = subtitle.replace(" = ", "\xa0=\xa0").replace(" %", "\xa0%")
    lines = [line.replace("\xa0", " ") for line in textwrap.wrap(glued, SUBTITLE_CHARACTERS)]
    top = 76 + 22 * len(lines)
    return figure.update_layout(
        template=_TEMPLATE,
        width=WIDTH,
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
