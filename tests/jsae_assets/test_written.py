"""All that a small whole run writes: no secret is in it, and names and texts from elsewhere stay text, in pages of
figures, in the site, in what the UI shows.

The labels, prompt, texts, tokens and wandb runs of the graph that is made here are all markup. The graph of the other
tests says which elements and attributes pages may have."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from tokenizers import AddedToken

from jsae_assets.assets.markdown import as_text
from jsae_assets.catalog_file import load_catalog
from jsae_assets.runs.plan import SWEEP_JOB
from tests.jsae_assets.conftest import Graph, failures, write_catalog
from tests.jsae_core.builders import character_tokenizer, save_language_model
from tests.wandb_server import WandbServer

HOSTILE = (
    "<img src=x onerror=window.executed=1>",
    "</script><script>window.executed=1</script>",
    '" onmouseover="window.executed=1" x=\'',
    "```<svg onload=window.executed=1>``` `${window.executed=1}` {{ 7 * 7 }}",
    '[x](javascript:window.executed=1) ![x](http://evil/x.png) <a href="http://evil">x</a>',
    "<!-- <b>x</b> --> &lt;i&gt; %{x} \\",
)
SECRETS = {
    name: f"sentinel-{name.lower()}-0123456789abcdef0123456789abcdef"
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "DAGSTER_PG_PASSWORD",
    )
} | {"USER": "sentinel-user", "WANDB_API_KEY": "5e17e1" * 6 + "beef"}
TABLE = ("table", "thead", "tbody", "tr", "th", "td")
WHEN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def benign(measured) -> Graph:
    """The graph of the other tests, with its site."""
    make_site(measured.graph)
    return measured.graph


@pytest.fixture(scope="module")
def hostile(fresh_home, entries, tmp_path_factory, no_wandb_process_left) -> Iterator[Graph]:
    """Of hostile names, in an environment of secrets."""
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(fresh_home, folder / "home")
    tokenizer = character_tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in HOSTILE])
    save_language_model(folder / "model", vocab_size=len(tokenizer))
    tokenizer.save_pretrained(folder / "model")
    lines = [json.dumps({"text": f"some {text} words"}) for text in HOSTILE * 10]
    (folder / f"{HOSTILE[0].replace('/', '')}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    made = entries()
    made["models"]["tiny"] |= {
        "directory": str(folder / "model"),
        "tokens": 300,
        "ablation_samples": 100,
        "function_shapes": 20,
        "quality_tokens": 100,
        "prompt": " ".join(HOSTILE),
    }
    made["text"]["measured"] = {"files": [f"{HOSTILE[0].replace('/', '')}.jsonl"]}
    made["variants"]["traditional"]["label"] = HOSTILE[0] + HOSTILE[1]
    made["variants"]["jsae"]["label"] = HOSTILE[4]
    made["sweeps"] = {"theirs": {"wandb": "lab/sweep"}}
    with (
        pytest.MonkeyPatch.context() as patch,
        WandbServer(SECRETS["WANDB_API_KEY"]) as server,
        dg.DagsterInstance.from_config(str(folder / "home")) as instance,
    ):
        for name, value in (server.environment(folder / "client") | SECRETS).items():
            patch.setenv(name, value)
        add_runs(server)
        graph = Graph(load_catalog(write_catalog(folder, made)), instance)
        graph.tokenise()
        graph.measure(1, raise_on_error=True)
        graph.compare_layers()
        job = graph.definitions.resolve_job_def(SWEEP_JOB)
        assert failures(job.execute_in_process(instance=instance, partition_key="theirs")) == {}
        make_site(graph)
        yield graph


def add_runs(server: WandbServer) -> None:
    for number, text in enumerate(HOSTILE):
        server.add_run(
            "lab",
            "sweep",
            f"run-{number}",
            display_name=text,
            config={
                "jacobian_coefficient": 0.1 * (number + 1),
                "model_name": text,
                "objective": text,
                "d_sae": 64,
                "activation_fn_kwargs": {"k": 32},
            },
            summary={
                "jacobian_sparsity/jac_abs_above_0.01": 600 / (number + 1),
                "model_performance_preservation/ce_loss_score": 0.9 - 0.01 * number,
                "model_performance_preservation/ce_loss_score2": 0.9 - 0.01 * number,
            },
            state="finished",
            created_at=WHEN,
            heartbeat_at=WHEN,
        )


def make_site(graph: Graph) -> None:
    graph.definitions.resolve_job_def("make_site").execute_in_process(instance=graph.instance)


class Markup(HTMLParser):
    """The elements and attributes of a page, and where its links lead."""

    def __init__(self, text: str):
        super().__init__()
        self.seen: set[tuple[str, str | None]] = set()
        self.links: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.seen |= {(tag, None), *((tag, name) for name, _ in attributes)}
        self.links |= {value or "" for name, value in attributes if name in ("href", "src", "action", "srcset")}

    def handle_decl(self, declaration):
        self.seen.add(("!", declaration.lower()))

    def handle_comment(self, comment):
        self.seen.add(("!--", None))


def pages(graph: Graph) -> dict[str, Markup]:
    return {
        path.relative_to(graph.storage).as_posix(): Markup(path.read_text(encoding="utf-8"))
        for path in graph.storage.rglob("*.html")
    }


def test_no_page_that_is_written_holds_an_element_attribute_or_link_that_its_names_made(benign, hostile):
    there, here = pages(benign), pages(hostile)
    assert len(here) >= len(there) > 10
    expected = set[tuple[str, str | None]]().union(*(page.seen for page in there.values()))
    for name, page in here.items():
        assert page.seen <= expected, (name, page.seen - expected)
        outside = {link for link in page.links if re.match(r"(?i)\s*[a-z][a-z0-9+.-]*:|\s*//", link)}
        assert outside <= {"https://arxiv.org/abs/2502.18147", "data:,"}, (name, outside)


def texts_in(value) -> Iterator[str]:
    """Those of a figure that are drawn, and more."""
    if isinstance(value, dict):
        for name, entry in value.items():
            if name not in ("meta", "legendgroup", "offsetgroup"):
                yield from texts_in(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from texts_in(entry)
    elif isinstance(value, str):
        yield value


def tags_of_plotly(graph: Graph) -> dict[str, set[str]]:
    """What Plotly, which takes some HTML in every text that it draws, would take for an element, in each figure."""
    found = {}
    for path in (graph.storage / "figures").rglob("*.json"):
        texts = "\n".join(texts_in(json.loads(path.read_text(encoding="utf-8"))))
        found[path.relative_to(graph.storage).as_posix()] = set(re.findall(r"<[/!a-zA-Z][^<>]*>?", texts))
    return found


def test_no_text_that_a_figure_draws_holds_markup_that_its_names_made(hostile):
    found = tags_of_plotly(hostile)
    assert len(found) > 10
    for name, tags in found.items():
        allowed = {
            tag for tag in tags if re.fullmatch(r"</?(b|i|br|sub|sup|extra|span)( style=([\"'])[^\"'<>]*\3)?/?>", tag)
        }
        assert tags <= allowed, (name, tags - allowed)


def markdown(text: str) -> Markup:
    return Markup(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def test_what_the_ui_takes_for_markdown_shows_names_as_they_are(hostile):
    shown = {
        f"description of {spec.key.to_user_string()}": spec.description or ""
        for spec in hostile.definitions.resolve_all_asset_specs()
    }
    for job in hostile.definitions.resolve_all_job_defs():
        shown[f"description of {job.name}"] = job.description or ""
    entries = 0
    for run in hostile.instance.get_runs():
        for record in hostile.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
            made = record.dagster_event.materialization
            for name, value in made.metadata.items():
                entries += 1
                if isinstance(value, dg.MarkdownMetadataValue):
                    shown[f"{name} of {made.asset_key.to_user_string()}"] = value.value
    assert entries > 100 and len(shown) > 20
    for place, text in shown.items():
        page = markdown(text)
        assert {tag for tag, _ in page.seen} <= {"p", "pre", "code", "a", *TABLE}, (place, text)
        assert all(re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w./#-]+", link) for link in page.links), (place, text)


def test_labels_are_read_in_a_description_as_they_are_written(hostile):
    labels = [variant.label for variant in hostile.catalog.variants.values()]
    description = next(
        spec.description
        for spec in hostile.definitions.resolve_all_asset_specs()
        if spec.key.to_user_string() == "figures/jsae/ablation"
    )
    inline = MarkdownIt("commonmark").parseInline(description)[0].children
    read = "".join(token.content for token in inline)
    for label in labels:
        assert label in read


@given(st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=80))
def test_any_name_is_read_in_markdown_as_it_is_written(name):
    name = " ".join(name.split())
    (inline,) = MarkdownIt("commonmark").parseInline(f"of {as_text(name)}.")
    assert {token.type for token in inline.children} <= {"text", "text_special"}
    assert "".join(token.content for token in inline.children) == f"of {name}."


def test_no_secret_is_in_anything_that_a_run_writes(hostile):
    written = {path: path.read_bytes() for path in hostile.storage.parent.rglob("*") if path.is_file()}
    kinds = {path.suffix for path in written}
    assert kinds >= {".safetensors", ".parquet", ".json", ".html", ".js", ".db"}
    for path, content in written.items():
        for name, value in SECRETS.items():
            assert value.encode() not in content, f"{path} holds {name}"


# In a browser


def test_nothing_is_executed_or_asked_for_by_any_page_in_a_browser(hostile, browser):
    asked, complaints = [], []
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    site = hostile.storage / "site"
    for path in ("index.html", "cells/tiny/1.html", "models/tiny.html", "sweeps/theirs.html"):
        page.goto((site / path).as_uri())
        for place in page.locator(".plot").all():
            place.scroll_into_view_if_needed()
            place.locator(".main-svg").first.wait_for()
        assert page.evaluate("window.executed") is None, path
    assert HOSTILE[0] in page.inner_text("main")  # the sweep's table shows the runs' names
    for side in ("output", "input"):
        page.goto((site / "explorer.html").as_uri() + f"#jsae/tiny/1/{side}/0")
        page.wait_for_selector("#latent h1")
        page.wait_for_function("document.body.dataset.shown === location.hash")
        assert page.evaluate("window.executed") is None
    for path in (hostile.storage / "figures").rglob("*.html"):
        page.goto(path.as_uri())
        page.wait_for_selector(".main-svg")
        page.mouse.move(400, 300)
        assert page.evaluate("window.executed") is None, path
    context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
