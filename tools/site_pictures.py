"""Takes the pictures of the site that the documentation shows, of a site that was made of the default catalog:

.venv/bin/python tools/site_pictures.py dagster_home/storage/site docs

It drives the Chromium that is installed. Run it again once the site looks different.
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURES = {"site": "index.html", "explorer": "explorer.html#jsae/stdlib-1m/1/output/0/895"}


def main(site: Path, target: Path) -> None:
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, path in PICTURES.items():
            page = browser.new_page(viewport={"width": 1560, "height": 1180})
            page.goto(f"{site.resolve().as_uri()}/{path}")
            page.wait_for_selector(".plot .main-svg, #edge .curve")
            page.wait_for_timeout(500)  # what was asked for last is still being drawn
            page.screenshot(path=target / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
