"""How long the pages of the Dagster UI take in a large installation: a catalog of 20 models, 48 layers and 6 variants.

    python -m benchmarks.scale_ui [--models 20] [--layers 48] [--pictures FOLDER]

It starts the web server on an instance (SQLite) in which all tokens are recorded as made, and two assets in half of
their partitions; opens each page in a headless Chromium, twice; and says how long it takes until what is to be seen
there is there, the second time with what the browser kept. Nothing is computed. Not here: loading the catalog, the
sensors, the command (`scale.py`).
"""

from __future__ import annotations

import argparse
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
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
from playwright.sync_api import Page, sync_playwright

from benchmarks.scale import write_catalog
from jsae_assets.catalog_file import load_catalog
from jsae_assets.home import SETTINGS
from jsae_assets.partitions import cells

ASSET = "jsae_0/pair_quality"
PATIENCE = 120_000  # ms for one thing to be seen
# path, what is to be seen there
PAGES = {
    "overview": ("/overview/activity/timeline", "text=No runs"),
    "all assets": ("/assets", "text=jsae_0"),
    "lineage, groups": ("/asset-groups", "text=jsae_0"),
    "lineage, an asset and its neighbours": (f"/assets/{ASSET}?view=lineage", "text=pair_quality"),
    "an asset": (f"/assets/{ASSET}", "text=Description"),
    "partitions of an asset": (f"/assets/{ASSET}?view=partitions", "text=model-0:0"),
    "automation": ("/automation", "text=keep_up_to_date"),
    "jobs": ("/jobs", "text=measure_cell"),
}


@contextmanager
def web_server(home: Path, catalog: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    program = Path(sys.executable).parent / "dagster-webserver"
    with (home / "web server.log").open("w") as log:
        process = subprocess.Popen(
            [program, "-h", "127.0.0.1", "-p", str(port), "-w", "workspace.yaml"],
            env=os.environ | {"DAGSTER_HOME": str(home), "JSAE_CATALOG": str(catalog)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/server_info", timeout=60).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def record_some_as_made(home: Path, path: Path) -> None:
    catalog = load_catalog(path)
    half = cells(catalog, ["jsae_0"]).get_partition_keys()[::2]
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for asset, partitions in {"tokens": list(catalog.models), "jsae_0/sae_pair": half, ASSET: half}.items():
            for partition in partitions:
                made = dg.AssetMaterialization(dg.AssetKey.from_user_string(asset), partition=partition)
                instance.report_runless_asset_event(made)


def timed(what: str, page: Page, pictures: Path | None, open_it: Callable[[], object], seen: str) -> None:
    began = time.perf_counter()
    open_it()
    page.wait_for_selector(seen, timeout=PATIENCE)
    print(f"{what}: {time.perf_counter() - began:.1f} s", flush=True)
    if pictures:
        page.wait_for_timeout(3000)
        page.screenshot(path=str(pictures / f"{what}.png"))


def visit(page: Page, address: str, pictures: Path | None) -> None:
    for what, (path, seen) in PAGES.items():
        timed(what, page, pictures, lambda path=path: page.goto(address + path), seen)
    page.goto(f"{address}/assets/{ASSET}")
    button = page.get_by_role("button", name="Materialize").first
    button.wait_for(timeout=PATIENCE)
    timed("the dialog of a backfill", page, pictures, button.click, "text=/^Launch .*(run|backfill)/")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale_ui", description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="where a picture of each page is put")
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("no Chromium is installed here (Debian: apt-get install chromium)")
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home = Path(folder) / "home"
        home.mkdir()
        shutil.copy(SETTINGS, home / "dagster.yaml")
        catalog = write_catalog(Path(folder), options.models, options.layers)
        record_some_as_made(home, catalog)
        began = time.perf_counter()
        with web_server(home, catalog) as address:
            print(f"the web server answers: {time.perf_counter() - began:.1f} s", flush=True)
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1500, "height": 950})
            for number in ("first", "second"):
                print(f"{number} visit", flush=True)
                visit(page, address, options.pictures)
            browser.close()


if __name__ == "__main__":
    main()
