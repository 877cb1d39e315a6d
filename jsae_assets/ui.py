"""`jsae ui`: the Dagster UI with its daemon, and the server of the stored pages, one of each for an instance.

Here: starting and ending them, and refusing where another one runs. Not here: the server of pages (`serving.py`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from upath import UPath

from jsae_assets.runs.executing import WORKSPACE
from jsae_assets.site.serving import SITE_PAGE, URL, serve
from jsae_core.locks import if_not_held

HOST, PORT = "127.0.0.1", 3000
LOCK = "ui"  # the file in the instance's folder that a running UI holds locked, with its address
ADDRESS = re.compile(rb"Serving dagster-webserver on (\S+) in process")


class CannotStartError(RuntimeError):
    """The UI cannot be started. The message says why, and what to do."""


def run_ui(home: Path, storage: UPath, host: str, port: int, further: Sequence[str]) -> int:
    """Run the Dagster UI of the instance in `home`, and serve the pages stored in `storage`, until the UI ends. Return
    its exit status.

    Args:
        port: 0 for any that is free.
        further: more options for `dagster dev`.

    Raises:
        CannotStartError: a UI of this instance runs already, or the port is in use.
    """
    lock = home / LOCK
    with if_not_held(lock) as is_ours:
        if not is_ours:
            address = lock.read_text(encoding="utf-8")
            where = f"at {address}" if address else "or begins to; where it was started it says at which address"
            raise CannotStartError(
                f"The UI of this instance ({home}) runs already, {where}. End that one to start it anew"
            )
        lock.write_text("", encoding="utf-8")
        if port and _is_in_use(host, port):
            raise CannotStartError(
                f"Port {port} of {host} is in use by another program, or by the UI of another instance. Choose another "
                f"port: jsae ui --port {port + 1}"
            )
        _serve_pages(storage)
        return _run_dagster(
            ["--host", host, "--port", str(port), *further],
            lambda address: lock.write_text(address, encoding="utf-8"),
        )


def _is_in_use(host: str, port: int) -> bool:
    with contextlib.closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a UI that has just ended is no obstacle
        try:
            trial.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE  # Dagster tells other problems
    return False


def _serve_pages(storage: UPath) -> None:
    try:
        serve(storage)
    except OSError as error:
        print(f"The site is not served at {URL} ({error}), so links to it will not work. `jsae site` opens it.")
        return
    note = "" if (storage / SITE_PAGE).exists() else " (after the asset `site` is materialised)"
    print(f"The site: {URL}/{SITE_PAGE}{note}", flush=True)


def _run_dagster(options: Sequence[str], tell_address: Callable[[str], object]) -> int:
    """Run `dagster dev`, copy what it prints, and tell the address at which it serves, until it ends. Return its exit
    status."""
    # the filter hides Dagster's advice to use its command `dg`, which would not find this workspace
    command = [sys.executable, "-W", "ignore::FutureWarning", "-m", "dagster", "dev"]
    command += ["--workspace", str(WORKSPACE), *options]
    # in a session of its own, so that Ctrl-C reaches this process alone, and through a pipe, so that it can fall silent
    dagster = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    told_to_end = threading.Event()

    def end(number: int, frame: object) -> None:
        """End Dagster together with this process."""
        if not told_to_end.is_set():
            told_to_end.set()
            os.write(sys.stdout.fileno(), b"\nStopping the Dagster UI.\n")
        dagster.terminate()

    def copy(output: IO[bytes]) -> None:
        for line in output:
            if serving := ADDRESS.search(line):
                tell_address(serving[1].decode())
            if not told_to_end.is_set():  # then Dagster's processes report how they were interrupted
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)
    copying = threading.Thread(target=copy, args=[dagster.stdout], daemon=True)
    copying.start()
    status = dagster.wait()
    if told_to_end.is_set():
        return 0
    copying.join()
    return status
