"""Ctrl-C in a terminal, which reaches every process there: one sentence, whatever was being done, and no traceback."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping

from tests.jsae_assets.conftest import REPOSITORY

# In place of Dagster: its import never ends.
ENDLESS = "import time\nprint('importing', flush=True)\ntime.sleep(600)\n"


def pressed(after: str, arguments: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """The status of `jsae` and what it and the processes that it started said, where Ctrl-C is pressed once a line with
    `after` was said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jsae_assets", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"JSAE_DEVICE": "cpu"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # its processes are one group, as those of a terminal
    )
    said = ""
    try:
        for line in process.stdout:
            said += line
            if after in line:
                os.killpg(process.pid, signal.SIGINT)
                break
        said += process.stdout.read()
        return process.wait(), said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_while_modules_are_imported_it_ends_with_a_sentence(tmp_path):
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "__init__.py").write_text(ENDLESS, encoding="utf-8")
    status, said = pressed("importing", ["run"], {"PYTHONPATH": str(tmp_path)})
    assert status == 1
    assert said == "importing\n\nStopped before anything began.\n"


def test_in_a_step_what_copies_its_output_says_nothing_of_it(graph, entries, tmp_path):
    long = entries()
    for pair in long["pairs"]:
        pair["train"] = pair["train"] | {"config": pair["train"]["config"] | {"steps": 100_000}}
    tiny = graph(long)
    environment = {"DAGSTER_HOME": tiny.instance.root_directory, "JSAE_CATALOG": str(tmp_path / "catalog.yaml")}
    # the first line of the training, which was copied: what copies is at work
    status, said = pressed("jsae/sae_pair: ", ["run", "--asset", "jsae/sae_pair"], environment)
    assert status == 1
    assert "Traceback" not in said and "Exception" not in said
    assert said.endswith("Stopped. What was made is kept: the same command goes on from there.\n")


def test_the_ui_s_processes_end_with_it_and_say_nothing_of_it(graph, entries, tmp_path):
    tiny = graph(entries())
    environment = {"DAGSTER_HOME": tiny.instance.root_directory, "JSAE_CATALOG": str(tmp_path / "catalog.yaml")}
    status, said = pressed("Launching Dagster services", ["ui", "--port", "0"], environment)
    assert status == 0
    assert said.splitlines()[-1] == "Stopping the Dagster UI."
    assert "Traceback" not in said and "Abort" not in said
