"""Makes pictures from what `make demo` stored: those of the documentation, from figures and site; or, to look at
them, pictures of all figures of a storage.

    .venv/bin/python tools/pictures.py dagster_home/storage docs
    .venv/bin/python tools/pictures.py --every dagster_home/storage a-folder

With --every, there are three pictures of each figure: `full`, as stored, 900 px wide; `half`, the same at 450 px, as in
a narrow column; `narrow`, drawn by its page in a window of 450 px. It needs an installed Chromium. Run it again after
figures, numbers or the site have changed.
"""

import argparse
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

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


HALF = 450  # px


@contextmanager
def chromium() -> Iterator[Browser]:
    """The one that is installed."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


def of_documentation(storage: Path, target: Path) -> None:
    for name, path in FIGURES.items():
        shutil.copy(storage / path, target / f"{name}.png")
    site = (storage / "site").resolve().as_uri()
    with chromium() as browser:
        for name, path in PAGES.items():
            page = browser.new_page(viewport={"width": 1560, "height": 1180})
            page.goto(f"{site}/{path}")
            page.wait_for_selector(".plot .main-svg, #edge .curve")
            page.wait_for_timeout(500)  # time to finish drawing
            page.screenshot(path=target / f"{name}.png")


def of_every_figure(storage: Path, target: Path) -> None:
    with chromium() as browser:
        window = browser.new_page(viewport={"width": HALF, "height": 900})
        for stored in sorted((storage / "figures").rglob("*.json")):
            name = ".".join(stored.relative_to(storage / "figures").with_suffix("").parts)
            full = shutil.copy(stored.with_suffix(".png"), target / f"{name}.full.png")
            with Image.open(full) as image:
                size = (HALF, round(image.height * HALF / image.width))
                image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(target / f"{name}.half.png")
            window.goto(stored.with_suffix(".html").resolve().as_uri())
            window.wait_for_selector(".main-svg")
            window.locator(".plotly-graph-div").screenshot(path=target / f"{name}.narrow.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", action="store_true", help="every figure, instead of the documentation's pictures")
    parser.add_argument("storage", type=Path)
    parser.add_argument("target", type=Path, help="a folder, which is made")
    options = parser.parse_args()
    options.target.mkdir(parents=True, exist_ok=True)
    take = of_every_figure if options.every else of_documentation
    take(options.storage, options.target)


if __name__ == "__main__":
    main()
