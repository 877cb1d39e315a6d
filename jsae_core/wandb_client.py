"""One bounded, quiet connection to wandb, a run that is logged there, and its errors in plain words.

Here: how the client is set up, what its errors mean, and a retry of the one failure that it gives up on at once.
Not here: what is asked of wandb and what is logged (`sweeps.py`, `artifacts.py`).

The API key comes from the environment (WANDB_API_KEY) or from netrc, where `wandb login` puts it. Neither it nor the
query of a signed address gets into an error of this module.
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

if TYPE_CHECKING:
    import wandb

Result = TypeVar("Result")

# what wandb itself takes as names: a project's may hold spaces
_ENTITY, _PROJECT = r"[^/\\#?%:\s]+", r"[^/\\#?%:\s]+(?: +[^/\\#?%:\s]+)*"
PROJECT_PATH = re.compile(rf"(?P<entity>{_ENTITY})/(?P<project>{_PROJECT})")
ARTIFACT_PATH = re.compile(rf"{PROJECT_PATH.pattern}/[^/:\s]+:[^/:\s]+")

FOLDERS = {"WANDB_DIR": "runs", "WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data", "WANDB_ARTIFACT_DIR": "artifacts"}
PATIENCE = {  # what the environment may set, the client's name for it, and what holds if it does not
    "WANDB_HTTP_TIMEOUT": ("x_graphql_timeout_seconds", 20.0),
    "WANDB__GRAPHQL_RETRY_MAX": ("x_graphql_retry_max", 3),
    "WANDB__GRAPHQL_RETRY_WAIT_MIN_SECONDS": ("x_graphql_retry_wait_min_seconds", 1.0),
    "WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS": ("x_graphql_retry_wait_max_seconds", 5.0),
}
WAITS_AFTER_A_CUT = (0.5, 2.0)  # seconds, before the second and the third try

SECRETS = re.compile(r"\b[0-9a-fA-F]{40,}|\bwandb_v\d+_\w+")
QUERIES = re.compile(r"\?[^\s\"'?]*=[^\s\"']*")
LONGEST_QUOTE = 300  # characters of a client's own words in an error
NO_ANSWER = re.compile(r"Client\.Timeout|did not respond in time|deadline exceeded|timed out", re.IGNORECASE)
BROKEN = re.compile(r"unexpected EOF|IncompleteRead|ConnectionResetError|Connection broken")
UNREACHABLE = re.compile(
    r"connection refused|dial tcp|no such host|unreachable|: EOF|reset by peer|Max retries exceeded|urlopen error",
    re.IGNORECASE,
)
MISSING = re.compile(r"not found|Could not find", re.IGNORECASE)


class WandbError(RuntimeError):
    """Something asked of wandb did not come. The message says what, where, why, and what to do."""


class BrokenAnswerError(WandbError):
    """The connection was cut in the middle of an answer, which is the one failure that the client does not retry."""


def connect(entity: str | None, folder: str | Path) -> wandb.Api:
    """A connection that prints nothing, asks nothing, keeps its files in a folder and gives up in bounded time.

    It costs one request, by which the client has the key accepted. How patient each request is follows the environment:
    WANDB_HTTP_TIMEOUT (20 seconds), WANDB__GRAPHQL_RETRY_MAX (3 tries after the first; at least 1),
    WANDB__GRAPHQL_RETRY_WAIT_MIN_SECONDS (1) and WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS (5).

    Args:
        entity: whose projects are meant; naming the user or team saves a request.

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
    """The client's files go below a folder, and it prints and reports nothing."""
    for name, place_name in FOLDERS.items():
        place = Path(folder).absolute() / place_name
        # the client takes the system's folder for temporary files instead of one that is not there yet
        place.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(place)
    os.environ.update(WANDB_SILENT="true", WANDB_ERROR_REPORTING="false")


def unbroken(what: str, ask: Callable[[], Result]) -> Result:
    """What `ask` gets from wandb; asked again, a little later, if its answer is cut. Else like `explained`."""
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
    """Makes any error of the client one `WandbError`.

    Args:
        what: that is asked for, with its path ("the runs of entity/project").

    Raises:
        WandbError: in the place of an error of the client, of its HTTP library, or of the connection.
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
        # from None, as errors are stored with their causes, and the client's may quote a signed address
        raise _in_plain_words(what, error) from None


@contextmanager
def logged_run(
    project_path: str, name: str, job_type: str, config: Mapping[str, Any], folder: str | Path, offline: bool
) -> Iterator[wandb.Run]:
    """A run that is begun, and is finished with the block (as failed, if that raises). It says nothing of the machine,
    the program or the packages, and leaves a run that goes on in this process the current one.

    Args:
        project_path: entity/project.
        folder: where the client keeps its files; offline, the run's are among them, for `wandb sync`.
        offline: keep everything on this machine, and ask nothing of wandb.

    Raises:
        ValueError: the project path is none.
        WandbError: wandb does not answer, refuses the key, or does not take the run.
    """
    import wandb

    match = PROJECT_PATH.fullmatch(project_path)
    if not match:
        raise ValueError(f"{project_path!r} is no wandb project; expected entity/project")
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
        with explained(f"room for the run {name} in {project_path}"):
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
    """Seconds in which a request has come to an end with all its retries: a shorter limit would hide why it failed."""
    retries = patience["x_graphql_retry_max"]
    waits = retries * max(patience["x_graphql_retry_wait_min_seconds"], patience["x_graphql_retry_wait_max_seconds"])
    return int((retries + 1) * patience["x_graphql_timeout_seconds"] + waits + 5)


def forget_service() -> None:
    """The client's helper process ends with the process that started it, but its address would be inherited by others
    that are started from here."""
    os.environ.pop("WANDB_SERVICE", None)


def _in_plain_words(what: str, error: Exception) -> WandbError:
    kind: type[WandbError] = WandbError
    status, words = _status(error), str(error)
    if "No API key" in words:
        why, advice = "there is no API key", "Set WANDB_API_KEY, or run `wandb login` as the user that runs this"
    elif "API key must" in words:
        why, advice = "what is given as API key is none", "Set WANDB_API_KEY, or run `wandb login` again"
    elif status == 401:
        why = "the server refuses the API key (HTTP 401)"
        advice = "Set WANDB_API_KEY to a key of this server, or run `wandb login` again"
    elif status == 403:
        why = "the API key's user may not read this (HTTP 403)"
        advice = "Check the path, and ask its owner for access"
    elif status in (404, 410) or (status is None and MISSING.search(words)):
        why = f"there is nothing of this name{f' (HTTP {status})' if status else ''}, or it is private"
        advice = "Check the path's entity, project and name, that the API key's user may see it, and WANDB_BASE_URL"
    elif status == 429:
        why = "the server answers too many requests (HTTP 429), after retries, too"
        advice = "Wait some minutes and run it again, less often"
    elif status is not None and (status == 408 or status >= 500):
        why = f"the server fails (HTTP {status}), after retries, too"
        advice = "Run it again later; https://status.wandb.com tells whether wandb is down"
    elif status is not None:
        why, advice = f"the server refuses the request (HTTP {status})", "Check the path, and the client's version"
    elif BROKEN.search(words):
        kind = BrokenAnswerError
        why, advice = "the connection was cut in the middle of an answer", "Run it again; if it goes on, check proxies"
    elif NO_ANSWER.search(words):
        why = "no answer in time (or the server asks to wait longer than that)"
        advice = "Run it again later; WANDB_HTTP_TIMEOUT sets how many seconds an answer may take"
    elif UNREACHABLE.search(words):
        why, advice = "the server cannot be reached", "Check the network, proxies and WANDB_BASE_URL"
    else:
        why, advice = "an error of the client", "See its words"
    quote = _without_secrets(f"{type(error).__name__}: {words}")
    return kind(f"wandb did not give {what}, asked at {_host()}: {why}. {advice}. The client's words: {quote}")


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error stands for, wherever the client has put it."""
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

    # a user name and password may stand before the host
    return urlsplit(os.environ.get("WANDB_BASE_URL") or wandb.setup().settings.base_url).netloc.rpartition("@")[2]
