"""A finished figure as a page and as a picture. Not here: what is drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping

import plotly.graph_objects as go

WIDTH, SCALE = 900, 1


def page(figure: go.Figure, plotly_js: str, provenance: Mapping[str, str]) -> str:
    """An HTML page that opens offline.

    Args:
        plotly_js: where the page finds plotly.js, relative to itself.
        provenance: kept in the page as a <meta> element.
    """
    html = figure.to_html(include_plotlyjs=plotly_js, full_html=True)
    content = json.dumps(dict(provenance)).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return html.replace("<head>", f'<head><meta name="provenance" content="{content}" />', 1)


def png(figure: go.Figure) -> tuple[bytes | None, str]:
    """The figure as PNG at half-page size, or None and how to get pictures where no Chrome or Chromium is installed."""
    from kaleido.errors import ChromeNotFoundError

    try:
        return figure.to_image(format="png", width=WIDTH, scale=SCALE), ""
    except (ChromeNotFoundError, RuntimeError) as error:
        return None, (
            "No picture: it takes Chrome or Chromium on this machine (Debian: apt-get install chromium; or set "
            f"BROWSER_PATH). The page and the JSON are complete. ({type(error).__name__}: {str(error).splitlines()[0]})"
        )
