"""A finished figure as a page and as a picture. Not here: what is drawn."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping

import plotly.graph_objects as go


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
    """The figure as PNG at its own size, or None and how to get pictures where no Chrome or Chromium works.

    To be small, it has at most 256 colours: where there are more, which are shades on the edges of letters and lines,
    similar ones become one.
    """
    import kaleido
    from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError

    try:
        picture = kaleido.calc_fig_sync(figure, opts={"format": "png"})
    except (ChromeNotFoundError, BrowserFailedError, BrowserClosedError) as error:
        return None, (
            "No picture: it takes a Chrome or Chromium that starts on this machine (Debian: apt-get install chromium; "
            "elsewhere set BROWSER_PATH to it); then materialise this again. The page and the JSON are complete. "
            f"({type(error).__name__})"
        )
    # The first picture has shown that the browser starts; kept open it draws the next ones ten times faster. (A server
    # without a browser would wait for ever.) Kaleido closes it when the process ends.
    kaleido.start_sync_server(silence_warnings=True)
    return _with_palette(picture), ""


def _with_palette(picture: bytes) -> bytes:
    """The PNG with a palette, about a third as large."""
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB").quantize(dither=Image.Dither.NONE)
    smaller = io.BytesIO()
    image.save(smaller, "PNG", optimize=True)
    return smaller.getvalue()
