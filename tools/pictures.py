"""Takes the pictures that the documentation shows, of what `make demo` stored: its figures and its site.

.venv/bin/python tools/pictures.py dagster_home/storage docs

It drives the Chromium that is installed. Run it again once figures, numbers or the site look different.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

OF_CELL = "figures/jsae/{}/1/stdlib-1m.png"
FIGURES = {
    name: OF_CELL.format(name)
    for name in (
        "ablation",
        "dead_latents",
        "differences",
        "edge_curve",
        "function_curves",
        "function_shapes",
        "jacobian_sparsity",
        "randomised_control",
    )
} | {
    "examples": OF_CELL.format("jacobian_examples"),
    "thresholds": OF_CELL.format("jacobian_thresholds"),
    "quality_by_layer": "figures/jsae/quality_by_layer/stdlib-1m.png",
    "tradeoff": "figures/sweep_runs/tradeoff/lambda-layer-1.png",
    "grid": "figures/sweep_runs/grid/lambda-layer-1.png",
    "equal_quality": "figures/sweep_runs/jsae_equal_quality/randomised-layer-1.png",
}
PAGES = {"site": "index.html", "explorer": "explorer.html#jsae/stdlib-1m/1/output/0/895"}


def main(storage: Path, target: Path) -> None:
    for name, path in FIGURES.items():
        shutil.copy(storage / path, target / f"{name}.png")
    site = (storage / "site").resolve().as_uri()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, path in PAGES.items():
            page = browser.new_page(viewport={"width": 1560, "height": 1180})
            page.goto(f"{site}/{path}")
            page.wait_for_selector(".plot .main-svg, #edge .curve")
            page.wait_for_timeout(500)  # what was asked for last is still being drawn
            page.screenshot(path=target / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
