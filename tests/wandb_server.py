"""A wandb server on loopback for the tests, spoken to by the real, unpatched wandb client.

Here: the part of wandb's API that reading needs. GraphQL: who am I, a project's runs with filters, order and pages, one
run, artifacts by name and alias, their files; plain HTTP: manifests and files, whole or from a byte on, behind
signed addresses. It is filled with runs and artifacts, told to fail, and asked what was asked of it.
Not here: writing (mutations), run history, sweeps, users and teams; and where wandb's own behaviour isn't documented,
this server takes the stricter one: times in filters must be written as wandb writes them, unknown filters are errors.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

API_KEY = "0123456789abcdef" * 2 + "01234567"
RUN_TIMES = ("createdAt", "heartbeatAt", "updatedAt")
BY_HAND = {"tags", "display_name", "notes", "group"}
FAULTS = ("hang", "cut", "stall", "corrupt", "short", "malformed", "repeated")


def text_of(moment: datetime) -> str:
    """A moment as wandb writes it."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


@dataclass
class Request:
    """One request as it came in, and the status it was answered with (0: no answer, or one cut short)."""

    kind: str
    operation: str
    variables: dict[str, Any]
    method: str
    path: str
    authorized: bool
    range: str | None
    user_agent: str
    status: int = 0


@dataclass
class Fault:
    """What the next requests of a kind meet instead of their answer."""

    what: int | str
    on: str | None
    times: int | None
    after: int
    retry_after: float | str | None
    seconds: float

    def meets(self, kind: str) -> bool:
        is_graphql = kind not in ("manifest", "file", "telemetry")
        return kind != "telemetry" and self.on in (None, kind, "graphql" if is_graphql else "download")

    def is_due(self) -> bool:
        """Counts a request that this fault is meant for: some pass first, then some fail."""
        if self.after > 0:
            self.after -= 1
            return False
        if self.times is None:
            return True
        self.times -= 1
        return self.times >= 0


@dataclass
class Run:
    """A run. `config` and `summary` may be given as text, to be sent just so."""

    id: str
    display_name: str
    config: Any
    summary: Any
    state: str
    tags: list[str]
    created_at: str
    heartbeat_at: str | None
    updated_at: str
    notes: str | None = None
    group: str | None = None


@dataclass
class Version:
    """One version of an artifact."""

    id: str
    index: int
    type: str
    files: dict[str, bytes]
    metadata: dict[str, Any]
    created_at: str
    birth_id: str

    @property
    def manifest(self) -> dict[str, Any]:
        contents = {
            path: {"digest": _md5(data), "size": len(data), "birthArtifactID": self.birth_id}
            for path, data in sorted(self.files.items())
        }
        policy = {"storageLayout": "V2"}
        return {
            "version": 1,
            "storagePolicy": "wandb-storage-policy-v1",
            "storagePolicyConfig": policy,
            "contents": contents,
        }

    @property
    def digest(self) -> str:
        lines = [f"{path}:{_md5(data)}\n" for path, data in sorted(self.files.items())]
        return hashlib.md5("".join(["wandb-artifact-manifest-v1\n", *lines]).encode()).hexdigest()


@dataclass
class Collection:
    """An artifact's versions, and which of them each alias names."""

    name: str
    versions: list[Version] = field(default_factory=list)
    aliases: dict[str, int] = field(default_factory=dict)

    def find(self, alias: str) -> Version | None:
        index = int(alias[1:]) if re.fullmatch(r"v\d+", alias) else self.aliases.get(alias, -1)
        return next((version for version in self.versions if version.index == index), None)

    def aliases_of(self, version: Version) -> list[str]:
        return [alias for alias, index in self.aliases.items() if index == version.index]


@dataclass
class Project:
    """What one project holds."""

    entity: str
    name: str
    runs: dict[str, Run] = field(default_factory=dict)
    collections: dict[str, Collection] = field(default_factory=dict)


class WandbServer:
    """A server to start and stop, or to use as a context.

    Stopped, it refuses connections; started again, it is where it was and holds what it held.

    server.api_key   the key it accepts
    server.requests  everything it was asked, in order
    server.features  names of the server features that it claims to have
    """

    def __init__(self, api_key: str = API_KEY) -> None:
        self.api_key = api_key
        self.requests: list[Request] = []
        self.features: set[str] = {"ARTIFACT_DIGEST_ALGORITHM", "TOTAL_COUNT_IN_FILE_CONNECTION"}
        self.signature = secrets.token_hex(8)
        self._projects: dict[tuple[str, str], Project] = {}
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._port = 0
        self._http: _HTTPServer | None = None

    def start(self) -> "WandbServer":
        self._http = _HTTPServer(("127.0.0.1", self._port), self)
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        if self._http:
            self._http.close()
            self._http = None

    def __enter__(self) -> "WandbServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def environment(self, folder: Path) -> dict[str, str]:
        """The variables that point a wandb client at this server, keep it quiet, and keep its files in a folder."""
        # The client falls back to the system's folder for temporary files if this one isn't there yet.
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": self.api_key,
            "WANDB_SILENT": "true",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DIR": f"{folder}/wandb",
            "WANDB_CACHE_DIR": f"{folder}/cache",
            "WANDB_DATA_DIR": f"{folder}/data",
            "WANDB_CONFIG_DIR": f"{folder}/config",
            "WANDB_ARTIFACT_DIR": f"{folder}/artifacts",
        }

    def add_project(self, entity: str, project: str) -> None:
        self._project(entity, project)

    def add_run(
        self,
        entity: str,
        project: str,
        name: str,
        *,
        config: Any = None,
        summary: Any = None,
        state: str = "finished",
        tags: tuple[str, ...] | list[str] = (),
        display_name: str | None = None,
        created_at: datetime | str | None = None,
        heartbeat_at: datetime | str | None = None,
        updated_at: datetime | str | None = None,
        notes: str | None = None,
        group: str | None = None,
    ) -> str:
        """A run by its id. Without a heartbeat of its own it has one at its creation; answers the id."""
        created = _time(created_at) or text_of(datetime.now(UTC))
        heartbeat = _time(heartbeat_at) or created
        with self._lock:
            self._project(entity, project).runs[name] = Run(
                id=name,
                display_name=display_name or name,
                config=config if config is not None else {},
                summary=summary if summary is not None else {},
                state=state,
                tags=list(tags),
                created_at=created,
                heartbeat_at=heartbeat,
                updated_at=_time(updated_at) or heartbeat,
                notes=notes,
                group=group,
            )
        return name

    def change_run(
        self,
        entity: str,
        project: str,
        name: str,
        *,
        heartbeat_at: datetime | str | None = None,
        updated_at: datetime | str | None = None,
        **changes: Any,
    ) -> None:
        """Changes a run. What people edit (tags, name, notes, group) moves updatedAt alone; the rest, both times."""
        now = text_of(datetime.now(UTC))
        with self._lock:
            run = self._projects[entity, project].runs[name]
            for key, value in changes.items():
                if not hasattr(run, key):
                    raise AttributeError(f"a run has no {key}")
                setattr(run, key, value)
            run.updated_at = _time(updated_at) or _time(heartbeat_at) or now
            if heartbeat_at is not None or not changes.keys() <= BY_HAND:
                run.heartbeat_at = _time(heartbeat_at) or now

    def delete_run(self, entity: str, project: str, name: str) -> None:
        with self._lock:
            del self._projects[entity, project].runs[name]

    def add_artifact(
        self,
        entity: str,
        project: str,
        name: str,
        files: dict[str, bytes],
        *,
        aliases: tuple[str, ...] | list[str] = (),
        type: str = "model",
        metadata: dict[str, Any] | None = None,
        created_at: datetime | str | None = None,
    ) -> int:
        """The next version of an artifact, or the latest one again if the files are the same; answers its index."""
        with self._lock:
            collection = self._project(entity, project).collections.setdefault(name, Collection(name))
            id = _id("Artifact", f"{entity}/{project}/{name}/{len(collection.versions)}")
            index = len(collection.versions)
            created = _time(created_at) or text_of(datetime.now(UTC))
            version = Version(id, index, type, dict(files), metadata or {}, created, id)
            latest = collection.find("latest")
            if latest and latest.digest == version.digest:
                version = latest
            else:
                collection.versions.append(version)
            collection.aliases.update(dict.fromkeys(["latest", *aliases], version.index))
        return version.index

    def delete_artifact(self, entity: str, project: str, name: str, index: int) -> None:
        """Takes one version away, and the aliases that named it."""
        with self._lock:
            collection = self._projects[entity, project].collections[name]
            collection.versions = [version for version in collection.versions if version.index != index]
            collection.aliases = {alias: v for alias, v in collection.aliases.items() if v != index}

    def fail(
        self,
        what: int | str,
        *,
        on: str | None = None,
        times: int | None = 1,
        after: int = 0,
        retry_after: float | str | None = None,
        seconds: float = 60,
    ) -> None:
        """Lets the next requests fail, `times` of them (None: every one from now on) once `after` have passed.

        what: an HTTP status (401, 404, 429 with `retry_after`, 500...), "hang" (no answer for `seconds`, then the
        connection is closed), "cut" (half the body, then it is closed), "stall" (half the body, then nothing for
        `seconds`), "corrupt" and "short" (a file with a wrong byte, or less of it than there is), "malformed" (every
        second run of a page is nonsense), "repeated" (a page's first run stands in the place of its last, too).
        on: "viewer", "runs", "run", "artifact" (GraphQL), "manifest", "file"; "graphql" or "download" for all of
        either sort; None for anything.
        """
        if not isinstance(what, int) and what not in FAULTS:
            raise ValueError(f"no such fault: {what}; there are HTTP statuses and {', '.join(FAULTS)}")
        with self._lock:
            self._faults.append(Fault(what, on, times, after, retry_after, seconds))

    def heal(self) -> None:
        """Ends every fault."""
        with self._lock:
            self._faults.clear()

    def expire_links(self) -> None:
        """From now on every address given out so far is answered 403, as signed addresses are some time later."""
        self.signature = secrets.token_hex(8)

    def forget(self) -> None:
        """Empties the list of requests."""
        with self._lock:
            self.requests.clear()

    def asked(self, *kinds: str) -> list[Request]:
        """The requests of these kinds; of all kinds but telemetry if none is named."""
        with self._lock:
            return [r for r in self.requests if (r.kind in kinds if kinds else r.kind != "telemetry")]

    def _project(self, entity: str, project: str) -> Project:
        with self._lock:
            return self._projects.setdefault((entity, project), Project(entity, project))

    def _fault_for(self, kind: str) -> Fault | None:
        with self._lock:
            return next((fault for fault in self._faults if fault.meets(kind) and fault.is_due()), None)

    @contextmanager
    def _reading(self) -> Iterator[dict[tuple[str, str], Project]]:
        with self._lock:
            yield self._projects

    def _signed(self, path: str) -> str:
        return f"{self.url}{path}?signature={self.signature}"


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], owner: WandbServer) -> None:
        self.owner = owner
        self.closing = threading.Event()
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that hangs up in the middle is no news; anything else is an error of this server's, to be seen.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        # Connections kept alive would go on answering after the server is gone.
        self.closing.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


@dataclass
class _Answer:
    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _HTTPServer

    def log_message(self, format: str, *args: Any) -> None:
        """The list of requests is the log."""

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _serve(self, body: bytes) -> None:
        owner = self.server.owner
        request = self._note(body)
        fault = owner._fault_for(request.kind)
        if fault and fault.what == "hang":
            self.server.closing.wait(fault.seconds)
            self.close_connection = True
            return
        if fault and isinstance(fault.what, int):
            answer = _refusal(fault)
        else:
            answer = _answer(owner, request, body, spoilt=fault.what if fault else None)
        if fault and fault.what in ("corrupt", "short"):
            wrong = bytes(byte ^ 1 for byte in answer.body[-1:])
            answer.body = answer.body[:-1] + (wrong if fault.what == "corrupt" else b"")
        self._send(request, answer, fault if fault and fault.what in ("cut", "stall") else None)

    def _note(self, body: bytes) -> Request:
        owner = self.server.owner
        path = urlsplit(self.path).path
        asked = json.loads(body) if path == "/graphql" else {}
        operation = _operation(asked)
        expected = base64.b64encode(f"api:{owner.api_key}".encode()).decode()
        request = Request(
            kind=_kind(path, operation),
            operation=operation,
            variables=asked.get("variables") or {},
            method=self.command,
            path=self.path,
            authorized=self.headers.get("Authorization") == f"Basic {expected}",
            range=self.headers.get("Range"),
            user_agent=self.headers.get("User-Agent", ""),
        )
        with owner._lock:
            owner.requests.append(request)
        return request

    def _send(self, request: Request, answer: _Answer, breaking: Fault | None) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if breaking:
            self.wfile.write(answer.body[: len(answer.body) // 2])
            if breaking.what == "stall":
                self.server.closing.wait(breaking.seconds)
            self.close_connection = True
            return
        request.status = answer.status
        self.wfile.write(answer.body)


def _kind(path: str, operation: str) -> str:
    first = path.split("/")[1]
    if first == "graphql":
        known = {"Viewer": "viewer", "ServerFeaturesQuery": "features", "Runs": "runs", "Run": "run"}
        return known.get(operation, "artifact" if "Artifact" in operation else "graphql")
    return {"manifests": "manifest", "files": "file", "artifactsV2": "file", "artifacts": "file"}.get(
        first, "telemetry"
    )


def _operation(asked: dict[str, Any]) -> str:
    named = re.search(r"\b(?:query|mutation)\s+(\w+)", asked.get("query", ""))
    return asked.get("operationName") or (named.group(1) if named else "")


def _refusal(fault: Fault) -> _Answer:
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    return _error(int(fault.what), f"the server was told to answer {fault.what}", headers)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> _Answer:
    return _Answer(status, json.dumps({"errors": [{"message": message}]}).encode(), headers or {})


def _answer(owner: WandbServer, request: Request, body: bytes, *, spoilt: int | str | None) -> _Answer:
    path = unquote(urlsplit(request.path).path)
    if request.kind == "telemetry":
        return _Answer(200, b"{}")
    if request.kind in ("manifest", "file"):
        return _download(owner, request, path)
    if not request.authorized:
        return _error(401, "user is not logged in")
    try:
        with owner._reading() as projects:
            data = Document(json.loads(body)["query"]).run(request.variables, _root(owner, projects, spoilt=spoilt))
    except GraphQLError as error:
        return _error(400, str(error))
    return _Answer(200, json.dumps({"data": data}).encode())


# --- Downloads


def _download(owner: WandbServer, request: Request, path: str) -> _Answer:
    signed = parse_qs(urlsplit(request.path).query).get("signature") == [owner.signature]
    direct = path.startswith(("/files/", "/manifests/"))
    if not (signed if direct else request.authorized):
        return _error(403 if direct else 401, "no access")
    with owner._reading() as projects:
        data = _direct(projects, path) if direct else _by_digest(projects, path)
    if data is None:
        return _error(404, "no such file")
    return _part(data, request.range)


def _direct(projects: dict[tuple[str, str], Project], path: str) -> bytes | None:
    _, sort, artifact, *rest = path.split("/", 3)
    version = next((v for v in _versions(projects) if v.id == artifact), None)
    if version is None:
        return None
    return json.dumps(version.manifest).encode() if sort == "manifests" else version.files.get(rest[0])


def _by_digest(projects: dict[tuple[str, str], Project], path: str) -> bytes | None:
    digests = set(path.split("/"))
    for version in _versions(projects):
        for data in version.files.values():
            if hashlib.md5(data).hexdigest() in digests:
                return data
    return None


def _versions(projects: dict[tuple[str, str], Project]) -> Iterator[Version]:
    for project in projects.values():
        for collection in project.collections.values():
            yield from collection.versions


def _part(data: bytes, wanted: str | None) -> _Answer:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
    headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    if not match:
        return _Answer(200, data, headers)
    start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
    if start > end:
        return _Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
    return _Answer(206, data[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"})


# --- What GraphQL's fields are


def _root(owner: WandbServer, projects: dict[tuple[str, str], Project], *, spoilt: int | str | None) -> dict[str, Any]:
    def project(name: str, entityName: str) -> dict[str, Any] | None:
        found = projects.get((entityName, name))
        return _project_fields(owner, found, spoilt=spoilt) if found else None

    def artifact(id: str) -> dict[str, Any] | None:
        for held in projects.values():
            for collection in held.collections.values():
                for version in collection.versions:
                    if version.id == id:
                        return _artifact_fields(owner, held, collection, version)
        return None

    viewer = {
        "id": _id("User", "tester"),
        "entity": "tester",
        "username": "tester",
        "name": "Tester",
        "email": "tester@example.org",
        "admin": False,
        "flags": "{}",
        "teams": {"edges": []},
    }
    features = [{"name": name, "isEnabled": True} for name in sorted(owner.features)]
    return {"viewer": viewer, "serverInfo": {"features": features}, "project": project, "artifact": artifact}


def _project_info(project: Project) -> dict[str, Any]:
    id = _id("Project", f"{project.entity}/{project.name}")
    return {
        "__typename": "Project",
        "id": id,
        "internalId": id,
        "name": project.name,
        "readOnly": False,
        "entity": {"name": project.entity},
    }


def _project_fields(owner: WandbServer, project: Project, *, spoilt: int | str | None) -> dict[str, Any]:
    def run(name: str) -> dict[str, Any] | None:
        return _run_fields(project, project.runs[name]) if name in project.runs else None

    def runs(filters: str = "{}", after: str | None = None, first: int = 50, order: str = "+created_at") -> dict:
        found = _sorted(_selected(project, filters), order)
        page = _page(found, after, first, partial(_run_fields, project), is_falling=order.startswith("-"))
        return SPOILING[spoilt](page) if spoilt in SPOILING else page

    def membership(name: str) -> dict[str, Any] | None:
        collection, _, alias = name.partition(":")
        found = project.collections.get(collection)
        version = found.find(alias or "latest") if found else None
        return _membership_fields(owner, project, found, version) if found and version else None

    def collection(name: str) -> dict[str, Any] | None:
        found = project.collections.get(name)
        return _collection_fields(owner, project, found) if found else None

    return {
        **_project_info(project),
        "run": run,
        "runs": runs,
        "runCount": lambda filters="{}": len(_selected(project, filters)),
        "artifactCollectionMembership": membership,
        "artifactCollection": collection,
        "artifactType": lambda name: _type_fields(owner, project, name),
    }


def _run_fields(project: Project, run: Run) -> dict[str, Any]:
    summary = run.summary
    return {
        "__typename": "Run",
        "id": _id("Run", f"{project.entity}/{project.name}/{run.id}"),
        "projectId": 1,
        "name": run.id,
        "displayName": run.display_name,
        "state": run.state,
        "tags": list(run.tags),
        "config": run.config if isinstance(run.config, str) else json.dumps(_wrapped(run.config)),
        "summaryMetrics": summary if isinstance(summary, str) else json.dumps(summary),
        "systemMetrics": "{}",
        "createdAt": run.created_at,
        "heartbeatAt": run.heartbeat_at,
        "updatedAt": run.updated_at,
        "notes": run.notes,
        "group": run.group,
        "description": None,
        "sweepName": None,
        "jobType": None,
        "commit": None,
        "readOnly": False,
        "historyLineCount": 1,
        "historyKeys": {"sets": [], "keys": {}, "lastStep": 0},
        "user": {"name": "Tester", "username": "tester"},
    }


def _wrapped(config: dict[str, Any]) -> dict[str, Any]:
    return {key: {"desc": None, "value": value} for key, value in config.items()}


def _nonsense(page: dict[str, Any]) -> dict[str, Any]:
    """Spoils every second run of a page, each in a way of its own."""
    ways: list[dict[str, Any]] = [
        {"config": '{"jacobian_coefficient": {"value": 0.', "summaryMetrics": "not JSON"},
        {"config": "[1, 2]", "summaryMetrics": '"text"'},
        {"name": None, "displayName": None},
        {"createdAt": "yesterday", "heartbeatAt": None, "tags": None, "state": None},
    ]
    for place, edge in enumerate(page["edges"][1::2]):
        edge["node"].update(ways[place % len(ways)])
    return page


def _repeated(page: dict[str, Any]) -> dict[str, Any]:
    """Puts the first run of a page in the place of the last; cursors stay."""
    if page["edges"]:
        page["edges"][-1] = page["edges"][-1] | {"node": page["edges"][0]["node"]}
    return page


SPOILING: dict[int | str | None, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "malformed": _nonsense,
    "repeated": _repeated,
}


def _collection_fields(owner: WandbServer, project: Project, collection: Collection) -> dict[str, Any]:
    def membership(aliasName: str) -> dict[str, Any] | None:
        version = collection.find(aliasName)
        return _membership_fields(owner, project, collection, version) if version else None

    def artifacts(after: str | None = None, first: int = 50, order: str | None = None, filters: str | None = None):
        newest_first = [(version.index, version) for version in reversed(collection.versions)]
        make = partial(_artifact_fields, owner, project, collection)
        page = _page(newest_first, after, first, make, is_falling=True)
        for edge in page["edges"]:
            edge["version"] = f"v{edge['node']['versionIndex']}"
        return page

    return {
        **_collection_info(project, collection),
        "description": None,
        "createdAt": collection.versions[0].created_at if collection.versions else "2026-01-01T00:00:00Z",
        "updatedAt": None,
        "defaultArtifactType": {"name": collection.versions[0].type if collection.versions else "model"},
        "tags": {"edges": []},
        "artifactMembership": membership,
        "artifacts": artifacts,
    }


def _collection_info(project: Project, collection: Collection) -> dict[str, Any]:
    id = _id("ArtifactSequence", f"{project.entity}/{project.name}/{collection.name}")
    return {"__typename": "ArtifactSequence", "id": id, "name": collection.name, "project": _project_info(project)}


def _type_fields(owner: WandbServer, project: Project, name: str) -> dict[str, Any] | None:
    def collection(name: str) -> dict[str, Any] | None:
        return _collection_fields(owner, project, held[name]) if name in held else None

    held = {c.name: c for c in project.collections.values() if any(v.type == name for v in c.versions)}
    if not held:
        return None
    return {
        "__typename": "ArtifactType",
        "id": _id("ArtifactType", name),
        "name": name,
        "description": None,
        "createdAt": "2026-01-01T00:00:00Z",
        "artifactCollection": collection,
    }


def _membership_fields(
    owner: WandbServer, project: Project, collection: Collection, version: Version
) -> dict[str, Any]:
    def files(after: str | None = None, first: int = 50, names: list[str] | None = None) -> dict[str, Any]:
        wanted = [(path, path) for path in sorted(version.files) if not names or path in names]
        return _page(wanted, after, first, partial(_file_fields, owner, project, version))

    return {
        "__typename": "ArtifactCollectionMembership",
        "id": _id("ArtifactCollectionMembership", version.id),
        "versionIndex": version.index,
        "createdAt": version.created_at,
        "aliases": _alias_fields(project, collection, version),
        "artifactCollection": _collection_info(project, collection),
        "artifact": _artifact_fields(owner, project, collection, version),
        "files": files,
    }


def _alias_fields(project: Project, collection: Collection, version: Version) -> list[dict[str, Any]]:
    info = _collection_info(project, collection)
    return [
        {
            "__typename": "ArtifactAlias",
            "id": _id("ArtifactAlias", f"{version.id}{alias}"),
            "alias": alias,
            "artifactCollection": info,
        }
        for alias in collection.aliases_of(version)
    ]


def _artifact_fields(owner: WandbServer, project: Project, collection: Collection, version: Version) -> dict[str, Any]:
    return {
        "__typename": "Artifact",
        "id": version.id,
        "artifactSequence": _collection_info(project, collection),
        "versionIndex": version.index,
        "artifactType": {"name": version.type},
        "description": None,
        "metadata": json.dumps(version.metadata),
        "ttlDurationSeconds": -2,
        "ttlIsInherited": True,
        "tags": [],
        "historyStep": None,
        "state": "COMMITTED",
        "size": sum(map(len, version.files.values())),
        "digest": version.digest,
        "digestAlgorithm": "MANIFEST_MD5",
        "commitHash": version.digest[:20],
        "fileCount": len(version.files),
        "createdAt": version.created_at,
        "updatedAt": version.created_at,
        "aliases": _alias_fields(project, collection, version),
        "currentManifest": {"file": {"directUrl": owner._signed(f"/manifests/{version.id}")}},
    }


def _file_fields(owner: WandbServer, project: Project, version: Version, path: str) -> dict[str, Any]:
    data = version.files[path]
    hexadecimal = hashlib.md5(data).hexdigest()
    place = f"/artifactsV2/default/{quote(project.entity)}/{quote(version.birth_id)}/{hexadecimal}/{quote(path)}"
    return {
        "__typename": "File",
        "id": _id("File", f"{version.id}{path}"),
        "name": path,
        "displayName": path,
        "url": f"{owner.url}{place}",
        "directUrl": owner._signed(f"/files/{version.id}/{quote(path)}"),
        "sizeBytes": len(data),
        "storagePath": place,
        "mimetype": "application/octet-stream",
        "updatedAt": version.created_at,
        "digest": _md5(data),
        "md5": _md5(data),
    }


# --- Filters, order, pages


def _page(
    held: list[tuple[Any, Any]],
    after: str | None,
    first: int,
    make: Callable[[Any], dict[str, Any]],
    *,
    is_falling: bool = False,
) -> dict[str, Any]:
    """The things behind a cursor. It holds a place in the order, so it serves even if what stood there is gone."""
    last = json.loads(base64.b64decode(after)) if after else None
    start = 0 if last is None else sum(place >= last if is_falling else place <= last for place, _ in held)
    page = held[start : start + first]
    return {
        "totalCount": len(held),
        "edges": [{"cursor": _cursor(place), "node": make(thing)} for place, thing in page],
        "pageInfo": {
            "__typename": "PageInfo",
            "endCursor": _cursor(page[-1][0]) if page else None,
            "hasNextPage": start + first < len(held),
        },
    }


def _cursor(place: Any) -> str:
    return base64.b64encode(json.dumps(place).encode()).decode()


def _sorted(runs: list[Run], order: str) -> list[tuple[list[Any], Run]]:
    key = order.lstrip("+-")
    placed = []
    for run in runs:
        value = _value(run, key.removesuffix(".value"))
        placed.append(([value is not None, str(value) if isinstance(value, str) else value or 0, run.id], run))
    return sorted(placed, key=lambda pair: pair[0], reverse=order.startswith("-"))


def _selected(project: Project, filters: str) -> list[Run]:
    wanted = json.loads(filters or "{}")
    return [run for run in project.runs.values() if _matches(run, wanted)]


def _matches(run: Run, wanted: dict[str, Any]) -> bool:
    return all(_holds(run, key, value) for key, value in wanted.items())


def _holds(run: Run, key: str, wanted: Any) -> bool:
    groups: dict[str, Callable[[Iterator[bool]], bool]] = {"$and": all, "$or": any, "$nor": lambda them: not any(them)}
    if key in groups:
        return groups[key](_matches(run, part) for part in wanted)
    value = _value(run, key)
    tests = wanted if isinstance(wanted, dict) else {"$eq": wanted}
    if _camel(key) in RUN_TIMES:
        _demand_texts(key, tests)
    return all(_test(operator, value, operand, is_time=_camel(key) in RUN_TIMES) for operator, operand in tests.items())


def _test(operator: str, value: Any, operand: Any, *, is_time: bool) -> bool:
    comparisons: dict[str, Callable[[Any, Any], bool]] = {
        "$gt": lambda a, b: a > b,
        "$gte": lambda a, b: a >= b,
        "$lt": lambda a, b: a < b,
        "$lte": lambda a, b: a <= b,
    }
    if operator in comparisons:
        left, right = (_instant(value), _instant(operand)) if is_time else (value, operand)
        with suppress(TypeError):
            return left is not None and right is not None and comparisons[operator](left, right)
        return False
    if operator in ("$eq", "$in"):
        return _is_among(value, [operand] if operator == "$eq" else operand)
    if operator in ("$ne", "$nin"):
        return not _is_among(value, [operand] if operator == "$ne" else operand)
    if operator == "$exists":
        return (value is not None) == bool(operand)
    if operator == "$regex":
        return re.search(operand, str(value)) is not None
    raise GraphQLError(f"unknown operator {operator}")


def _is_among(value: Any, wanted: list[Any]) -> bool:
    return any(item in wanted for item in value) if isinstance(value, list) else value in wanted


def _demand_texts(key: str, tests: dict[str, Any]) -> None:
    # People report an internal error of the real server for filters by seconds since 1970.
    if any(isinstance(operand, int | float) and operator != "$exists" for operator, operand in tests.items()):
        raise GraphQLError(f"{key}: a time is written as text")


def _instant(value: Any) -> datetime | None:
    """A time as wandb writes it. Without the Z people report that nothing matches, and so it is here."""
    if not isinstance(value, str) or not value.endswith("Z"):
        return None
    with suppress(ValueError):
        return datetime.fromisoformat(value)
    return None


def _value(run: Run, key: str) -> Any:
    section, _, rest = key.partition(".")
    if rest and section in ("config", "summary_metrics"):
        held = run.config if section == "config" else run.summary
        return held.get(rest.removesuffix(".value")) if isinstance(held, dict) else None
    if key == "name":
        return run.id
    fields = {
        "createdAt": run.created_at,
        "heartbeatAt": run.heartbeat_at,
        "updatedAt": run.updated_at,
        "displayName": run.display_name,
        "state": run.state,
        "tags": run.tags,
        "group": run.group,
    }
    if _camel(key) not in fields:
        raise GraphQLError(f"runs can't be filtered or ordered by {key}")
    return fields[_camel(key)]


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _time(moment: datetime | str | None) -> str | None:
    return text_of(moment) if isinstance(moment, datetime) else moment


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def _id(sort: str, name: str) -> str:
    return base64.urlsafe_b64encode(f"{sort}:{name}".encode()).decode()


# --- GraphQL


class GraphQLError(Exception):
    """A query that this server can't answer."""


@dataclass
class _Field:
    name: str
    alias: str
    arguments: dict[str, Any]
    conditions: list[tuple[str, Any]]
    selection: list[Any]


@dataclass
class _Spread:
    fragment: str | list[Any]


@dataclass
class _Variable:
    name: str


class Document:
    """A GraphQL query: parsed, then answered by picking its fields out of nested dicts, lists and functions."""

    TOKEN = re.compile(r'\.\.\.|"(?:\\.|[^"\\])*"|-?\d+(?:\.\d+)?|\w+|[{}()\[\]:=!$@]')

    def __init__(self, text: str) -> None:
        self._tokens = self.TOKEN.findall(re.sub(r"#[^\n]*", "", text))
        self._at = 0
        self._fragments: dict[str, list[Any]] = {}
        self._defaults: dict[str, Any] = {}
        self._selection: list[Any] = []
        self._variables: dict[str, Any] = {}
        while self._at < len(self._tokens):
            self._definition()

    def run(self, variables: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
        self._variables = {**self._defaults, **variables}
        return self._pick(self._selection, root)

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _skip(self, token: str) -> bool:
        found = self._peek() == token
        self._at += found
        return found

    def _definition(self) -> None:
        word = self._next()
        if word == "fragment":
            name = self._next()
            self._at += 2
            self._fragments[name] = self._set()
            return
        if word == "mutation":
            raise GraphQLError("this server can't be written to")
        if word == "query":
            if self._peek() not in "({":
                self._next()
            self._declarations()
        else:
            self._at -= 1
        self._selection = self._set()

    def _declarations(self) -> None:
        if not self._skip("("):
            return
        while not self._skip(")"):
            if self._next() == "$":
                name = self._next()
            if self._skip("="):
                self._defaults[name] = self._literal()

    def _set(self) -> list[Any]:
        chosen: list[Any] = []
        if self._next() != "{":
            raise GraphQLError("a selection was expected")
        while not self._skip("}"):
            chosen.append(self._spread() if self._skip("...") else self._field())
        return chosen

    def _spread(self) -> _Spread:
        if self._skip("on"):
            self._next()
            return _Spread(self._set())
        return _Spread(self._next())

    def _field(self) -> _Field:
        alias = name = self._next()
        if self._skip(":"):
            name = self._next()
        arguments = self._arguments()
        conditions = []
        while self._skip("@"):
            conditions.append((self._next(), self._arguments()["if"]))
        return _Field(name, alias, arguments, conditions, self._set() if self._peek() == "{" else [])

    def _arguments(self) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if self._skip("("):
            while not self._skip(")"):
                name = self._next()
                self._next()
                arguments[name] = self._literal()
        return arguments

    def _literal(self) -> Any:
        if self._skip("$"):
            return _Variable(self._next())
        if self._skip("["):
            values = []
            while not self._skip("]"):
                values.append(self._literal())
            return values
        word = self._next()
        with suppress(ValueError):
            return json.loads(word)
        return word

    def _resolved(self, value: Any) -> Any:
        return self._variables.get(value.name) if isinstance(value, _Variable) else value

    def _pick(self, selection: list[Any], held: Any) -> Any:
        if held is None or not selection:
            return held
        if isinstance(held, list):
            return [self._pick(selection, item) for item in held]
        picked: dict[str, Any] = {}
        for chosen in selection:
            if isinstance(chosen, _Spread):
                inner = self._fragments[chosen.fragment] if isinstance(chosen.fragment, str) else chosen.fragment
                picked.update(self._pick(inner, held))
            elif all((word == "include") == bool(self._resolved(value)) for word, value in chosen.conditions):
                picked[chosen.alias] = self._pick(chosen.selection, self._held(chosen, held))
        return picked

    def _held(self, chosen: _Field, held: dict[str, Any]) -> Any:
        if chosen.name not in held:
            raise GraphQLError(f'Cannot query field "{chosen.name}" on type "{held.get("__typename", "Query")}".')
        value = held[chosen.name]
        given = {name: self._resolved(argument) for name, argument in chosen.arguments.items()}
        if callable(value):
            return value(**{name: argument for name, argument in given.items() if argument is not None})
        return value
