"""A Hugging Face hub on loopback for the tests, spoken to by the real, unpatched client.

Here: the part of the hub's API that fetching a file needs: what a revision of a model repository is and which files it
holds, with their digests, and the files themselves. It is filled with commits, told to fail, and asked what was asked
of it. Not here: data sets, uploads, Xet.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 1000  # bytes; files from here on are listed with a sha256, as those in large file storage are


@dataclass
class Repository:
    """Commits by their hashes, and what branches and tags name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


class HubServer:
    """To be used in a `with` statement. `corrupt` and `cut` hold names of files that are served so; `status` is what
    every request is answered with, if it is not None."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.corrupt: set[str] = set()
        self.cut: set[str] = set()
        self.status: int | None = None
        self.silent = False  # every request waits for an answer until the server stops
        self.stopped = threading.Event()
        self.private_to: str | None = None  # the one token that is let in
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.stop()

    def stop(self) -> None:
        """Nothing listens any more, and connections that are open are closed."""
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repository: str, files: dict[str, bytes], *names: str) -> str:
        """A new commit with these files alone, named by branches and tags. Returns its hash."""
        held = self.repositories.setdefault(repository, Repository())
        contents = repr([len(held.commits), sorted(files.items())]).encode()
        commit = hashlib.sha1(contents).hexdigest()
        held.commits[commit] = dict(files)
        held.names.update(dict.fromkeys(names or ["main"], commit))
        return commit

    def downloads(self) -> list[str]:
        """The files that were asked for."""
        return [
            request.removeprefix("GET ") for request in self.requests if "/resolve/" in request and "GET" in request
        ]


def digests(contents: bytes) -> dict:
    """As the hub lists a file."""
    git = hashlib.sha1(b"blob %d\0" % len(contents) + contents).hexdigest()
    listed = {"size": len(contents), "blobId": git}
    if len(contents) >= LARGE:
        sha256 = hashlib.sha256(contents).hexdigest()
        listed["lfs"] = {"sha256": sha256, "size": len(contents), "pointerSize": 130}
    return listed


def _entry(path: str, contents: bytes) -> dict:
    """A file of a commit's tree, as the hub lists it."""
    listed = digests(contents)
    lfs = listed.get("lfs")
    large = {"lfs": {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 130}} if lfs else {}
    return {"type": "file", "path": path, "size": listed["size"], "oid": listed["blobId"]} | large


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *words) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        address = urlsplit(self.path)
        if not self.hub.stopped.is_set():
            self.hub.requests.append(f"{self.command} {address.path}")
            if self.hub.silent:
                self.hub.stopped.wait()
        if self.hub.stopped.is_set():
            self.close_connection = True
            return None
        if self.hub.status is not None:
            return self._refuse(self.hub.status, "")
        if self.hub.private_to and self.headers.get("Authorization") != f"Bearer {self.hub.private_to}":
            return self._refuse(401, "RepoNotFound")
        parts = [unquote(part) for part in address.path.strip("/").split("/")]
        is_api = parts[:2] == ["api", "models"]
        owner, name, what, revision, *path = (parts[2:] if is_api else parts) + [""] * 4
        repository = self.hub.repositories.get(f"{owner}/{name}")
        if repository is None:
            return self._refuse(404, "RepoNotFound")
        commit = repository.names.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            return self._refuse(404, "RevisionNotFound")
        if is_api and what == "revision":
            blobs = "true" in parse_qs(address.query.lower()).get("blobs", [])
            siblings = [{"rfilename": name} | (digests(held) if blobs else {}) for name, held in files.items()]
            return self._send(json.dumps({"id": f"{owner}/{name}", "sha": commit, "siblings": siblings}).encode(), body)
        if is_api and what == "tree":
            return self._send(json.dumps([_entry(name, held) for name, held in files.items()]).encode(), body)
        file = "/".join(part for part in path if part)
        if what != "resolve" or file not in files:
            return self._refuse(404, "EntryNotFound")
        contents = files[file]
        listed = digests(contents)
        etag = listed.get("lfs", {}).get("sha256", listed["blobId"])
        if file in self.hub.corrupt:
            contents = contents[:-1] + bytes([contents[-1] ^ 1])
        self._send(contents, body, cut=file in self.hub.cut, **{"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

    def _send(self, contents: bytes, body: bool, cut: bool = False, **headers: str) -> None:
        self.send_response(200)
        for name, value in ({"Content-Length": str(len(contents))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(contents[: len(contents) // 2] if cut else contents)
        if cut:
            self.close_connection = True

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
