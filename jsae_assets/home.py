"""Where the instance is: the folder of DAGSTER_HOME, for every command of this package.

Not here: what is kept there (Dagster's instance, `storage.py`).
"""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from jsae_core.locks import holding

HOME_VARIABLE = "DAGSTER_HOME"
SETTINGS = Path(__file__).parent / "instance.yaml"


def home() -> Path:
    """The instance's folder: the one that DAGSTER_HOME names; else `dagster_home` here, if this is a checkout; else one
    in the user's own folder. It is made, with the settings that this project needs, where there is none."""
    named = os.environ.get(HOME_VARIABLE)
    here = Path("dagster_home")
    folder = Path(named) if named else here if (here / "dagster.yaml").exists() else Path.home() / ".jsae"
    folder = folder.expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "dagster.yaml"
    if not settings.exists():
        settings.write_bytes(SETTINGS.read_bytes())
    if not named:
        print(f"{HOME_VARIABLE} is not set: everything is kept in {folder}", flush=True)
    os.environ[HOME_VARIABLE] = str(folder)
    with holding(folder / "initialised", "makes the instance", lambda sentence: print(sentence, flush=True)):
        with dg.DagsterInstance.get():
            pass  # makes its databases where there are none, at which two at once would fail
    return folder
