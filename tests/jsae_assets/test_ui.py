"""The real web server and daemon, on a tiny catalog, driven as the UI drives them: through GraphQL."""

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
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jsae_assets.conftest import REPOSITORY, write_catalog

PATIENCE = 900  # seconds for one thing to happen, on a machine that is busy with others
SCRIPTS = Path(sys.executable).parent
# The real daemon, except that it looks at backfills every two seconds, not every 30: one takes four looks to end.
DAEMON = (
    "import dagster._daemon.controller as controller; controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 2; "
    "from dagster._daemon.cli import main; main()"
)


class Server:
    def __init__(self, port: int, processes: list[subprocess.Popen], logs: list[Path]):
        self.url = f"http://127.0.0.1:{port}"
        self.processes = processes
        self.logs = logs

    def ask(self, query: str, **variables) -> dict:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def wait_for(self, what: str, condition: Callable[[], object]) -> object:
        """The first true answer of `condition`."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for process in self.processes:
                assert process.poll() is None, self.output()
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                if answer := condition():
                    return answer
            time.sleep(0.5)
        raise AssertionError(f"{what} did not happen\n{self.output()}")

    def output(self) -> str:
        return "\n".join(
            f"--- {log.name}\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}" for log in self.logs
        )


@pytest.fixture(scope="module")
def server(fresh_home, entries, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ui")
    home = folder / "home"
    shutil.copytree(fresh_home, home)
    environment = os.environ | {
        "DAGSTER_HOME": str(home),
        "JSAE_CATALOG": str(write_catalog(folder, entries())),
        "JSAE_DEVICE": "cpu",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    commands = {
        "webserver": [str(SCRIPTS / "dagster-webserver"), "-h", "127.0.0.1", "-p", str(port)],
        "daemon": [sys.executable, "-c", DAEMON, "run"],
    }
    processes, logs = [], []
    try:
        for name, command in commands.items():
            logs.append(folder / f"{name}.log")
            with logs[-1].open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [*command, "-w", "workspace.yaml"],
                        cwd=REPOSITORY,
                        env=environment,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )
        yield Server(port, processes, logs)
    finally:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=20)


BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
BACKFILL_STATUS = """query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
    status } ... on PythonError { message } } }"""
RUNS = "query($filter: RunsFilter) { runsOrError(filter: $filter) { ... on Runs { results { runId status } } } }"
ASSETS = """{ assetNodes { assetKey { path } isExecutable isPartitioned partitionKeys
    assetMaterializations { partition } } }"""
STALE = """query($key: AssetKeyInput!, $partition: String) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
    staleStatus(partition: $partition) } } }"""


def places(server: Server) -> dict[str, dict]:
    """What the UI knows of each asset: the partitions that it offers, and those of its materialisations."""
    return {
        "/".join(node["assetKey"]["path"]): {
            "path": node["assetKey"]["path"],
            "executable": node["isExecutable"],
            "offered": node["partitionKeys"] if node["isPartitioned"] else [""],
            "made": sorted(event["partition"] or "" for event in node["assetMaterializations"]),
        }
        for node in server.ask(ASSETS)["assetNodes"]
    }


def backfill(server: Server, assets: list[dict]) -> str:
    """Materialise all partitions of these assets; how it ended."""
    params = {"assetSelection": [{"path": asset["path"]} for asset in assets], "allPartitions": True}
    launched = server.ask(BACKFILL, params=params)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched

    def ended():
        status = server.ask(BACKFILL_STATUS, id=launched["backfillId"])["partitionBackfillOrError"]["status"]
        return status if status not in ("REQUESTED", "FAILING", "CANCELING") else None

    return server.wait_for("the end of the backfill", ended)


def test_a_backfill_over_everything_makes_each_cell_of_the_catalog_once_and_ends_successful(server):
    server.wait_for("the web server", lambda: server.ask("{ version }"))
    entries = places(server)["catalog"]["offered"]
    server.wait_for("the catalog's entries to be known", lambda: places(server)["catalog"]["made"] == sorted(entries))
    everything = [asset for asset in places(server).values() if asset["executable"]]
    assert backfill(server, everything) == "COMPLETED_SUCCESS", server.output()
    for name, asset in places(server).items():
        # everything is asked for at once, so a cell may find no tokens yet, make them, and be followed by their own run
        made = sorted(set(asset["made"])) if name == "tokens" else asset["made"]
        assert made == sorted(asset["offered"]), name
        for partition in asset["offered"] if asset["executable"] else []:
            stale = server.ask(STALE, key={"path": asset["path"]}, partition=partition or None)
            assert stale["assetNodeOrError"]["staleStatus"] == "FRESH", (name, partition)
    runs = server.ask(RUNS, filter={})["runsOrError"]["results"]
    assert {run["status"] for run in runs} == {"SUCCESS"}
