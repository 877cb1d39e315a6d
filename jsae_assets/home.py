"""The folder of the Dagster instance (DAGSTER_HOME), for every command of this package.

Not here: what is kept in the folder (Dagster's instance, `files/`).
"""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from jsae_core.locks import holding

HOME_VARIABLE = "DAGSTER_HOME"
SETTINGS = Path(__file__).parent / "instance.yaml"


def home() -> Path:
    """Return the instance's folder, and create it, with the settings that this project needs, if it does not exist. It
    is the folder that DAGSTER_HOME names; else `dagster_home` in the current folder, if that is a checkout; else
    `.jsae` in the user's home."""
    from_environment = os.environ.get(HOME_VARIABLE)
    of_checkout = Path("dagster_home")
    default = of_checkout if (of_checkout / "dagster.yaml").exists() else Path.home() / ".jsae"
    folder = Path(from_environment or default).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "dagster.yaml"
    if not settings.exists():
        settings.write_bytes(SETTINGS.read_bytes())
    if not from_environment:
        print(f"{HOME_VARIABLE} is not set: everything is kept in {folder}", flush=True)
    os.environ[HOME_VARIABLE] = str(folder)
    with holding(folder / "initialised", "creates the instance", lambda sentence: print(sentence, flush=True)):
        with dg.DagsterInstance.get():
            pass  # the first use creates the databases, which fails if two processes do it at once
    return folder
