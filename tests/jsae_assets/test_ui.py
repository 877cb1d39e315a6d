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

PATIENCE = 300  # seconds for one thing to happen, on a machine that is busy with others
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


ASSET = """query($key: AssetKeyInput!, $partitions: [String!]) { assetNodeOrError(assetKey: $key) { ... on AssetNode {
    partitionKeysByDimension { name partitionKeys }
    assetMaterializations(partitions: $partitions) { partition }
} } }"""
LAUNCH = """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
BACKFILL = """mutation($params: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $params) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
RUN = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
BACKFILL_STATUS = """query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
    status } ... on PythonError { message } } }"""
LOGS = """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events { ... on MessageEvent { message }
    } } } }"""
RUNS = "query($filter: RunsFilter) { runsOrError(filter: $filter) { ... on Runs { results { runId status } } } }"
LOCATION = {"repositoryLocationName": "jsae", "repositoryName": "__repository__"}


def asset(server: Server, *path: str, partitions: list[str] | None = None) -> dict:
    return server.ask(ASSET, key={"path": path}, partitions=partitions)["assetNodeOrError"]


def partition_keys(server: Server) -> dict[str, list[str]]:
    dimensions = asset(server, "jsae", "sae_pair")["partitionKeysByDimension"]
    return {dimension["name"]: dimension["partitionKeys"] for dimension in dimensions}


def test_partitions_appear_by_themselves_and_a_backfill_over_a_cell_the_catalog_lacks_makes_the_other(server):
    server.wait_for("the web server", lambda: server.ask("{ version }"))
    expected = {"model": ["tiny"], "layer": ["0", "1"]}
    server.wait_for("the registration of the partitions", lambda: partition_keys(server) == expected)

    params = {
        "selector": LOCATION | {"pipelineName": "tokenise_text"},
        "runConfigData": {},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": "tiny"}]},
    }
    launched = server.ask(LAUNCH, params=params)["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run = launched["run"]["runId"]

    def ended():
        status = server.ask(RUN, id=run)["runOrError"]["status"]
        return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

    assert server.wait_for("the end of the run that makes the tokens", ended) == "SUCCESS", server.output()

    backfill = server.ask(
        BACKFILL,
        params={
            "assetSelection": [{"path": ["jsae", name]} for name in ("sae_pair", "jacobian_histogram")],
            "partitionNames": ["0|tiny", "1|tiny"],
        },
    )["launchPartitionBackfill"]
    assert backfill["__typename"] == "LaunchBackfillSuccess", backfill

    def finished():
        status = server.ask(BACKFILL_STATUS, id=backfill["backfillId"])["partitionBackfillOrError"]["status"]
        return status if status not in ("REQUESTED", "FAILING", "CANCELING") else None

    server.wait_for("the end of the backfill", finished)
    for name in ("sae_pair", "jacobian_histogram"):
        made = asset(server, "jsae", name, partitions=["0|tiny", "1|tiny"])["assetMaterializations"]
        assert [event["partition"] for event in made] == ["1|tiny"]

    runs = server.ask(RUNS, filter={"tags": [{"key": "dagster/backfill", "value": backfill["backfillId"]}]})
    results = runs["runsOrError"]["results"]
    assert [result["status"] for result in results] == ["SUCCESS", "SUCCESS"]
    logged = [event.get("message", "") for result in results for event in logs(server, result["runId"])]
    assert any(
        "the catalog holds no jsae pair of tiny at layer 0. Layers of tiny with one: 1" in text for text in logged
    )


def logs(server: Server, run: str) -> list[dict]:
    return server.ask(LOGS, id=run)["logsForRun"]["events"]
