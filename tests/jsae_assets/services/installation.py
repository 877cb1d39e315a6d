"""A whole installation on this machine, as deploy/ describes it: PostgreSQL, an S3 server, the head and the workers of
a Ray cluster, daemon and web server, each started with the command of its systemd unit.

Here: starting and ending them, and asking the web server. Not here: what is to happen (`test_services.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from tests.s3_server import BUCKET, s3_server

T = TypeVar("T")
REPOSITORY = Path(__file__).parents[3]
DEPLOY = REPOSITORY / "deploy"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@dataclass
class Process:
    """A part of the installation, in a session of its own, and what it printed."""

    name: str
    popen: subprocess.Popen
    log: Path

    def family(self) -> list[psutil.Process]:
        """It and all that it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.popen.pid)
            return [process, *process.children(recursive=True)]
        return []

    def kill(self) -> None:
        """As if the machine lost its power: SIGKILL for all at once."""
        family = self.family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=10)
        self.popen.wait(timeout=10)

    def last_words(self) -> str:
        return f"{self.name}:\n{self.log.read_text(encoding='utf-8', errors='replace')[-3000:]}"


@dataclass
class Installation:
    """The parts that run, and the environment that all of them share."""

    folder: Path
    environment: dict[str, str]
    processes: list[Process] = field(default_factory=list)

    def start(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> Process:
        log = self.folder / f"{name}.log"
        with log.open("w", encoding="utf-8") as output:
            popen = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment or self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(Process(name, popen, log))
        return self.processes[-1]

    def start_unit(self, unit: str, name: str | None = None, **environment: str) -> Process:
        """With the command of a systemd unit, its variables filled in as systemd would."""
        environment = self.environment | environment
        (command,) = re.findall(r"^ExecStart=(.*)$", (DEPLOY / "systemd" / f"{unit}.service").read_text(), flags=re.M)
        command = in_this_place(command)
        filled_in = re.sub(r"\$\{?(\w+)\}?", lambda variable: environment[variable[1]], command)
        return self.start(name or unit, shlex.split(filled_in), environment)

    def kill(self, process: Process) -> None:
        """As if its machine lost its power."""
        self.processes.remove(process)
        process.kill()

    def kill_run(self, run: str) -> None:
        """SIGKILL for the process on the head that executes a run."""
        head = next(process for process in self.processes if process.name == "jsae-ray-head")
        for process in head.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                said = " ".join(process.cmdline())
                if "execute_run" in said and run in said:
                    process.kill()

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.kill()

    def wait_for(self, what: str, condition: Callable[[], T | None], seconds: float) -> T:
        """The first true answer of `condition`; fails the test with what was waited for, or what ended meanwhile, and
        with what all parts printed last."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for process in self.processes:
                if (status := process.popen.poll()) is not None:
                    pytest.fail(f"{process.name} ended with status {status}:\n{process.last_words()}")
            if answer := condition():
                return answer
            time.sleep(0.5)
        pytest.fail("\n".join([f"{what} did not come within {seconds:g} s", *map(Process.last_words, self.processes)]))

    def ask(self, query: str, **variables) -> dict:
        """What the web server answers."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        address = f"http://127.0.0.1:{self.environment['JSAE_WEB_PORT']}/graphql"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)["data"]

    def web_server_answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.ask("{ version }"))
        return False


def in_this_place(text: str) -> str:
    return text.replace("/opt/jsae/.venv/bin", str(Path(sys.executable).parent))


def as_postgres() -> dict[str, str]:
    """PostgreSQL refuses to run as root: whom `subprocess` is to run it as."""
    return {"user": "postgres", "group": "postgres"} if os.getuid() == 0 else {}


def postgres_program(name: str) -> str:
    found = shutil.which(name) or max(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), default=None)
    if found is None:
        pytest.fail(f"PostgreSQL's {name} is not installed, which these tests need: apt-get install postgresql")
    return found


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """A server of this machine's PostgreSQL with an empty database; gives its URL."""
    # not in pytest's folder, which pytest closes to all but its owner
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        if as_postgres():
            shutil.chown(folder, "postgres", "postgres")
        port, database, log = free_port(), f"{folder}/data", f"{folder}/log"
        control = [postgres_program("pg_ctl"), "-w", "-D", database]
        postgres(postgres_program("initdb"), "-D", database, "-U", "jsae", "--auth=trust", "--no-sync")
        postgres(*control, "-l", log, "-o", f"-p {port} -h 127.0.0.1 -k '' -F", "start")
        try:
            yield f"postgresql+psycopg2://jsae@127.0.0.1:{port}/postgres"
        finally:
            postgres(*control, "-m", "immediate", "stop")


def postgres(*command: str) -> None:
    """Run one of its programs as its user, and fail with what it says."""
    with tempfile.TemporaryFile("w+") as said:  # no pipe: the server would keep it open
        status = subprocess.call(command, cwd="/", stdout=said, stderr=subprocess.STDOUT, **as_postgres())
        if status:
            said.seek(0)
            pytest.fail(f"{' '.join(command)} ended with status {status}: {said.read()}")


@contextlib.contextmanager
def installation(folder: Path, catalog: Path) -> Iterator[Installation]:
    """PostgreSQL, the S3 server, a Ray cluster without workers, daemon and web server."""
    home = folder / "home"
    home.mkdir()
    settings = (DEPLOY / "dagster.yaml").read_text(encoding="utf-8")
    assert "max_concurrent_runs: 8\n" in settings and "num_gpus: 1\n" in settings
    settings = settings.replace("max_concurrent_runs: 8\n", "max_concurrent_runs: 2\n")
    (home / "dagster.yaml").write_text(settings, encoding="utf-8")
    ray_port, dashboard_port = free_port(), free_port()
    # Ray's sockets want a short path
    with postgresql() as database, s3_server() as s3, tempfile.TemporaryDirectory(prefix="ray-") as short:
        lines = in_this_place((DEPLOY / "environment").read_text(encoding="utf-8"))
        environment = os.environ | dict(re.findall(r"^(\w+)=(.*)$", lines, flags=re.M)) | s3
        environment |= {
            "DAGSTER_HOME": str(home),
            "JSAE_CATALOG": str(catalog),
            "JSAE_STORAGE": f"s3://{BUCKET}/storage",
            "JSAE_POSTGRES_URL": database,
            "JSAE_RAY_HEAD": f"127.0.0.1:{ray_port}",
            "JSAE_RAY_DASHBOARD": f"http://127.0.0.1:{dashboard_port}",
            "JSAE_WEB_PORT": str(free_port()),
            "PYTHONPATH": str(REPOSITORY),
            "JSAE_BATCH_TOKENS": "64",  # so that there is something to split into shards
            "OMP_NUM_THREADS": "1",
            "RAY_TMPDIR": short,
        }
        on_this_machine = f"--port={ray_port} --dashboard-port={dashboard_port} --dashboard-host=127.0.0.1"
        made = Installation(folder, environment)
        try:
            made.start_unit("jsae-ray-head", RAY_OPTIONS=f"{small_ray()} {on_this_machine}")
            made.wait_for("the Ray cluster's head", lambda: answers(environment["JSAE_RAY_DASHBOARD"]), 90)
            made.wait_for("the head in its own cluster", lambda: living_nodes(made), 90)
            made.start_unit("jsae-webserver")
            made.wait_for("the web server's answer", made.web_server_answers, 90)
            made.start_unit("jsae-daemon")
            yield made
        finally:
            made.stop()


def small_ray() -> str:
    """Options of a part of a Ray cluster that lives with others on a small machine."""
    ports = " ".join(f"--{of}={free_port()}" for of in ("dashboard-agent-listen-port", "dashboard-agent-grpc-port"))
    return f"--object-store-memory=80000000 --include-log-monitor=false {ports}"


def answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api/version", timeout=5) as response:
        return response.status == 200
    return False


@dataclass
class Workers:
    """The workers of a cluster, each with one processor and, as Ray is told, one GPU.

    Attributes:
        by_node: the living ones, by Ray's name of their node.
    """

    made: Installation
    by_node: dict[str, Process] = field(default_factory=dict)
    _number: int = 0

    def start(self, **environment: str) -> str:
        """Start one more, and return the name of its node."""
        self._number += 1
        before = {node["node_id"] for node in living_nodes(self.made)}  # a dead one may still be among them
        options = f"{small_ray()} --num-cpus=1 --num-gpus=1"
        worker = self.made.start_unit("jsae-ray-worker", f"worker-{self._number}", RAY_OPTIONS=options, **environment)
        (node,) = self.made.wait_for(
            worker.name, lambda: {node["node_id"] for node in living_nodes(self.made)} - before, 90
        )
        self.by_node[node] = worker
        return node

    def kill(self, node: str) -> None:
        """As if the machine lost its power."""
        self.made.kill(self.by_node.pop(node))

    def stop(self) -> None:
        for node in list(self.by_node):
            self.kill(node)


def jobs_of_ray(made: Installation, run: str) -> list[dict]:
    """The jobs that the Ray cluster was given for a run of Dagster's."""
    with urllib.request.urlopen(f"{made.environment['JSAE_RAY_DASHBOARD']}/api/jobs/", timeout=30) as response:
        jobs = json.load(response)
    return [job for job in jobs if (job["metadata"] or {}).get("dagster/run-id") == run]


def living_nodes(made: Installation) -> list[dict]:
    address = f"{made.environment['JSAE_RAY_DASHBOARD']}/api/v0/nodes"
    with urllib.request.urlopen(address, timeout=30) as response:
        nodes = json.load(response)["data"]["result"]["result"]
    return [node for node in nodes if node["state"] == "ALIVE"]
