"""Giving out the stored site and figures over HTTP on this machine, wherever they are stored.

Here: the server behind `jsae ui`. Not here: the pages (`site/`), opening them without a server (`jsae site`).
"""

from __future__ import annotations

import mimetypes
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from upath import UPath

ADDRESS = "127.0.0.1"
PORT = 3080  # links of materialisations name it, so it is always the same
URL = f"http://{ADDRESS}:{PORT}"  # of the storage
GIVEN_OUT = ("site/", "figures/", "plotly-")  # pairs and tables stay where they are


def serve(storage: UPath, port: int = PORT) -> ThreadingHTTPServer:
    """Give out the pages below a storage, to this machine alone, in a thread of this process; `server_close` ends it.

    Raises:
        OSError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # a page elsewhere that names this server by another name is not answered
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
            if not path.startswith(GIVEN_OUT) or "\\" in path or any(part in ("", ".", "..") for part in parts):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                content = (storage / path).read_bytes()
            except (OSError, ValueError):  # not there, a folder, a name that no file can have
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", mimetypes.guess_type(path)[0] or "application/octet-stream")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args) -> None:
            """Nothing: the UI's own lines are what is to be read."""

    server = ThreadingHTTPServer((ADDRESS, port), Handler)
    threading.Thread(target=server.serve_forever, name="pages", daemon=True).start()
    return server
