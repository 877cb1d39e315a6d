"""Downloading one file of a wandb artifact by its signed address, with bounded patience.

Here: continuing a download that was interrupted, when to try again and when to give up. Not here: which files an
artifact has and whether they are intact (`artifacts.py`).

The wandb client is not used, because it has no time-out and starts an interrupted file from the beginning.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsae_core.wandb_client import WandbError

if TYPE_CHECKING:
    import requests

CHUNK = 1 << 16  # bytes; an interrupted download loses less than this
LONGEST_WAIT = 300.0  # seconds; a server that asks to wait longer is asked again after this time


@dataclass(frozen=True)
class Patience:
    """When to give up a download.

    Attributes:
        retries: how many retries in a row may make no progress.
        shortest, longest: seconds between tries.
        timeout: seconds without a byte after which a try ends.
    """

    retries: int
    shortest: float
    longest: float
    timeout: float

    @classmethod
    def of_client(cls) -> Patience:
        import wandb

        settings = wandb.setup().settings
        given = (
            (settings.x_file_transfer_retry_max, 6),
            (settings.x_file_transfer_retry_wait_min_seconds, 1.0),
            (settings.x_file_transfer_retry_wait_max_seconds, 30.0),
            (settings.x_file_transfer_timeout_seconds, 60.0),
        )
        values: list[Any] = [default if value is None else value for value, default in given]
        return cls(*values)


@dataclass(frozen=True)
class _Trouble:
    """Why a try to download a file ended early.

    Attributes:
        refused: the store no longer accepts the address; it may accept a new one.
        final: another try would not help.
        wait: seconds to wait before the next try.
    """

    why: str
    refused: bool = False
    final: bool = False
    wait: float = 0.0


def download(what: str, url: str, size: int, target: Path, fresh_url: Callable[[], str], patience: Patience) -> None:
    """Download a file until it has its full size, continuing from the bytes that `target` already holds.

    Args:
        what: the file, in words, for messages.
        url: a signed address, which the store accepts only for some time.
        size: of the whole file, in bytes.
        fresh_url: gives another address when the store no longer accepts this one.

    Raises:
        WandbError: the file did not arrive within the patience, or the store refuses it.
    """
    largest_size, tries_without_progress, refused = size_of(target), 0, False
    while size_of(target) < size:
        trouble = _continue(url, target, patience.timeout)
        arrived = size_of(target)
        if arrived >= size:
            return
        if arrived > largest_size:
            largest_size, tries_without_progress, refused = arrived, 0, False
        else:
            tries_without_progress += 1
        if trouble.final or tries_without_progress > patience.retries or (refused and trouble.refused):
            raise WandbError(
                f"{what} could not be downloaded: {trouble.why}. {max(arrived, 0)} of its {size} bytes have "
                "arrived and are kept. Run it again later: the download continues from there"
            )
        if trouble.refused:
            refused, url = True, fresh_url()
        else:
            longer = patience.shortest * 2 ** max(tries_without_progress - 1, 0)
            time.sleep(max(trouble.wait, min(longer, patience.longest)))


def size_of(path: Path) -> int:
    """A file's size; -1 if it does not exist, so that a missing empty file counts as incomplete and is made."""
    return path.stat().st_size if path.exists() else -1


def _continue(url: str, target: Path, timeout: float) -> _Trouble:
    """Append to a file what one request brings, and return why that ended; irrelevant if the file is then complete."""
    import requests

    size = max(size_of(target), 0)
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size}-"} if size else {})
    silence = _Trouble(f"nothing came for {timeout:g} seconds")
    try:
        # a signed address needs no key; an authorisation that does nothing keeps requests from using one from netrc
        with requests.get(url, headers=headers, stream=True, timeout=timeout, auth=lambda request: request) as answer:
            if answer.status_code not in (200, 206):
                return _refusal(answer)
            with target.open("ab" if answer.status_code == 206 else "wb") as out:
                for chunk in answer.iter_content(CHUNK):
                    out.write(chunk)
    except requests.Timeout:
        return silence
    except requests.RequestException as error:
        # the error's message is not quoted, since it holds the signed address
        broken = _Trouble(f"there was no connection, or it was cut ({type(error).__name__})")
        return silence if _ran_out_of_time(error) else broken
    return _Trouble("the answer ended early")


def _ran_out_of_time(error: BaseException | None) -> bool:
    """Whether a TimeoutError of the network caused an error: in the middle of an answer, requests turns it into a
    ConnectionError."""
    while error is not None and not isinstance(error, TimeoutError):
        error = error.__cause__ or error.__context__
    return error is not None


def _refusal(answer: requests.Response) -> _Trouble:
    status = answer.status_code
    if status in (400, 401, 403):  # what stores answer when a signed address has expired
        return _Trouble(f"the store refuses the address that wandb gave for it (HTTP {status})", refused=True)
    if status in (408, 429) or status >= 500:
        return _Trouble(f"the store answers HTTP {status}", wait=_wait_asked_for(answer.headers.get("Retry-After", "")))
    return _Trouble(f"the store answers HTTP {status}", final=True)


def _wait_asked_for(retry_after: str) -> float:
    """The seconds that a Retry-After header asks to wait, given as a number or as a date."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)
