"""Measures the time before anything is computed: loading the definitions, and, for a run launched as in the UI, the
time until the asset's own code begins.

    python -m benchmarks.startup

It copies dagster_home, where `make demo` has stored a small partition, and starts the real web server and daemon on the
copy. Not here: the speed of measures and training (`cases.py`).
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
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOME = ROOT / "dagster_home"
ASSET, PARTITION = ["jsae", "jacobian_examples"], "stdlib-1m:1"
FIRST_MESSAGE = "jacobian examples, jsae"  # part of the first log message of the asset's own code
STORED = HOME / "storage" / "jsae" / "sae_pair" / "1" / "stdlib-1m.safetensors"
TRIES = 5
LONGEST_WAIT = 120  # seconds
LAUNCH = """mutation($params: ExecutionParams!) { launchPipelineExecution(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
LOGS = """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection { events {
    ... on MessageEvent { message timestamp } } } } runOrError(runId: $id) { ... on Run { status } } }"""


def definitions_seconds() -> float:
    """Return the time of a process that imports and builds the definitions, from its start to its end."""
    program = "from jsae_assets.definitions import defs; defs()"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


@contextlib.contextmanager
def web_server() -> Iterator[Callable[..., dict]]:
    """Context manager that runs `dagster dev` on a copy of dagster_home, and gives a function that sends it GraphQL
    queries."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        home = shutil.copytree(HOME, Path(folder) / "home")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [str(Path(sys.executable).parent / "dagster"), "dev", "-w", "workspace.yaml", "-p", str(port)]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"DAGSTER_HOME": str(home)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

        def ask(query: str, **variables) -> dict:
            body = json.dumps({"query": query, "variables": variables}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=LONGEST_WAIT) as response:
                return json.load(response)["data"]

        try:
            wait_for("the web server's answer", lambda: answers(ask))
            yield ask
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


def answers(ask: Callable[..., dict]) -> bool:
    with contextlib.suppress(OSError):
        return bool(ask("{ version }"))
    return False


def wait_for(what: str, condition: Callable[[], object]) -> object:
    """Return the first true result of `condition`, which is called repeatedly. Raises TimeoutError."""
    end = time.monotonic() + LONGEST_WAIT
    while time.monotonic() < end:
        if answer := condition():
            return answer
        time.sleep(0.1)
    raise TimeoutError(f"{what} did not come within {LONGEST_WAIT} s")


def run_seconds(ask: Callable[..., dict]) -> tuple[float, float]:
    """Launch a run of the small partition. Return the seconds from the launch until the asset's code begins, and until
    the run has ended."""
    tags = [{"key": "dagster/partition", "value": PARTITION}]
    selector = {
        "repositoryLocationName": "jsae",
        "repositoryName": "__repository__",
        "jobName": "__ASSET_JOB",
        "assetSelection": [{"path": ASSET}],
        "assetCheckSelection": [],
    }
    params = {"selector": selector, "runConfigData": {}, "executionMetadata": {"tags": tags}, "mode": "default"}
    start = time.time()
    launched = ask(LAUNCH, params=params)["launchPipelineExecution"]
    if launched["__typename"] != "LaunchRunSuccess":
        raise RuntimeError(f"the run was not launched: {launched}")

    def ended() -> list[dict] | None:
        answer = ask(LOGS, id=launched["run"]["runId"])
        if answer["runOrError"]["status"] == "FAILURE":
            raise RuntimeError(f"the run failed: {[event.get('message') for event in answer['logsForRun']['events']]}")
        return answer["logsForRun"]["events"] if answer["runOrError"]["status"] == "SUCCESS" else None

    events = wait_for("the end of the run", ended)
    begins = [float(event["timestamp"]) for event in events if FIRST_MESSAGE in event.get("message", "")]
    return min(begins) / 1000 - start, max(float(event["timestamp"]) for event in events) / 1000 - start


def main() -> None:
    if not STORED.exists():
        raise SystemExit(f"{STORED} is missing: run make demo first, which stores a small partition")
    loads = sorted(definitions_seconds() for _ in range(TRIES))
    print(f"definitions load in {loads[TRIES // 2]:.1f} s ({loads[0]:.1f} to {loads[-1]:.1f})")
    with web_server() as ask:
        runs = [run_seconds(ask) for _ in range(TRIES)]
    for event, seconds in zip(("begins to compute", "has ended"), zip(*runs, strict=True), strict=True):
        ordered = sorted(seconds)
        print(
            f"a run of {'/'.join(ASSET)} at {PARTITION} {event} {ordered[TRIES // 2]:.1f} s after its launch "
            f"({ordered[0]:.1f} to {ordered[-1]:.1f})"
        )


if __name__ == "__main__":
    main()
