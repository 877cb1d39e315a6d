"""A web server for the stored site and figures, on this machine only, wherever they are stored.

Here: the server behind `jsae ui`. Not here: the pages (`pages.py`), opening them without a server (`jsae site`).
"""

from __future__ import annotations

import mimetypes
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from upath import UPath

ADDRESS = "127.0.0.1"
PORT = 3080  # always the same, because links in the metadata of materialisations contain it
SITE_PAGE = "site/index.html"
URL = f"http://{ADDRESS}:{PORT}"  # serves the storage folder
SERVED = ("site/", "figures/", "plotly-")  # the beginnings of paths that are served; pairs and tables are not


def serve(storage: UPath, port: int = PORT) -> ThreadingHTTPServer:
    """Serve the pages below a storage folder, to this machine only, in a thread of this process. `server_close` of the
    returned server ends it.

    Raises:
        OSError: the port is in use.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # protects against DNS rebinding: a foreign page whose host name resolves to this machine gets no answer
            if self.headers.get("Host", "").rsplit(":", 1)[0] not in (ADDRESS, "localhost"):
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            path = unquote(urlsplit(self.path).path).lstrip("/")
            if path in ("", "site", "site/"):
                self.send_response(HTTPStatus.FOUND)
                self.send_header("Location", "/site/index.html")
                self.end_headers()
                return
            parts = path.split("/")
            if not path.startswith(SERVED) or "\\" in path or any(part in ("", ".", "..") for part in parts):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                content = (storage / path).read_bytes()
            except (OSError, ValueError):  # the file is missing, is a folder, or has an impossible name
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", mimetypes.guess_type(path)[0] or "application/octet-stream")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args) -> None:
            """Log nothing, so that the lines of the Dagster UI stay readable."""

    server = ThreadingHTTPServer((ADDRESS, port), Handler)
    threading.Thread(target=server.serve_forever, name="pages", daemon=True).start()
    return server
