"""The real web server and daemon of one machine, on a tiny catalog, driven as the UI drives them: through GraphQL.

Here: starting, ending and asking them. Not here: what is to happen (`test_ui.py`,
`services/test_one_machine.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psutil
import yaml

from tests.jsae_assets.conftest import REPOSITORY, write_catalog

T = TypeVar("T")
PATIENCE = 600  # seconds for one thing to happen, on a machine that is busy with others
SCRIPTS = Path(sys.executable).parent
# The real daemon, except that it looks at backfills every second, not every 30: one takes four looks to end.
DAEMON = (
    "import dagster._daemon.controller as controller; controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 1; "
    "from dagster._daemon.cli import main; main()"
)
# ... and at the queue every second, not every five.
QUICK_QUEUE = {
    "run_coordinator": {
        "module": "dagster._core.run_coordinator",
        "class": "QueuedRunCoordinator",
        "config": {"dequeue_interval_seconds": 1},
    }
}
# Runs in the daemon's own process, one after the other: torch is imported once.
IN_THE_DAEMON = {
    "run_launcher": {
        "module": "dagster._core.launcher.sync_in_memory_run_launcher",
        "class": "SyncInMemoryRunLauncher",
    }
}

BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
BACKFILL_STATUS = """query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
    status } ... on PythonError { message } } }"""
RUNS = """{ runsOrError { ... on Runs { results { runId jobName status tags { key value } } } } }"""
ASSETS = """{ assetNodes { assetKey { path } isExecutable isPartitioned partitionKeys
    assetMaterializations { partition runId } } }"""


class Server:
    """Web server and daemon on one home, each in a session of its own with all that it starts."""

    def __init__(self, home: Path, catalog: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._folder = home.parent
        self._environment = os.environ | {"DAGSTER_HOME": str(home), "JSAE_CATALOG": str(catalog), "JSAE_DEVICE": "cpu"}
        self.processes: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        port = str(self._port)
        commands = {
            "webserver": [str(SCRIPTS / "dagster-webserver"), "-h", "127.0.0.1", "-p", port],
            "daemon": [sys.executable, "-c", DAEMON, "run"],
        }
        for name, command in commands.items():
            with self._log(name).open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [*command, "-w", "workspace.yaml"],
                    cwd=REPOSITORY,
                    env=self._environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        self.wait_for("the web server's answer", lambda: self.ask("{ version }"))

    def end(self, *signals: signal.Signals) -> None:
        """With all that they started: each signal in turn, until nothing is left."""
        for sign in signals:
            for process in self.processes.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
            for process in self.processes.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)
        self.processes = {}

    def kill(self, with_all_they_started: bool) -> None:
        """kill -9 for both, or for their code servers and runs as well, as when the machine loses its power."""
        both = [psutil.Process(process.pid) for process in self.processes.values()]
        started = [child for process in both for child in process.children(recursive=True)]
        killed = [*both, *started] if with_all_they_started else both
        for process in killed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self.processes.values():
            process.wait()
        psutil.wait_procs(killed)
        self.processes = {}

    def ask(self, query: str, **variables: Any) -> dict:
        body = json.dumps({"query": query, "variables": variables}).encode()
        address = f"http://127.0.0.1:{self._port}/graphql"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def wait_for(self, what: str, condition: Callable[[], T], seconds: float = PATIENCE) -> T:
        """The first true answer of `condition`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for process in self.processes.values():
                assert process.poll() is None, self.output()
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                if answer := condition():
                    return answer
            time.sleep(0.5)  # each question takes the server some work
        raise AssertionError(f"{what} did not happen\n{self.output()}")

    def output(self) -> str:
        logs = [self._log(name) for name in ("webserver", "daemon")]
        return "\n".join(f"--- {log.name}\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}" for log in logs)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def runs(self) -> list[dict]:
        """The latest first, their tags by name."""
        found = self.ask(RUNS)["runsOrError"]["results"]
        return [run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]

    def places(self) -> dict[str, dict]:
        """What the UI knows of each asset: the partitions that it offers, and those of its materialisations."""
        return {
            "/".join(node["assetKey"]["path"]): {
                "path": node["assetKey"]["path"],
                "executable": node["isExecutable"],
                "offered": node["partitionKeys"] if node["isPartitioned"] else [""],
                "made": sorted(event["partition"] or "" for event in node["assetMaterializations"]),
            }
            for node in self.ask(ASSETS)["assetNodes"]
        }

    def launch_backfill(self, assets: list[dict]) -> str:
        """Of all partitions of these assets; gives its id."""
        params = {"assetSelection": [{"path": asset["path"]} for asset in assets], "allPartitions": True}
        launched = self.ask(BACKFILL, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return launched["backfillId"]

    def end_of_backfill(self, backfill: str) -> str:
        """How it ended, once it has."""

        def ended() -> str | None:
            status = self.ask(BACKFILL_STATUS, id=backfill)["partitionBackfillOrError"]["status"]
            return status if status not in ("REQUESTED", "FAILING", "CANCELING") else None

        return self.wait_for("the end of the backfill", ended)


@contextlib.contextmanager
def started(fresh_home: Path, folder: Path, entries: dict, settings: Mapping[str, Any]) -> Iterator[Server]:
    """Web server and daemon on a new home in a folder, with these settings of the instance beside the usual ones."""
    home = folder / "home"
    shutil.copytree(fresh_home, home)
    with (home / "dagster.yaml").open("a", encoding="utf-8") as file:
        file.write("\n" + yaml.safe_dump(dict(settings)))
    server = Server(home, write_catalog(folder, entries))
    try:
        server.start()
        yield server
    finally:
        server.end(signal.SIGTERM, signal.SIGKILL)
