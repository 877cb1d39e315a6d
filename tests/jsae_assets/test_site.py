"""The site through Dagster: what it holds, what keeps it back and what does not, and how it behaves in a browser."""

from __future__ import annotations

import contextlib
import html
import json
import math
import re
import shutil
import urllib.error
import urllib.request
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from upath import UPath

from jsae_assets.command import main
from jsae_assets.digests import out_of_groups
from jsae_assets.files.estimates import stored_estimates
from jsae_assets.files.stored import StoredTensors
from jsae_assets.number import Number
from jsae_assets.site.explorer import with_digits
from jsae_assets.site.pages import few_documents
from jsae_assets.site.sentences import said_of_sizes
from jsae_assets.site.serving import URL, serve
from tests.jsae_assets.conftest import Graph, address, failures, materialised, metadata


def make_site(graph: Graph):
    return graph.definitions.resolve_job_def("make_site").execute_in_process(instance=graph.instance)


@pytest.fixture(scope="module")
def site(measured) -> Path:
    """The site of the tiny catalog, copied elsewhere, as it may be."""
    result = make_site(measured.graph)
    assert materialised(result) == {"site"}
    elsewhere = measured.graph.storage.parent / "copied" / "site"
    shutil.copytree(measured.graph.storage / "site", elsewhere)
    return elsewhere


class Links(HTMLParser):
    def __init__(self, page: Path):
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("href", "src") and value]


def received(path: Path):
    """What a data file hands over, and under which name."""
    match = re.fullmatch(r'jsae\.receive\(("[^"]*"),(.*)\);\n', path.read_text(encoding="ascii"), re.DOTALL)
    return json.loads(match[1]), json.loads(match[2])


def test_there_is_a_page_for_each_cell_and_model_and_every_link_leads_somewhere(site):
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert pages == {"index.html", "explorer.html", "cells/tiny/1.html", "models/tiny.html"}
    for page in pages:
        for link in Links(site / page).found:
            if not link.startswith(("#", "https:", "data:")):
                assert ((site / page).parent / link.split("#")[0]).exists(), (page, link)


def test_no_page_is_above_two_megabytes_and_none_asks_for_anything_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert page.stat().st_size < 2e6
        assert all(link.startswith("https://arxiv.org") for link in Links(page).found if "//" in link)


def test_the_numbers_of_the_pages_are_those_that_are_stored(measured, site):
    row = pd.read_parquet(measured.graph.file("jsae/pair_quality", extension="parquet")).iloc[0]
    page = (site / "cells" / "tiny" / "1.html").read_text(encoding="utf-8")
    assert f"{row['explained_variance_output']:.1%}" in page
    assert f"±&nbsp;{1.96 * row['explained_variance_output_se'] * 100:.1f}" in page


def test_every_number_of_the_pages_says_what_it_was_measured_on(measured, site):
    row = pd.read_parquet(measured.graph.file("jsae/pair_quality", extension="parquet")).iloc[0]
    of_all = load_file(measured.graph.file("tokens", None))["sources"].unique()
    page = (site / "index.html").read_text(encoding="utf-8")
    n = int(row["whole_documents"])
    assert f'title="on 300 tokens of {n} documents">{row["explained_variance_output"]:.1%}<' in page
    histogram = StoredTensors(UPath(measured.graph.storage), "jsae/jacobian_histogram/1/tiny.safetensors", "histogram")
    share = stored_estimates(histogram)["above_0.01"].value
    assert f'title="on 1,000 tokens of {len(of_all)} documents">{share:.1%}<' in page
    assert n < 10 and f"errors over only {n} documents" in page
    assert f"<td>300 tokens of {n} documents</td>" in (site / "cells" / "tiny" / "1.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        (
            {"|J|": 27, "KL score": 7, "CE score": 7},
            ["of tiny in “KL score” and “CE score”: errors over only 7 documents"],
        ),
        ({"|J|": 7, "KL score": 7}, ["of tiny: errors over only 7 documents"]),
        (
            {"|J|": 9, "KL score": 1},
            [
                "of tiny in “KL score”: errors within a single document",
                "of tiny in “|J|”: errors over only 9 documents",
            ],
        ),
        ({"|J|": 27, "KL score": 10}, []),
        ({}, []),
    ],
)
def test_the_note_below_a_table_names_the_columns_whose_errors_are_over_few_documents(documents, said):
    refused = {"model": "tiny", "documents": {}}
    assert few_documents([refused, {"model": "tiny", "documents": documents}]) == said


def test_one_result_that_is_not_stored_is_told_in_the_singular(entries, graph):
    alone = entries()
    alone["pairs"] = [alone["pairs"][0] | {"layers": [1]}]
    tiny = graph(alone)
    make_site(tiny)
    page = (tiny.storage / "site" / "index.html").read_text(encoding="utf-8")
    assert "<summary>1 result was not stored when this site was made</summary>" in page


def test_every_figure_of_the_cell_is_on_its_page_with_its_numbers_as_a_file(measured, site):
    page = (site / "cells" / "tiny" / "1.html").read_text(encoding="utf-8")
    for stored in (measured.graph.storage / "figures" / "jsae").glob("*/1/tiny.json"):
        name = stored.parts[-3]
        assert f'id="jsae.{name}"' in page
        number, figure = received(site / "data" / "figures" / "jsae" / name / "1" / "tiny.js")
        assert number == f"figures/jsae/{name}/1/tiny" and figure["data"]
        numbers = site / "data" / "figures" / "jsae" / name / "1" / "tiny.csv"
        of_text, of_parquet = pd.read_csv(numbers), pd.read_parquet(numbers.with_suffix(".parquet"))
        assert {"series", "x", "y"} <= set(of_text) and len(of_text) == len(of_parquet) > 0


def test_the_numbers_of_a_figure_are_those_that_it_draws(measured, site):
    folder = site / "data" / "figures" / "jsae"
    shares = pd.read_parquet(folder / "jacobian_thresholds" / "1" / "tiny.parquet")
    told = metadata(measured.cell, "jsae/jacobian_histogram")
    row = shares[(shares["series"] == "JSAE") & (shares["x"] == 0.01)].iloc[0]
    assert row["y"] == pytest.approx(100 * told["share_above_0.01"]) and row["plus_or_minus"] > 0
    differences = pd.read_parquet(folder / "differences" / "1" / "tiny.parquet")
    assert "accounted share" in set(differences["label"]) and (differences["plus_or_minus"] >= 0).all()
    examples = pd.read_parquet(folder / "jacobian_examples" / "1" / "tiny.parquet")
    stored = load_file(measured.graph.file("jsae/jacobian_examples"))
    of_jsae = examples[examples["series"].str.startswith("JSAE")]
    row, magnitudes = of_jsae.loc[of_jsae["value"].idxmax()], stored["jacobian"].abs()
    at = (stored["output_latents"] == int(row["y"]))[:, :, None] & (stored["input_latents"] == int(row["x"]))[:, None]
    assert any(row["value"] == pytest.approx(magnitude) for magnitude in magnitudes[at].tolist())
    assert set(of_jsae["x"].astype(int)) <= set(stored["input_latents"].flatten().tolist())
    curves = pd.read_parquet(folder / "function_curves" / "1" / "tiny.parquet")
    samples = pd.read_parquet(measured.graph.file("jsae/function_shapes", extension="parquet"))
    assert curves.loc[curves["series"] == "JSAE", "x"].isin(samples["input_activation"].astype(float)).all()


def test_the_page_of_a_cell_says_what_each_result_is_and_what_made_it(measured, site):
    page = (site / "cells" / "tiny" / "1.html").read_text(encoding="utf-8")
    for variant in ("traditional", "jsae"):
        for name in ("sae_pair", "jacobian_histogram", "latent_activity", "pair_quality"):
            told = metadata(measured.cell, f"{variant}/{name}")
            assert out_of_groups(told["digest"]) in page and told["path"] in page
        assert f">{variant}/ablation_samples<" in page
    assert "What the language model loses when reconstructions are spliced in" in page


def test_a_figure_in_the_ui_links_to_its_place_on_the_page_of_its_cell(measured, site):
    link = address(metadata(measured.cell, "figures/jsae/ablation")["site"])
    page, anchor = link.removeprefix(f"{URL}/site/").split("#")
    assert f'id="{anchor}"' in (site / page).read_text(encoding="utf-8")
    assert address(metadata(measured.cell, "jsae/pair_quality")["site"]) == f"{URL}/site/{page}"


def test_the_explorer_s_data_is_that_of_the_stored_tables(measured, site):
    contexts = pd.read_parquet(measured.graph.file("jsae/latent_contexts", extension="parquet"))
    connections = pd.read_parquet(measured.graph.file("jsae/latent_connections", extension="parquet"))
    cell = site / "data" / "cell" / "jsae" / "tiny" / "1"
    _, outputs = received(cell / "output" / "0.js")
    _, texts = received(site / "data" / "text" / "tiny" / "0.js")
    for latent in (0, 5, 31):
        of = connections[connections["output_latent"] == latent]
        found = outputs[str(latent)]["connections"]
        assert [row[0] for row in found] == of["input_latent"].tolist()
        assert [row[7] for row in found] == pytest.approx(of["share"].tolist(), rel=6e-3)
        top = contexts[(contexts["side"] == "output") & (contexts["latent"] == latent) & (contexts["kind"] == "top")]
        for (document, position, _, first, shades), row in zip(
            outputs[str(latent)]["contexts"], top.itertuples(), strict=True
        ):
            assert (document, position) == (row.document, row.position)
            assert texts[document][first - 1 : first - 1 + len(shades)] == list(row.tokens)


def test_a_site_is_made_of_what_is_there_and_says_what_is_missing(entries, graph):
    tiny = graph(entries())
    result = make_site(tiny)
    assert failures(result) == {}
    start = (tiny.storage / "site" / "index.html").read_text(encoding="utf-8")
    n_missing = start.split('<details class="missing">')[1].count("<li>")
    assert f"<summary>{n_missing} results were not stored when this site was made</summary>" in start
    assert "Nothing is measured yet" in start and "<li>jsae, tiny, layer 1</li>" in start
    assert "jsae, tiny, layer 1" in metadata(result, "site")["missing"]


def test_a_refused_pair_has_a_row_that_says_why_and_nothing_of_the_pair_before_it_is_shown_or_compared_with(
    entries, measured_again, browser
):
    strict = entries()
    strict["pairs"][1]["least_explained_variance"] = {"output": 1.0}
    tiny = measured_again(strict)
    check = next(iter(tiny.measure(1, "jsae/sae_pair").get_asset_check_evaluations()))
    assert not check.passed and tiny.file("jsae/pair_quality", extension="parquet").exists()
    assert "jsae, tiny" not in metadata(make_site(tiny), "site")["missing"]
    for page in ("index.html", "cells/tiny/1.html"):
        text = (tiny.storage / "site" / page).read_text(encoding="utf-8")
        traditional, *rows = re.findall(r"<tr.*?</tr>", text.split("<tbody>")[1], re.DOTALL)[:3]
        jsae = "".join(rows)
        assert "Refused, so not measured:" in jsae and "Refused" not in traditional
        assert "JSAE" in rows[0] and "<code>jsae suggest-lambda tiny 1</code>" in rows[1] and "`" not in jsae
        assert "expected at least 100%" in jsae and 'class="number"' not in jsae
        for side in ("input", "output"):
            assert f"{check.metadata[f'explained_variance_{side}'].value:.1%} by the {side} SAE" in jsae
        assert "<figure" not in text
    _, cells = received(tiny.storage / "site" / "data" / "cells.js")
    assert [cell["cell"] for cell in cells] == ["traditional/tiny/1"]
    data = tiny.storage / "site" / "data" / "cell" / "traditional" / "tiny" / "1"
    assert received(data / "about.js")[1]["other"] is None  # its latents are compared with those of no refused pair
    for side in ("input", "output"):
        assert all(latent["similar"] is None for latent in received(data / side / "0.js")[1].values())
    with opened_in(browser, tiny.storage / "site") as opened:
        page = opened("index.html", width=400)
        reason = page.get_by_text("Refused, so not measured:").locator("xpath=ancestor::p").bounding_box()
        assert 0 <= reason["x"] and reason["x"] + reason["width"] <= 400  # whole, not to be scrolled
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page = opened("explorer.html#jsae/tiny/1/output/5")
        page.wait_for_selector("#latent h1")
        assert page.inner_text("#latent h1") == "This pair is not in the explorer"
        assert "Nothing is shown of jsae, tiny, layer 1" in page.inner_text("#latent")
        assert page.locator("#latents a").count() == 0
        page.fill("#search", "7")
        page.keyboard.press("Escape")
        page.keyboard.press("ArrowDown")
        page.select_option("#side", "input")
        page.wait_for_function("document.body.dataset.shown === '#jsae/tiny/1/input'")
        assert page.inner_text("#latent h1") == "This pair is not in the explorer"
        page.select_option("#pair", "traditional/tiny/1")
        page.wait_for_function("document.querySelector('#latent .variant')?.textContent.startsWith('Traditional')")
        assert page.locator("#latents a").count() > 0 and page.locator("#compared").count() == 0


def test_every_page_leads_to_the_explorer_of_the_pair_that_it_is_about(site):
    for page in site.rglob("*.html"):
        (link,) = {link for link in Links(page).found if "explorer.html" in link and "traditional" not in link}
        assert link.endswith("explorer.html#jsae/tiny/1"), page


def test_pages_of_what_is_no_longer_stored_go(entries, graph):
    tiny = graph(entries())
    make_site(tiny)
    old = tiny.storage / "site" / "cells" / "gone" / "0.html"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    make_site(tiny)
    assert not old.exists() and (tiny.storage / "site" / "index.html").exists()


def test_the_command_names_the_site_or_says_how_to_get_one(instance, monkeypatch, capsys):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DAGSTER_HOME", instance.root_directory)
    assert main(["site"]) == 1
    assert "jsae run --asset site" in capsys.readouterr().err
    page = Path(instance.storage_directory()) / "site" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("here")
    assert main(["site"]) == 0
    assert str(page) in capsys.readouterr().out


def test_the_pages_are_given_out_to_this_machine_and_nothing_else_is(tmp_path):
    for name in ("site/index.html", "site/cells/m/1.html", "jsae/sae_pair/1/m.safetensors", "history/runs.db"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    server = serve(UPath(tmp_path), port=0)
    try:
        assert server.server_address[0] == "127.0.0.1"

        def ask(path: str, host: str = "127.0.0.1") -> tuple[int, str]:
            request = urllib.request.Request(f"http://127.0.0.1:{server.server_port}{path}", headers={"Host": host})
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, ""

        assert ask("/") == (200, "site/index.html")
        assert ask("/site/cells/m/1.html") == (200, "site/cells/m/1.html")
        for path in (
            "/jsae/sae_pair/1/m.safetensors",
            "/site/../history/runs.db",
            "/site/%2e%2e/history/runs.db",
            "/site/x",
        ):
            assert ask(path)[0] == 404, path
        assert ask("/site/index.html", host="elsewhere.example")[0] == 403
    finally:
        server.shutdown()
        server.server_close()


# In a browser


@contextlib.contextmanager
def opened_in(browser, site: Path):
    """Opens pages of a site from the file system, without a network; at the end nothing may have complained."""
    complaints, contexts = [], []

    def opened(path: str, width: int = 1200, scheme: str = "light"):
        contexts.append(
            browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        )
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.goto((site / path.split("#")[0]).as_uri() + ("#" + path.split("#")[1] if "#" in path else ""))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def open_page(browser, site):
    with opened_in(browser, site) as opened:
        yield opened


def test_a_figure_is_downloaded_whole_with_its_title(open_page, tmp_path):
    page = open_page("cells/tiny/1.html", scheme="dark")
    figure = page.locator("figure").filter(has_text="How many elements of the Jacobian are large?")
    figure.locator("summary").click()
    with page.expect_download() as download:
        figure.get_by_role("button", name="Download the figure as SVG").click()
    download.value.save_as(tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert "How many elements of the Jacobian are large?" in text and "(JSAE) of the elements." in text
    assert 'width="900"' in text


def test_a_screen_reader_finds_its_way(open_page):
    page = open_page("cells/tiny/1.html")
    assert page.get_by_role("navigation", name="Site").count() == page.get_by_role("main").count() == 1
    assert page.get_by_role("heading", level=1).inner_text() == "tiny, layer 1"
    figure = page.get_by_role("img", name="How many elements of the Jacobian are large? |J| is 0.01 or more for")
    assert figure.count() == 1
    page.get_by_text("Numbers and downloads").first.click()
    for kind in ("CSV", "Parquet"):
        assert page.get_by_role("link", name=f"Download the numbers as {kind}").first.is_visible()
    explorer = open_page("explorer.html#jsae/tiny/1/output/5")
    explorer.wait_for_selector("#latent h1")
    for role, name in (
        ("combobox", "Pair"),
        ("combobox", "Latents"),
        ("combobox", "Order"),
        ("searchbox", "Number, token or text"),
        ("complementary", "Latents"),
        ("heading", "Output latent 5"),
    ):
        assert explorer.get_by_role(role, name=name, exact=True).count() == 1, (role, name)


@pytest.mark.parametrize("path", ["index.html", "cells/tiny/1.html", "models/tiny.html"])
def test_headings_are_in_order_and_none_is_left_out(open_page, path):
    levels = open_page(path).evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((one) => +one.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in zip(levels, levels[1:], strict=False)), levels


def test_the_explorer_keeps_the_keyboard_s_place(measured, open_page):
    connections = pd.read_parquet(measured.graph.file("jsae/latent_connections", extension="parquet"))
    latent = connections.loc[connections["n_output"].idxmax(), "output_latent"]
    page = open_page(f"explorer.html#jsae/tiny/1/output/{latent}")
    page.wait_for_selector(".graph g[role=button]")
    edge = page.locator(".graph g[role=button]").first
    chosen = edge.get_attribute("data-input")
    edge.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#edge")
    assert page.evaluate("document.activeElement.dataset.input") == chosen
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.textContent.startsWith('Input latent')")
    page.get_by_role("status").filter(has_text=f"Input latent {chosen}, JSAE").wait_for(state="attached")
    second = page.locator("#latents a").nth(1)
    second.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.getAttribute('aria-current') === 'true'")


def test_a_latent_of_the_drawing_shows_the_keyboard_on_its_box_alone_and_no_frame_after_a_click(measured, open_page):
    connections = pd.read_parquet(measured.graph.file("jsae/latent_connections", extension="parquet"))
    latent = connections.loc[connections["n_output"].idxmax(), "output_latent"]
    page = open_page(f"explorer.html#jsae/tiny/1/output/{latent}")
    styles = "(one) => [getComputedStyle(one).outlineStyle, getComputedStyle(one.querySelector('rect')).strokeWidth]"
    edge = page.locator(".graph g[role=button]").first
    edge.wait_for()
    assert edge.evaluate(styles) == ["none", "1px"]
    edge.locator("rect").click()
    page.wait_for_selector("#edge")
    chosen = page.locator(".graph g[aria-pressed=true]")
    assert chosen.evaluate(styles) == ["none", "2px"]
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert chosen.evaluate("(one) => one === document.activeElement")
    assert chosen.evaluate(styles) == ["none", "4px"]


def test_a_table_wider_than_the_window_has_a_shadow_where_it_goes_on_and_is_scrolled_by_keys(open_page):
    page = open_page("index.html", width=400)
    table = page.get_by_role("region", name="Measured so far, a line a pair")

    def darkness() -> list[float]:
        """How dark the left and the right edge of the table are, but for what is written there."""
        picture = np.array(Image.open(BytesIO(table.screenshot())).convert("L"))
        return [255 - float(np.median(picture[:, column])) for column in (1, -2)]

    left, right = darkness()
    assert left < 10 < right
    table.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("(one) => one.scrollLeft > 0", arg=table.element_handle())
    table.evaluate("(one) => one.scrollTo({left: one.scrollWidth, behavior: 'instant'})")
    left, right = darkness()
    assert right < 10 < left


PAGES = ("index.html", "cells/tiny/1.html", "models/tiny.html", "explorer.html#jsae/tiny/1/output/5")


@pytest.mark.parametrize("path", PAGES)
def test_pages_fit_a_narrow_window_and_draw_their_figures(open_page, path):
    page = open_page(path, width=400, scheme="dark")
    if "explorer" in path:
        page.wait_for_selector("#latent h1")
    else:
        for place in page.locator(".plot").all()[:2]:  # those far below are drawn once they come near
            place.scroll_into_view_if_needed()
            place.locator(".main-svg").first.wait_for()
            page.wait_for_function("(place) => place.dataset.drawn", arg=place.element_handle())
            drawn = place.locator(".main-svg").first.bounding_box()
            assert 0 <= drawn["x"] and drawn["x"] + drawn["width"] <= 400.5  # whole, not to be scrolled
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_a_figure_that_is_shown_smaller_is_enlarged_on_demand(open_page):
    page = open_page("cells/tiny/1.html", width=400)
    figure = page.locator("figure").filter(has_text="Does the Jacobian predict an intervention?").first
    figure.scroll_into_view_if_needed()
    button = figure.get_by_role("button", name="Enlarge the figure")
    button.click()
    assert figure.locator(".main-svg").first.bounding_box()["width"] >= 640
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    figure.get_by_role("button", name="Show the whole figure").click()
    assert figure.locator(".main-svg").first.bounding_box()["width"] <= 400


def test_the_explorer_goes_from_an_output_latent_along_an_edge_to_its_input_latent_and_to_the_other_pair(
    measured, open_page
):
    connections = pd.read_parquet(measured.graph.file("jsae/latent_connections", extension="parquet"))
    latent = connections.loc[connections["n_output"].idxmax(), "output_latent"]
    page = open_page(f"explorer.html#jsae/tiny/1/output/{latent}")
    page.wait_for_selector("#latent h1")
    assert page.inner_text("#latent h1") == f"Output latent {latent}"
    edge = page.locator(".graph g[role=button]").first
    chosen = edge.get_attribute("data-input")
    edge.locator("rect").click()  # where lines cross, another one may be on top
    page.wait_for_selector("#edge")
    assert page.url.endswith(f"#jsae/tiny/1/output/{latent}/{chosen}")
    assert page.locator("#edge .curve polyline").count() == 1
    assert page.locator("#edge .contexts li").count() >= 1
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#latent h1').textContent.startsWith('Input')")
    assert page.inner_text("#latent h1") == f"Input latent {chosen}"
    page.keyboard.press("c")
    page.wait_for_function("location.hash.startsWith('#traditional/')")
    page.wait_for_function("document.body.dataset.shown === location.hash")
    assert "Traditional" in page.inner_text("#latent .variant")
    page.go_back()
    page.wait_for_function(f"document.body.dataset.shown === '#jsae/tiny/1/input/{chosen}'")


def test_a_search_for_a_token_finds_the_latents_with_top_contexts_at_it_and_reads_no_texts(measured, site, open_page):
    contexts = pd.read_parquet(measured.graph.file("jsae/latent_contexts", extension="parquet"))
    top = contexts[(contexts["side"] == "output") & (contexts["kind"] == "top")]
    peaks = [tokens[place].lower() for tokens, place in zip(top["tokens"], top["place"], strict=True)]
    expected = {token: set(of["latent"]) for token, of in top.assign(peak=peaks).groupby("peak")}
    _, stored = received(site / "data" / "cell" / "jsae" / "tiny" / "1" / "peaks.js")
    assert {token: set(latents) for token, latents, _ in stored} == expected
    page = open_page("explorer.html#jsae/tiny/1/output/5")
    page.wait_for_selector("#latents a[aria-current]")
    token = max(expected, key=lambda one: len(expected[one]) * one.isalpha())
    page.fill("#search", token)
    page.wait_for_function("document.querySelector('#found').textContent.includes('by their contexts')")
    shown = page.evaluate("[...document.querySelectorAll('#latents a')].map((one) => +one.dataset.latent)")
    assert expected[token] <= set(shown)
    read = "[...document.scripts].filter((one) => one.src.includes('/places/')).length"
    assert page.evaluate(read) == 0
    page.fill("#search", "import")  # which is of several tokens here
    page.wait_for_function(f"{read} > 0")


def test_a_search_over_several_tokens_finds_what_a_search_of_all_texts_would_and_reads_those_that_may_hold_it(
    measured, site, open_page
):
    contexts = pd.read_parquet(measured.graph.file("jsae/latent_contexts", extension="parquet"))
    top = contexts[(contexts["side"] == "output") & (contexts["kind"] == "top")]
    wanted = "import"
    expected = set()
    for latent, tokens, place in zip(top["latent"], top["tokens"], top["place"], strict=True):
        texts = [str(token).lower() for token in tokens]
        before = len("".join(texts[:place]))
        after = before + len(texts[place])
        starts = [found.start() for found in re.finditer(f"(?={wanted})", "".join(texts))]
        if any(start < after and before < start + len(wanted) for start in starts):
            expected.add(latent)
    assert expected
    _, peaks = received(site / "data" / "cell" / "jsae" / "tiny" / "1" / "peaks.js")
    n_files = len(received(site / "data" / "cell" / "jsae" / "tiny" / "1" / "about.js")[1]["text_starts"])
    assert {file for _, _, files in peaks for file in files} <= set(range(n_files))
    page = open_page("explorer.html#jsae/tiny/1/output/5")
    page.wait_for_selector("#latents a[aria-current]")
    page.fill("#search", wanted)
    page.wait_for_function("document.querySelector('#found').textContent.includes('by their contexts')")
    shown = page.evaluate("[...document.querySelectorAll('#latents a')].map((one) => +one.dataset.latent)")
    assert expected <= set(shown)
    page.fill("#search", "\u2603\u2603\u2603")  # of which no token may be a part: no text is read for it
    page.wait_for_function("document.querySelector('#found').textContent === 'No latent is found.'")


def test_the_explorer_says_that_contexts_are_of_documents_or_of_pieces_where_long_ones_are_cut(measured, open_page):
    contexts = pd.read_parquet(measured.graph.file("jsae/latent_contexts", extension="parquet"))
    latent = contexts.loc[(contexts["side"] == "output") & (contexts["kind"] == "top"), "latent"].iloc[0]
    page = open_page(f"explorer.html#jsae/tiny/1/output/{latent}")
    page.get_by_text("one a document, or one a piece of it where long documents are cut").wait_for()


def test_the_explorer_opens_with_the_pair_that_the_start_page_is_about(open_page):
    page = open_page("explorer.html")
    page.wait_for_selector("#latent h1")
    assert page.url.split("#")[1].startswith("jsae/tiny/1/output/")


def test_the_explorer_finds_latents_by_number_token_and_text_and_is_moved_by_keys(open_page):
    page = open_page("explorer.html#jsae/tiny/1/output/5")
    page.wait_for_selector("#latents a[aria-current]")
    page.fill("#search", "12")
    page.wait_for_function("document.querySelector('#latents a')?.dataset.latent === '12'")
    page.fill("#search", "import")
    page.wait_for_function("document.querySelector('#found').textContent.includes('by their contexts')")
    assert page.locator("#latents a").count() > 0
    page.press("#search", "Enter")
    first = page.locator("#latents a").first.get_attribute("data-latent")
    page.wait_for_function(f"document.body.dataset.shown === '#jsae/tiny/1/output/{first}'")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    second = page.locator("#latents a").nth(1).get_attribute("data-latent")
    page.wait_for_function(f"document.body.dataset.shown === '#jsae/tiny/1/output/{second}'")


@given(st.lists(st.floats(allow_subnormal=True) | st.integers(-(10**6), 10**6).map(lambda n: n / 2000), max_size=60))
def test_the_explorers_numbers_have_three_digits_as_python_writes_them(numbers):
    expected = [float(f"{number:.3g}") if math.isfinite(number) else None for number in numbers]
    assert with_digits(numbers) == expected


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (Number(0.2254, 0.018, percent=True), "22.5% ± 1.8"),
        (Number(-4.718, 54.478, percent=True), "uncertain ± >100"),
        (Number(0.943, 0.0004, percent=True), "94.3% ± <0.1"),
        (Number(0.943, 0.0, percent=True), "94.3% ± 0.0"),
        (Number(1.217, None, percent=True), "121.7%"),
        (Number(-0.168, 0.013, percent=True), "−16.8% ± 1.3"),
        (Number(3.947, 1.2), "3.947 ± 1.200"),
    ],
)
def test_a_share_that_cannot_be_told_within_all_of_it_is_called_uncertain(number, shown):
    assert str(number) == shown


@pytest.mark.parametrize(
    ("shares", "fits"), [((0.976, 0.981), False), ((0.0, 0.0004), False), ((0.0, 0.981), True), ((0.07, 0.83), True)]
)
def test_where_nearly_all_or_no_elements_are_above_the_threshold_the_site_says_so_and_gives_l1_over_l2(shares, fits):
    pair = (Number(shares[0], 0.001, percent=True), Number(shares[1], 0.001, percent=True))
    said = said_of_sizes(("JSAE", "Traditional"), pair, (Number(0.661, 0.004), Number(0.784, 0.001)))
    if fits:
        expected = (
            f"{pair[0]} of the Jacobian's elements are 0.01 or more in the pair “JSAE”, {pair[1]} in “Traditional”"
        )
        assert said == f"{expected}."
    else:
        assert "does not fit this model's scale" in said and f"{pair[0]} and {pair[1]} of the elements" in said
        assert "0.661 ± 0.004 in the pair “JSAE”, 0.784 ± 0.001 in “Traditional”" in said


def test_the_first_sentence_of_the_site_is_of_the_stored_shares_and_ratios(measured, site):
    stored = [load_file(measured.graph.file(f"{variant}/jacobian_histogram")) for variant in ("jsae", "traditional")]

    def both(name: str, percent: bool) -> tuple[Number, Number]:
        one, other = (of[f"estimate.{name}"].tolist() for of in stored)
        return Number(one[0], 1.96 * one[1], percent), Number(other[0], 1.96 * other[1], percent)

    said = said_of_sizes(("JSAE", "Traditional"), both("above_0.01", True), both("l1_over_l2", False))
    page = html.unescape((site / "index.html").read_text(encoding="utf-8"))
    assert f"At layer 1 of tiny, {said}" in page
