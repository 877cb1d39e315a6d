"""A finished figure as a page and as a picture. Not here: what is drawn."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import html
import io
import json
import threading
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import plotly.graph_objects as go
import psutil

from jsae_core.figures.style import WIDTH

if TYPE_CHECKING:
    from kaleido import Kaleido
    from PIL import Image

T = TypeVar("T")

PATIENCE = 60.0  # seconds that a browser has to start, and then for each picture
AT_ONCE = 2  # pictures that it draws at once
HOW_TO_GET_PICTURES = (
    "No picture: it takes a Chrome or Chromium that starts on this machine (Debian: apt-get install chromium; "
    "elsewhere set BROWSER_PATH to it); then materialise this again. The page and the JSON are complete."
)


PREVIEW_WIDTH = 350  # px, which the UI's page of an asset has for it in a window of 1280 px
NARROWEST = 800  # px, which the longest lines above a figure take: in a narrower window the whole page is smaller

# A telephone zooms out by the viewport's width; a narrow window of a computer does not. The plot is scaled once it is
# drawn, because Plotly measures texts while it draws, and knows of this transform, but not of the property `zoom`.
SHRINK = f"""
const plot = document.getElementById("{{plot_id}}");
const shrink = () => {{
  const scale = Math.min(1, innerWidth / {NARROWEST});
  plot.style.transformOrigin = "0 0";
  plot.style.transform = scale < 1 ? `scale(${{scale}})` : "";
  document.body.style.overflowX = scale < 1 ? "hidden" : "";
}};
addEventListener("resize", shrink);
shrink();
"""


def page(figure: go.Figure, plotly_js: str, provenance: Mapping[str, str]) -> str:
    """An HTML page that opens offline, sends nothing anywhere, and draws the figure as wide as its window.

    Args:
        plotly_js: where the page finds plotly.js, relative to itself.
        provenance: kept in the page as a <meta> element.
    """
    drawn = figure.to_html(
        include_plotlyjs=plotly_js,
        full_html=True,
        default_width="100%",
        post_script=SHRINK,
        # else the toolbar has a button that sends the figure to a server
        config={"showSendToCloud": False, "displaylogo": False, "responsive": True},
    )
    content = html.escape(json.dumps(dict(provenance)))
    head = (
        f'<head><meta name="provenance" content="{content}" /><title>{figure.layout.title.text or ""}</title>'
        f'<meta name="viewport" content="width={NARROWEST}" />'
        f"<style>body {{ margin: 0 }} .plotly-graph-div {{ min-width: {NARROWEST}px }}</style>"
    )
    return drawn.replace("<html>", '<html lang="en">', 1).replace("<head>", head, 1)


def png(figure: go.Figure) -> tuple[bytes | None, str]:
    """The figure as a PNG, 900 px wide; or None, with how to get pictures, if no Chrome or Chromium works. A browser
    that does not answer is given up after a minute, and not asked again by this process.

    To keep the file small, it has at most 256 colours. If there are more (shades at the edges of letters and lines),
    similar ones are merged.
    """
    try:
        return _with_palette(_image(browser.picture(figure))), ""
    except BrowserError as error:
        return None, _without_pictures(error)


class Pictures(NamedTuple):
    """A figure as `png` gives it; the same narrower, since the Dagster UI shows pictures at their own size; and as a
    PDF, unless the browser failed at that."""

    png: bytes
    preview: bytes
    pdf: bytes | None


def pictures(figure: go.Figure) -> tuple[Pictures | None, str]:
    """All pictures of a figure, or None and a reason as `png` gives it. The browser draws the PDF while it draws the
    PNG and while the PNG is made small here."""
    from PIL import Image

    with ThreadPoolExecutor(1) as beside:
        document = beside.submit(_pdf, figure)
        try:
            drawn = browser.picture(figure)
        except BrowserError as error:
            return None, _without_pictures(error)
        image = _image(drawn)
        height = round(image.height * PREVIEW_WIDTH / image.width)
        narrow = image.resize((PREVIEW_WIDTH, height), Image.Resampling.LANCZOS)
        return Pictures(_with_palette(image), _with_palette(narrow), document.result()), ""


def _without_pictures(error: BrowserError) -> str:
    return f"{HOW_TO_GET_PICTURES} ({error})"


def _pdf(figure: go.Figure) -> bytes | None:
    try:
        return browser.picture(figure, "pdf")
    except BrowserError:
        return None


class BrowserError(Exception):
    """No browser could draw a picture. The message says why."""


class Browser:
    """This process's browser: started for the first picture and kept open, since the next ones are then drawn ten times
    faster. It draws two pictures at once. (Kaleido has such a server as well, but it waits for ever for a browser that
    does not answer.)"""

    def __init__(self):
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kaleido: Kaleido | None = None
        self._silent = False
        self._one_at_a_time = threading.Lock()  # so that only the first picture starts the browser

    def picture(self, figure: go.Figure, kind: str = "png") -> bytes:
        """The figure as a file of this kind. Raises BrowserError."""
        kaleido = self._started()
        with self._ended_if_it_fails():
            return self._wait_for(kaleido.calc_fig(figure, opts={"format": kind, "width": WIDTH}))

    def _started(self) -> Kaleido:
        from kaleido import Kaleido

        with self._one_at_a_time:
            if self._silent:
                raise BrowserError("the browser did not answer before, and was not asked again")
            if self._kaleido is None:
                with self._ended_if_it_fails():
                    # MathJax, which no figure needs, would be fetched from the web for each picture
                    self._kaleido = Kaleido(n=AT_ONCE, timeout=PATIENCE, mathjax=False)
                    self._wait_for(self._kaleido.open())
            return self._kaleido

    @contextlib.contextmanager
    def _ended_if_it_fails(self) -> Iterator[None]:
        """Whatever goes wrong with the browser is raised as a BrowserError."""
        from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError

        try:
            yield
        except TimeoutError as error:
            self._silent = True
            self._kill()
            raise BrowserError(f"the browser did not answer within {PATIENCE:g} s") from error
        except (ChromeNotFoundError, BrowserFailedError, BrowserClosedError) as error:
            self._kill()
            raise BrowserError(type(error).__name__) from error

    def close(self) -> None:
        """End the browser. Another one may be started afterwards."""
        if self._kaleido is not None:
            with contextlib.suppress(Exception):  # whatever went wrong, it is killed next
                self._wait_for(self._kaleido.close(), seconds=10)
        self._kill()
        self._silent = False

    def _wait_for(self, coroutine: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
        """The result of a coroutine. Raises TimeoutError, or the coroutine's own error."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="browser", daemon=True).start()
            atexit.register(self.close)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(PATIENCE if seconds is None else seconds)

    def _kill(self) -> None:
        process = getattr(self._kaleido, "subprocess", None)  # there is none before it was started
        self._kaleido = None
        if process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                parent.suspend()  # so that it starts no other process after its children were listed
                for one in (*parent.children(recursive=True), parent):
                    one.kill()
            process.wait()


browser = Browser()


def _image(picture: bytes) -> Image.Image:
    from PIL import Image

    return Image.open(io.BytesIO(picture)).convert("RGB")


def _with_palette(image: Image.Image) -> bytes:
    """The picture as a PNG with a palette, about a third as large."""
    from PIL import Image

    smaller = io.BytesIO()
    image.quantize(dither=Image.Dither.NONE).save(smaller, "PNG", optimize=True)
    return smaller.getvalue()
