"""A quiet connection to wandb with bounded waiting, a run that is logged there, and the client's errors in plain words.

Here: how the client is set up, what its errors mean, and a retry after the one failure that it does not retry itself.
Not here: what is requested from wandb and what is logged (`sweeps.py`, `artifacts.py`).

The API key comes from the environment (WANDB_API_KEY) or from netrc, where `wandb login` puts it. Neither the key nor
the query of a signed address appears in an error of this module.
"""

from __future__ import annotations

import http.client
import os
import re
import time
import urllib.error
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from jsae_core import silence

if TYPE_CHECKING:
    import wandb

Result = TypeVar("Result")

# the names that wandb itself allows; a project's name may hold spaces
_ENTITY, _PROJECT = r"[^/\\#?%:\s]+", r"[^/\\#?%:\s]+(?: +[^/\\#?%:\s]+)*"
PROJECT_PATH = re.compile(rf"(?P<entity>{_ENTITY})/(?P<project>{_PROJECT})")
ARTIFACT_PATH = re.compile(rf"{PROJECT_PATH.pattern}/[^/:\s]+:[^/:\s]+")

FOLDERS = {"WANDB_DIR": "runs", "WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data", "WANDB_ARTIFACT_DIR": "artifacts"}
PATIENCE = {  # environment variable: the client's name of the setting, and its value if the variable is not set
    "WANDB_HTTP_TIMEOUT": ("x_graphql_timeout_seconds", 20.0),
    "WANDB__GRAPHQL_RETRY_MAX": ("x_graphql_retry_max", 3),
    "WANDB__GRAPHQL_RETRY_WAIT_MIN_SECONDS": ("x_graphql_retry_wait_min_seconds", 1.0),
    "WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS": ("x_graphql_retry_wait_max_seconds", 5.0),
}
WAITS_AFTER_A_CUT = (0.5, 2.0)  # seconds before the second and the third try, if the connection was cut

SECRETS = re.compile(r"\b[0-9a-fA-F]{40,}|\bwandb_v\d+_\w+")
QUERIES = re.compile(r"\?[^\s\"'?]*=[^\s\"']*")
LONGEST_QUOTE = 300  # characters of the client's own message in an error
NO_ANSWER = re.compile(r"Client\.Timeout|did not respond in time|deadline exceeded|timed out", re.IGNORECASE)
BROKEN = re.compile(r"unexpected EOF|IncompleteRead|ConnectionResetError|Connection broken")
UNREACHABLE = re.compile(
    r"connection refused|dial tcp|no such host|unreachable|: EOF|reset by peer|Max retries exceeded|urlopen error",
    re.IGNORECASE,
)
MISSING = re.compile(r"not found|Could not find", re.IGNORECASE)


class WandbError(RuntimeError):
    """A request to wandb failed. The message says which, at which server, why, and what to do."""


class BrokenAnswerError(WandbError):
    """The connection was cut in the middle of an answer, the only failure that the client does not retry."""


def connect(entity: str | None, folder: str | Path) -> wandb.Api:
    """Connect to wandb: print nothing, ask the user nothing, keep the client's files in a folder, wait a bounded time.

    Connecting takes one request, with which the client verifies the key. Retries and time limits of each request follow
    these environment variables (defaults in parentheses): WANDB_HTTP_TIMEOUT (20 seconds), WANDB__GRAPHQL_RETRY_MAX (3
    retries; at least 1), WANDB__GRAPHQL_RETRY_WAIT_MIN_SECONDS (1) and WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS (5).

    Args:
        entity: the user or team that owns the projects; naming it saves a request.

    Raises:
        WandbError: there is no key, the server refuses it, or the server does not answer.
    """
    import wandb

    keep_files_in(folder)
    patience: dict[str, Any] = {setting: _number(name, default) for name, (setting, default) in PATIENCE.items()}
    overrides = {"entity": entity} if entity else None
    forget_service()
    try:
        wandb.setup(wandb.Settings(silent=True, **patience))
        return unbroken(
            f"access to {entity or 'your account'}", lambda: wandb.Api(overrides, timeout=_longest(patience))
        )
    finally:
        forget_service()


def keep_files_in(folder: str | Path) -> None:
    """Have the client keep its files below a folder, print nothing and report no errors to wandb."""
    for name, place_name in FOLDERS.items():
        place = Path(folder).absolute() / place_name
        # if the folder did not exist, the client would use the system's folder for temporary files instead
        place.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(place)
    os.environ.update(WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")


def unbroken(what: str, ask: Callable[[], Result]) -> Result:
    """Return the result of a request to wandb; repeat it, a little later, if the answer was cut off. `what` and errors
    are as in `explained`. If wandb did not answer just now, it is not asked."""
    if ago := silence.since(_host()):
        advice = "Check the network, proxies and WANDB_BASE_URL, or run it again later"
        raise WandbError(f"request to wandb at {_host()} failed, for {what}: {ago}. {advice}")
    for wait in WAITS_AFTER_A_CUT:
        try:
            with explained(what):
                return ask()
        except BrokenAnswerError:
            time.sleep(wait)
    with explained(what):
        return ask()


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn any error of the client in the block into a `WandbError`.

    Args:
        what: what was requested, with the path, such as "the runs of entity/project".

    Raises:
        WandbError: instead of an error of the client, of its HTTP library, or of the connection.
    """
    import requests
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except (
        wandb.Error,
        WandbApiFailedError,
        requests.RequestException,
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
        ValueError,
    ) as error:
        # from None, because errors are stored with their causes, and the client's error may quote a signed address
        raise _in_plain_words(what, error) from None


@contextmanager
def logged_run(
    project_path: str, name: str, job_type: str, config: Mapping[str, Any], folder: str | Path, offline: bool
) -> Iterator[wandb.Run]:
    """Start a run and finish it with the block, as failed if the block raises. The run logs nothing about the machine,
    the program or the packages. If another run is active in this process, that one stays wandb's current run.

    Args:
        project_path: entity/project.
        folder: where the client keeps its files; offline, the run's files are there, too, for `wandb sync`.
        offline: keep everything on this machine, and do not contact wandb.

    Raises:
        ValueError: the project path is malformed.
        WandbError: wandb does not answer, refuses the key, or does not accept the run.
    """
    import wandb

    match = PROJECT_PATH.fullmatch(project_path)
    if not match:
        raise ValueError(f"{project_path!r} is not a wandb project; expected entity/project")
    if offline:
        keep_files_in(folder)
    else:
        connect(match["entity"], folder)
    settings = wandb.Settings(
        silent=True,
        console="off",
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
        host="unnamed",
    )
    try:
        with explained(f"the start of the run {name} in {project_path}"):
            run = wandb.init(
                entity=match["entity"],
                project=match["project"],
                name=name,
                job_type=job_type,
                config=dict(config),
                dir=str(folder),
                mode="offline" if offline else "online",
                reinit="create_new",
                settings=settings,
            )
        with run:
            yield run
    finally:
        forget_service()


def _number(name: str, default: float) -> float:
    text = os.environ.get(name)
    try:
        number = default if text is None else type(default)(text)
    except ValueError:
        number = 0
    if not number > 0:
        raise WandbError(f"the environment's {name} is {text!r}; expected a number above 0")
    return number


def _longest(patience: dict[str, float]) -> int:
    """The seconds that a request takes at most with all its retries; a shorter limit would hide why it failed."""
    retries = patience["x_graphql_retry_max"]
    waits = retries * max(patience["x_graphql_retry_wait_min_seconds"], patience["x_graphql_retry_wait_max_seconds"])
    return int((retries + 1) * patience["x_graphql_timeout_seconds"] + waits + 5)


def forget_service() -> None:
    """Remove the address of the client's helper process from the environment. The helper ends with this process, but
    processes that are started from here would inherit its address."""
    os.environ.pop("WANDB_SERVICE", None)


def _in_plain_words(what: str, error: Exception) -> WandbError:
    kind: type[WandbError] = WandbError
    status, words = _status(error), str(error)
    if "No API key" in words:
        why, advice = "there is no API key", "Set WANDB_API_KEY, or run `wandb login` as the user that runs this"
    elif "API key must" in words:
        why, advice = "the API key is malformed", "Set WANDB_API_KEY, or run `wandb login` again"
    elif status == 401:
        why = "the server refuses the API key (HTTP 401)"
        advice = "Set WANDB_API_KEY to a key of this server, or run `wandb login` again"
    elif status == 403:
        why = "the API key's user has no access (HTTP 403)"
        advice = "Check the path, and ask its owner for access"
    elif status in (404, 410) or (status is None and MISSING.search(words)):
        why = f"there is nothing of this name{f' (HTTP {status})' if status else ''}, or it is private"
        advice = "Check the path's entity, project and name, that the API key's user may see it, and WANDB_BASE_URL"
    elif status == 429:
        why = "the server reports too many requests (HTTP 429), even after retries"
        advice = "Wait some minutes and run it again, less often"
    elif status is not None and (status == 408 or status >= 500):
        why = f"the server fails (HTTP {status}), even after retries"
        advice = "Run it again later; https://status.wandb.com tells whether wandb is down"
    elif status is not None:
        why, advice = f"the server refuses the request (HTTP {status})", "Check the path, and the client's version"
    elif BROKEN.search(words):
        kind = BrokenAnswerError
        why = "the connection was cut in the middle of an answer"
        advice = "Run it again; if this happens again, check proxies"
    elif NO_ANSWER.search(words):
        why = "the server did not answer in time (or asks to wait longer than that)"
        advice = "Run it again later; WANDB_HTTP_TIMEOUT sets how many seconds an answer may take"
        silence.remember(_host())
    elif UNREACHABLE.search(words):
        why, advice = "the server cannot be reached", "Check the network, proxies and WANDB_BASE_URL"
        silence.remember(_host())
    else:
        why, advice = "the client failed", "See its message"
    quote = _without_secrets(f"{type(error).__name__}: {words}")
    return kind(f"request to wandb at {_host()} failed, for {what}: {why}. {advice}. The client's message: {quote}")


def _status(error: BaseException | None) -> int | None:
    """The HTTP status of an error, wherever the client has put it; None if there is none."""
    while error is not None:
        response = getattr(error, "response", None)
        status = getattr(response, "http_status", None) or getattr(response, "status_code", None)
        status = status or getattr(error, "code", None)
        if isinstance(status, int) and status > 0:
            return status
        last, error = error, error.__cause__ or getattr(error, "exc", None)
    in_words = re.search(r"HTTP (\d{3})\b", str(last))
    return int(in_words[1]) if in_words else None


def _without_secrets(words: str) -> str:
    key = os.environ.get("WANDB_API_KEY")
    if key:
        words = words.replace(key, "(key)")
    words = QUERIES.sub("", SECRETS.sub("(key)", words))
    words = " ".join(words.split())
    return words if len(words) <= LONGEST_QUOTE else f"{words[:LONGEST_QUOTE]}..."


def _host() -> str:
    import wandb

    # the address may hold a user name and password before the host
    return urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url).netloc.rpartition("@")[2]
