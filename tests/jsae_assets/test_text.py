"""The text of a model and of a recipe: what `tokens` says of it, and what training refuses."""

import json

import markdown_it
import pytest
from safetensors.torch import load_file

from jsae_assets.catalog import C4, Text
from jsae_assets.catalog_file import CatalogError, load_catalog
from tests.jsae_assets.conftest import failures, metadata, write_catalog

TEXT = "def read(self): return self"  # 27 characters, as many tokens
NO_TEXT = '{"text": ""}\n' * 400  # rows that are there and hold no token


@pytest.fixture
def measured_on(entries, graph, tmp_path):
    """The graph whose model is measured on some rows, with other settings of the text section."""

    def make(rows: list, **settings):
        (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), "utf-8")
        changed = entries()
        changed["text"]["measured"] = {"files": ["text.jsonl"]} | settings
        return graph(changed)

    return make


def lengths(graph) -> list[int]:
    return load_file(graph.file("tokens", None))["lengths"].tolist()


def test_a_document_longer_than_the_context_is_cut_into_several(measured_on):
    graph = measured_on([TEXT * 4, TEXT])
    told = metadata(graph.tokenise(), "tokens")
    assert lengths(graph) == [32, 32, 32, 16, 28] and told["tokens"] == 5 * 27
    assert "5, cut from 2" in told["summary"]
    assert told["settings"] == {"n_tokens": 135, "documents": 5, "whole_documents": 2}
    assert load_file(graph.file("tokens", None))["sources"].tolist() == [1, 1, 1, 1, 2]


def test_the_catalog_can_have_it_truncated(measured_on):
    graph = measured_on([TEXT * 4, TEXT], long_documents="truncate")
    told = metadata(graph.tokenise(), "tokens")
    assert lengths(graph) == [32, 28]
    assert "cut from" not in told["summary"] and told["settings"]["whole_documents"] == 2
    assert "sources" not in load_file(graph.file("tokens", None))


@pytest.mark.parametrize(
    "n, said", [(1, "errors within a single document"), (9, "errors over only 9 documents"), (10, None)]
)
def test_errors_over_few_documents_are_said_to_be_uncertain_however_many_pieces_they_have(measured_on, n, said):
    graph = measured_on([TEXT * 4] * n)
    told = graph.messages(graph.tokenise())
    assert said in told if said else "errors" not in told


def test_the_default_catalog_and_c4_truncate_as_the_stored_and_the_reported_numbers_were_made():
    assert {text.long_documents for text in load_catalog().text.values()} == {C4.long_documents} == {"truncate"}


def test_a_context_beyond_the_model_s_is_refused_before_anything_is_stored(entries, graph):
    changed = entries()
    changed["models"]["tiny"]["context_size"] = 33
    made = graph(changed)
    message = failures(made.tokenise(raise_on_error=False))["tokens"]
    assert "context_size is 33, but" in message and "has a context of 32; leave it out" in message
    assert not made.file("tokens", None).exists()


def test_fewer_tokens_than_asked_for_are_said_in_the_materialisation_and_the_log(measured_on):
    graph = measured_on([TEXT])
    result = graph.tokenise()
    told = metadata(result, "tokens")
    assert (told["tokens"], told["tokens_asked_for"]) == (27, 1000)
    assert "has 27 tokens, fewer than the 1,000" in graph.messages(result)


def test_rows_without_a_text_are_counted_in_the_materialisation_and_the_log(measured_on):
    graph = measured_on([None, TEXT, None])
    result = graph.tokenise()
    assert metadata(result, "tokens")["rows_without_text"] == 2
    assert "2 rows have no text" in graph.messages(result)


def test_enough_text_is_no_warning(measured_on):
    graph = measured_on([TEXT] * 50)
    told = graph.messages(graph.tokenise())
    assert "fewer" not in told and "rows" not in told


@pytest.mark.parametrize("text", ["```\n# heading", "~~~\n<b>x", "`" * 9 + "\n![](x)", "</pre><script>"])
def test_no_text_leaves_the_block_of_code_that_shows_it(measured_on, text):
    told = metadata(measured_on([text]).tokenise(), "tokens")["first_document"]
    (block,) = markdown_it.MarkdownIt().parse(told)
    assert block.type == "fence" and block.content == text + "\n"


def test_training_on_less_text_than_the_recipe_asks_for_is_refused_with_how_much_there_is(entries, graph, tmp_path):
    (tmp_path / "short.jsonl").write_text(json.dumps({"text": TEXT}) + "\n" + NO_TEXT, "utf-8")
    changed = entries()
    changed["text"]["short"] = {"files": ["short.jsonl"]}
    changed["pairs"][0]["train"]["text"] = "short"
    result = graph(changed).measure(1, "traditional/sae_pair")
    message = failures(result)["traditional/sae_pair"]
    assert "'short' holds 27 tokens" in message and "3,000" in message


def test_a_dataset_s_revision_is_asked_for_and_what_it_stood_for_recorded(entries, graph, monkeypatch):
    from jsae_core import text

    asked = {}

    def dataset(name, config, split, column, revision, say):
        asked.update(name=name, revision=revision)
        return text.Documents([("row 1", TEXT)], revision="c0ffee")

    monkeypatch.setattr(text, "hugging_face_dataset", dataset)
    changed = entries()
    changed["text"]["measured"] = {"dataset": "somebody/texts", "revision": "v1"}
    told = metadata(graph(changed).tokenise(), "tokens")
    assert asked == {"name": "somebody/texts", "revision": "v1"} and told["dataset_revision"] == "c0ffee"


@pytest.mark.parametrize(
    "settings, said",
    [({"revision": "v1"}, "revision is for datasets only"), ({"long_documents": "split"}, "'cut' or 'truncate'")],
)
def test_settings_of_a_text_that_mean_nothing_are_refused(entries, tmp_path, settings, said):
    changed = entries()
    changed["text"]["measured"] |= settings
    with pytest.raises(CatalogError, match=said):
        load_catalog(write_catalog(tmp_path, changed))


def test_the_words_of_the_catalog_are_those_of_the_core():
    from typing import get_args

    from jsae_core.text import LongDocuments

    assert get_args(Text.model_fields["long_documents"].annotation) == get_args(LongDocuments)


def test_what_a_run_downloads_is_said_in_its_log(entries, graph, hub, language_model, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    commit = hub.commit("org/tiny", {path.name: path.read_bytes() for path in language_model.iterdir()})
    changed = entries()
    del changed["models"]["tiny"]["directory"]
    changed["models"]["tiny"]["hub"] = "org/tiny"
    tiny = graph(changed)
    said = tiny.messages(tiny.tokenise())
    assert f"Fetching the model org/tiny@{commit} from {hub.url}: " in said
