"""The graph, materialised through Dagster: what comes out, what is skipped, what is refused."""

import base64
import json
import math
import shutil
from pathlib import Path

import dagster as dg
import numpy as np
import plotly.io
import pytest
import torch
from safetensors.torch import load_file, save_file

from jsae_assets.digests import out_of_groups
from jsae_assets.runs.freshness import Freshness
from jsae_assets.runs.freshness import Place as MadePlace
from jsae_assets.sections import Place
from jsae_core import MLPInputs, SAEPair, load_language_model, run_sandwich
from jsae_core.measures import jacobian_histogram
from jsae_core.pair_format import PairConfig
from jsae_core.tensor_files import tensor_text
from jsae_core.text import split_documents
from tests.jsae_assets.artifacts import assert_refused_if_it_changes_while_it_is_read
from tests.jsae_assets.conftest import (
    ANYTHING_GOES,
    CELL_FIGURES,
    PER_VARIANT,
    TABLES,
    failures,
    materialised,
    metadata,
)
from tests.jsae_core.builders import contents, mlp_tensors, random_sae_tensors, save_language_model, write_artifact

PAIRS = {"traditional/sae_pair", "jsae/sae_pair"}
MEASURES = {f"{variant}/{name}" for variant in ("traditional", "jsae") for name in PER_VARIANT} - PAIRS
FIGURES = {f"figures/jsae/{name}" for name in CELL_FIGURES}
READ_BY = {
    "jacobian_sparsity": {"jacobian_histogram", "latent_accounting"},
    "ablation": {"ablation_samples"},
    "function_curves": {"function_shapes"},
    "function_shapes": {"function_shapes"},
    "jacobian_histogram": {"jacobian_histogram"},
    "jacobian_thresholds": {"jacobian_histogram"},
    "jacobian_examples": {"jacobian_examples"},
    "jacobian_examples_l1": {"jacobian_examples"},
    "jacobian_examples_l2": {"jacobian_examples"},
    "edge_curve": {"latent_accounting"},
    "dead_latents": {"latent_activity"},
    "differences": {
        "jacobian_histogram",
        "latent_accounting",
        "ablation_samples",
        "function_shapes",
        "pair_quality",
    },
}


def stored_as(asset: str) -> str:
    return "parquet" if asset.endswith(TABLES) else "safetensors"


# A whole cell


def test_a_cell_that_both_variants_hold_gets_every_pair_measure_and_figure(measured):
    assert materialised(measured.tokens) == {"tokens"}
    assert materialised(measured.cell) == PAIRS | MEASURES | FIGURES
    for asset in PAIRS | MEASURES:
        assert measured.graph.file(asset, extension=stored_as(asset)).is_file()
    for asset in FIGURES:
        assert measured.graph.file(asset, extension="json").is_file()
        assert measured.graph.file(asset, extension="html").is_file()


def test_the_tokens_are_the_models_text_in_order_bos_first_cut_to_context_and_number(measured, language_model):
    documents = split_documents(load_file(measured.graph.file("tokens", None)))
    tokenizer = load_language_model(language_model).tokenizer
    (path,) = measured.graph.catalog.text["measured"].files
    texts = [json.loads(line)["text"] for line in Path(str(path)).read_text(encoding="utf-8").splitlines()]
    assert sum(len(document) - 1 for document in documents) == 1000
    parts = [text[at : at + 31] for text in texts for at in range(0, len(text), 31)]
    for document, part in zip(documents[:-1], parts, strict=False):
        assert document[0] == tokenizer.bos_token_id
        assert tokenizer.decode(document[1:]) == part


@pytest.fixture(scope="module")
def inputs(measured, language_model):
    documents = split_documents(load_file(measured.graph.file("tokens", None)))
    return MLPInputs(load_language_model(language_model), documents, layer=1, batch_tokens=100)


@pytest.mark.parametrize("variant", ["traditional", "jsae"])
def test_the_stored_histogram_is_the_cores_on_the_stored_pair_and_tokens(measured, inputs, variant):
    pair = SAEPair.load(measured.graph.file(f"{variant}/sae_pair"))
    stored = load_file(measured.graph.file(f"{variant}/jacobian_histogram"))
    for norm, prefix in {None: "", "l2t": "l2t.", "l4t": "l4t.", "linft": "linft."}.items():
        expected = jacobian_histogram(pair, inputs, norm=norm)
        for name in ("hist", "mean_jac_hist", "overflow"):
            # the batches are cut otherwise here, so an element at an edge may fall to its other side
            difference = (stored[prefix + name] - expected[name]).abs().sum()
            assert difference <= 1e-4 * expected["hist"].sum()
        assert torch.equal(stored[f"{prefix}bin_edges"], expected["bin_edges"])
    assert stored["n_tokens"] == 1000
    assert stored["hist"].dtype == torch.int64


def test_traditional_and_jsae_see_the_same_tokens(measured):
    examples = [load_file(measured.graph.file(f"{variant}/jacobian_examples")) for variant in ("traditional", "jsae")]
    histograms = [
        load_file(measured.graph.file(f"{variant}/jacobian_histogram")) for variant in ("traditional", "jsae")
    ]
    assert torch.equal(examples[0]["token_ids"], examples[1]["token_ids"])
    assert histograms[0]["n_tokens"] == histograms[1]["n_tokens"]
    lineage = measured.graph.definitions.resolve_asset_graph()
    for variant in ("traditional", "jsae"):
        key = dg.AssetKey([variant, "jacobian_histogram"])
        assert dg.AssetKey("tokens") in lineage.get(key).parent_keys


@pytest.mark.parametrize("variant", ["traditional", "jsae"])
def test_the_example_jacobians_are_those_of_the_prompts_tokens(measured, language_model, variant):
    stored = load_file(measured.graph.file(f"{variant}/jacobian_examples"))
    prompt = "def f(x): return x"
    assert "".join(tensor_text(stored["token_text"])) == prompt
    lm = load_language_model(language_model)
    tokens = torch.tensor([lm.tokenizer.bos_token_id, *lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    mlp_input, _ = lm.mlp_activations(tokens, 1)
    sandwich = run_sandwich(SAEPair.load(measured.graph.file(f"{variant}/sae_pair")), mlp_input[1:])
    torch.testing.assert_close(stored["jacobian"], sandwich.jacobian)
    assert torch.equal(stored["output_latents"], sandwich.output_latents)


def test_the_variants_were_trained_by_their_own_recipes(measured):
    coefficients = {
        variant: SAEPair.load(measured.graph.file(f"{variant}/sae_pair")).config.jacobian_coefficient
        for variant in ("traditional", "jsae")
    }
    assert coefficients == {"traditional": 0.0, "jsae": 1.0}


def test_a_stored_pair_is_that_of_its_layer_and_carries_the_models_own_mlp(measured, language_model):
    pair = SAEPair.load(measured.graph.file("jsae/sae_pair"), language_model=load_language_model(language_model))
    assert (pair.config.layer, pair.config.d_sae, pair.config.k) == (1, 64, 8)
    assert "gain" in pair.config.input_convention


def test_every_figure_of_a_cell_has_a_title_of_its_own_and_answers_in_a_sentence(measured):
    layouts = [
        json.loads(path.read_text(encoding="utf-8"))["layout"]
        for path in (measured.graph.storage / "figures" / "jsae").glob("*/1/tiny.json")
    ]
    assert len({layout["title"]["text"] for layout in layouts}) == len(layouts) == len(CELL_FIGURES)
    for layout in layouts:
        answer = layout["meta"]["answer"]
        assert answer.endswith(".") and any(character.isdigit() for character in answer)


@pytest.mark.parametrize(
    ("asset", "names"),
    [
        ("tokens", {"tokens", "documents", "source", "seconds", "path", "megabytes", "first_document"}),
        (
            "jsae/sae_pair",
            {"d_sae", "k", "jacobian_coefficient", "source", "source_digest", "device", "seconds", "path"},
        ),
        (
            "jsae/jacobian_histogram",
            {"summary", "share_above_0.01", "device", "seconds", "path", "megabytes", "source"},
        ),
        ("jsae/jacobian_examples", {"summary", "prompt", "device", "seconds", "path", "megabytes", "source"}),
        ("figures/jsae/jacobian_histogram", {"answer", "picture", "page", "path", "megabytes", "source"}),
    ],
)
def test_a_materialisation_says_what_a_reader_wants_first(measured, asset, names):
    told = metadata(measured.tokens if asset == "tokens" else measured.cell, asset)
    assert names <= told.keys()
    subject = "tiny" if asset == "tokens" else "tiny, layer 1"
    assert subject in told["answer" if asset.startswith("figures/") else "summary"].splitlines()[0]


@pytest.mark.parametrize("threshold", [0.005, 0.01, 0.015, 0.02])
def test_the_share_above_a_threshold_that_is_told_is_counted_from_the_jacobians(measured, inputs, threshold):
    pair = SAEPair.load(measured.graph.file("traditional/sae_pair"))
    jacobians = torch.cat([run_sandwich(pair, batch).jacobian for batch in inputs])
    told = metadata(measured.cell, "traditional/jacobian_histogram")[f"share_above_{threshold}"]
    assert told == pytest.approx((jacobians.abs() >= threshold).double().mean().item(), abs=1e-4)


@pytest.mark.parametrize("name", CELL_FIGURES)
def test_every_figure_is_made_from_the_same_measures_of_both_variants(measured, name):
    lineage = measured.graph.definitions.resolve_asset_graph()
    parents = lineage.get(dg.AssetKey(["figures", "jsae", name])).parent_keys
    assert {key.to_user_string() for key in parents} == {"catalog"} | {
        f"{variant}/{measure}" for variant in ("traditional", "jsae") for measure in READ_BY[name]
    }


@pytest.mark.parametrize("name", CELL_FIGURES)
def test_every_figure_names_both_variants_the_model_and_the_layer(measured, name):
    text = measured.graph.file(f"figures/jsae/{name}", extension="json").read_text(encoding="utf-8")
    for word in ("Traditional", "JSAE", "tiny, layer 1", "d_sae 64, k 8"):
        assert word in text


# All layers


def test_quality_by_layer_shows_every_measured_layer_of_both_variants(entries, measured_again):
    tiny = measured_again(entries())
    tiny.measure(0, "traditional/sae_pair", "traditional/pair_quality", raise_on_error=True)
    told = metadata(tiny.compare_layers(), "figures/jsae/quality_by_layer")
    assert told["layers"] == "0, 1"
    text = tiny.file("figures/jsae/quality_by_layer", None, extension="json").read_text(encoding="utf-8")
    drawn = [trace for trace in plotly.io.from_json(text).data if trace.error_y.array is not None]
    layers = {trace.name: values(trace.x)[np.isfinite(values(trace.y))].round().tolist() for trace in drawn}
    assert layers == {"Traditional": [0, 1], "JSAE": [1]}


def test_layers_that_are_not_measured_yet_are_left_out_and_named(measured):
    result = measured.graph.compare_layers()
    assert materialised(result) == {"figures/jsae/quality_by_layer"}
    assert metadata(result, "figures/jsae/quality_by_layer")["layers"] == "1"
    assert "traditional/pair_quality of tiny is not there yet at layers [0]" in measured.graph.messages(result)


def test_where_no_layer_is_measured_yet_the_comparison_says_what_to_materialise(entries, graph):
    tiny = graph(entries())
    (message,) = failures(tiny.compare_layers(raise_on_error=False)).values()
    assert "no layer of tiny has traditional/pair_quality yet; materialise it first" in message
    assert tiny.stored() == {}


def values(stored) -> np.ndarray:
    """An array as Plotly writes it: nested lists, or base64 with its type and shape."""
    if not isinstance(stored, dict):
        return np.asarray(stored)
    flat = np.frombuffer(base64.b64decode(stored["bdata"]), stored["dtype"])
    return flat.reshape([int(size) for size in stored["shape"].split(",")]) if "shape" in stored else flat


def test_the_examples_figure_shows_elements_of_the_stored_jacobians_of_both(measured):
    text = measured.graph.file("figures/jsae/jacobian_examples", extension="json").read_text(encoding="utf-8")
    maps = [values(trace.z) for trace in plotly.io.from_json(text).data if trace.type == "heatmap"]
    assert len(maps) == 8
    for variant, drawn in zip(("traditional", "jsae"), (maps[:4], maps[4:]), strict=True):
        jacobians = load_file(measured.graph.file(f"{variant}/jacobian_examples"))["jacobian"].abs().numpy()
        sorted_elements = [np.sort(jacobian.ravel()) for jacobian in jacobians]
        for matrix in drawn:
            elements = np.sort(np.asarray(matrix, dtype=np.float32).ravel())
            assert any(np.allclose(elements, candidate, rtol=1e-3) for candidate in sorted_elements)


def test_a_cell_that_one_variant_holds_gets_that_variants_share_and_no_figure(entries, graph):
    tiny = graph(entries())
    tiny.tokenise()
    result = tiny.measure(0)
    assert result.success
    assert materialised(result) == {f"traditional/{name}" for name in PER_VARIANT}


def test_a_cell_whose_models_tokens_nobody_made_makes_them_first_and_they_are_up_to_date(entries, graph):
    tiny = graph(entries())
    result = tiny.measure(1, "jsae/sae_pair", raise_on_error=True)
    assert "the tokens of tiny are not there yet: making them first" in tiny.messages(result)
    assert materialised(result) == {"tokens", "jsae/sae_pair"}
    freshness = Freshness(
        tiny.catalog, tiny.definitions.resolve_asset_graph(), tiny.definitions.resources, tiny.instance
    )
    made = [MadePlace(dg.AssetKey("tokens"), "tiny"), MadePlace(dg.AssetKey(["jsae", "sae_pair"]), "tiny:1")]
    assert freshness.out_of_date(made) == {}
    before = load_file(tiny.file("tokens", None))
    tiny.tokenise()
    after = load_file(tiny.file("tokens", None))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_made_is_recorded_as_made_from_the_entries_that_were_read_whatever_the_instance_was_told(
    entries, graph
):
    tiny = graph(entries())
    for event in (dg.AssetObservation, dg.AssetMaterialization):
        tags = {"dagster/data_version": "of a catalog since edited"}
        tiny.instance.report_runless_asset_event(event("catalog", partition="models/tiny/tokens", tags=tags))
    assert materialised(tiny.tokenise()) == {"tokens"}
    freshness = Freshness(
        tiny.catalog, tiny.definitions.resolve_asset_graph(), tiny.definitions.resources, tiny.instance
    )
    assert freshness.out_of_date([MadePlace(dg.AssetKey("tokens"), "tiny")]) == {}


# A cell that the catalog does not hold


@pytest.mark.parametrize("asset", sorted(PAIRS | MEASURES | FIGURES))
def test_no_asset_can_be_asked_for_at_a_cell_that_the_catalog_does_not_hold(measured, asset):
    held = {"tiny:1"} if "jsae" in asset else {"tiny:0", "tiny:1"}
    spec = measured.graph.definitions.resolve_assets_def(dg.AssetKey.from_user_string(asset)).get_asset_spec()
    assert set(spec.partitions_def.get_partition_keys()) == held


def test_a_run_of_a_cell_that_the_catalog_does_not_hold_is_refused_before_anything_is_made(measured):
    before = measured.graph.stored()
    with pytest.raises(dg.DagsterUnknownPartitionError, match="tiny:2"):
        measured.graph.definitions.resolve_job_def("measure_cell").execute_in_process(
            instance=measured.graph.instance, partition_key="tiny:2"
        )
    assert measured.graph.stored() == before


def test_a_measure_whose_pair_was_not_materialised_yet_says_what_to_materialise(entries, graph):
    tiny = graph(entries())
    tiny.tokenise()
    before = tiny.stored()
    result = tiny.measure(1, "jsae/jacobian_histogram")
    assert not result.success
    (message,) = failures(result).values()
    assert "materialise jsae/sae_pair for tiny:1 first" in message
    assert tiny.stored() == before


# Pairs from elsewhere


@pytest.fixture(scope="module")
def artifact(language_model, tmp_path_factory) -> Path:
    """An artifact of a random pair around the tiny model's MLP at layer 1."""
    lm = load_language_model(language_model)
    config = PairConfig(model_name="tiny", layer=1, d_in=lm.d_model, d_sae=40, k=5, jacobian_coefficient=0.5)
    tensors = random_sae_tensors(lm.d_model, 40, torch.float32) | mlp_tensors(lm.mlp(1))
    written = config.to_artifact()
    del written["mlp_activation"]
    return write_artifact(tmp_path_factory.mktemp("artifacts") / "layer1", tensors, written)


@pytest.fixture
def from_directory(entries, graph, artifact, tmp_path):
    """The tiny graph with the JSAE pair of layer 1 from a directory, which the test may damage."""
    shutil.copytree(artifact, tmp_path / "pairs" / "1")
    changed = entries()
    changed["pairs"][1] = {
        "variant": "jsae",
        "model": "tiny",
        "layers": [1],
        "directory": "pairs/{layer}",
        "least_explained_variance": ANYTHING_GOES,
    }
    return graph(changed)


def test_a_pair_from_a_directory_is_stored_as_it_is_and_measured(from_directory, artifact, tmp_path):
    before = contents(tmp_path / "pairs" / "1")
    from_directory.tokenise()
    result = from_directory.measure(1, "jsae/sae_pair", "jsae/jacobian_histogram")
    assert failures(result) == {}
    assert materialised(result) == {"jsae/sae_pair", "jsae/jacobian_histogram"}
    written, stored = load_file(artifact / "sae_weights.safetensors"), load_file(from_directory.file("jsae/sae_pair"))
    assert written.keys() == stored.keys()
    assert all(torch.equal(written[name], stored[name]) for name in written)
    told = metadata(result, "jsae/sae_pair")
    assert told["source"] == "directory pairs/1"  # relative to the catalog's folder
    assert len(out_of_groups(told["source_digest"])) == 64
    assert told["mlp_activation"] == "gelu"
    assert contents(tmp_path / "pairs" / "1") == before


def rewrite(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def truncate(folder: Path) -> None:
    path = folder / "sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def poison(value: float):
    def change(folder: Path) -> None:
        rewrite(folder / "sae_weights.safetensors", lambda tensors: tensors["_W_dec_out"].view(-1)[3:4].fill_(value))

    return change


def lose(name: str):
    return lambda folder: rewrite(folder / "sae_weights.safetensors", lambda tensors: tensors.pop(name))


def reshape(folder: Path) -> None:
    def change(tensors):
        tensors["_b_enc"] = tensors["_b_enc"][:-1].clone()

    rewrite(folder / "sae_weights.safetensors", change)


def configure(**changes):
    def change(folder: Path) -> None:
        path = folder / "cfg.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")

    return change


DAMAGES = {
    "no directory": (shutil.rmtree, ["pairs/1"]),
    "no weights": (
        lambda folder: (folder / "sae_weights.safetensors").unlink(),
        ["sae_weights.safetensors is missing"],
    ),
    "no configuration": (lambda folder: (folder / "cfg.json").unlink(), ["cfg.json is missing"]),
    "truncated weights": (truncate, ["sae_weights.safetensors", "not a complete safetensors file"]),
    "an empty file of weights": (
        lambda folder: (folder / "sae_weights.safetensors").write_bytes(b""),
        ["sae_weights.safetensors", "not a complete safetensors file"],
    ),
    "a missing tensor": (lose("_W_enc_out"), ["sae_weights.safetensors", "_W_enc_out", "missing"]),
    "a wrong shape": (reshape, ["sae_weights.safetensors", "_b_enc has shape (39,), expected (40,)"]),
    "NaN": (poison(math.nan), ["sae_weights.safetensors", "_W_dec_out holds 1 NaN or infinite"]),
    "infinity": (poison(math.inf), ["sae_weights.safetensors", "_W_dec_out holds 1 NaN or infinite"]),
    "a configuration that is no JSON": (lambda folder: (folder / "cfg.json").write_text("{"), ["cfg.json", "not JSON"]),
    "a k above d_sae": (configure(activation_fn_kwargs={"k": 41}), ["cfg.json", "k is 41, larger than d_sae, 40"]),
    "an unknown activation": (configure(mlp_activation="swoosh"), ["cfg.json", "swoosh"]),
    "the pair of another layer": (configure(hook_layer=0), ["pairs/1"]),
    "the pair of another model": (
        lambda folder: rewrite(folder / "sae_weights.safetensors", lambda tensors: tensors["mlp.W_in"].mul_(2)),
        ["sae_weights.safetensors", "mlp.W_in differs from", "do not belong together"],
    ),
}


@pytest.mark.parametrize(("damage", "expected"), DAMAGES.values(), ids=list(DAMAGES))
def test_a_damaged_artifact_is_refused_by_name_and_the_pair_already_stored_stays(
    from_directory, tmp_path, damage, expected
):
    stored = from_directory.file("jsae/sae_pair")
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"the pair of last week")
    damage(tmp_path / "pairs" / "1")
    result = from_directory.measure(1, "jsae/sae_pair")
    assert not result.success
    (message,) = failures(result).values()
    for words in expected:
        assert words in message
    assert stored.read_bytes() == b"the pair of last week"


def test_a_pair_in_a_directory_that_changes_while_it_is_read_is_refused_and_the_stored_one_stays(
    from_directory, monkeypatch
):
    assert_refused_if_it_changes_while_it_is_read(from_directory, monkeypatch)


def test_a_pair_of_a_model_with_another_width_is_refused_naming_both(from_directory, language_model, tmp_path):
    save_language_model(tmp_path / "wide", hidden_size=24)
    catalog = from_directory.catalog
    wide = catalog.models["tiny"].model_copy(update={"directory": Place(tmp_path / "wide", "wide")})
    result = from_directory.with_catalog(catalog.model_copy(update={"models": {"tiny": wide}})).measure(
        1, "jsae/sae_pair"
    )
    (message,) = failures(result).values()
    for words in ("d_in is 16", "d_model 24", "do not belong together"):
        assert words in message
    assert not from_directory.file("jsae/sae_pair").exists()


# Bad input


def damaged_model(source: Path, folder: Path, damage) -> str:
    shutil.copytree(source, folder)
    damage(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "tokenizer.json").write_bytes(b"short"), "tokenizer"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "could not be loaded"),
    ],
    ids=["damaged tokenizer", "truncated weights"],
)
def test_a_model_directory_that_is_not_whole_is_refused_by_name(
    entries, graph, language_model, tmp_path, damage, expected
):
    changed = entries()
    changed["models"]["tiny"]["directory"] = damaged_model(language_model, tmp_path / "damaged-model", damage)
    tiny = graph(changed)
    result = tiny.tokenise(raise_on_error=False)
    (message,) = failures(result).values()
    assert "damaged-model" in message
    assert expected in message
    assert tiny.stored() == {}


def test_a_hub_model_that_cannot_be_reached_is_refused_by_name_with_what_to_do(entries, graph):
    changed = entries()
    changed["models"]["tiny"] = {"hub": "nobody/no-such-model", "text": "measured"}
    tiny = graph(changed)
    result = tiny.tokenise(raise_on_error=False)
    (message,) = failures(result).values()
    for words in ("nobody/no-such-model", "did not give", "HF_HUB_OFFLINE forbids to ask", "name its directory"):
        assert words in message
    assert tiny.stored() == {}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "no text to measure: there is no document"),
        ('{"text": ""}\n{"text": ""}\n', "no document has a token besides BOS, of 2 that were read"),
        ('{"body": "x"}\n', "'text'"),
        ('{"text": "x"}\n{"text"', "line 2"),
    ],
    ids=["an empty file", "documents without a token", "another column", "a broken line"],
)
def test_text_with_nothing_to_measure_is_refused_and_the_tokens_already_stored_stay(
    entries, graph, tmp_path, content, expected
):
    (tmp_path / "bad.jsonl").write_text(content, encoding="utf-8")
    changed = entries()
    changed["text"]["measured"] = {"files": ["bad.jsonl"]}
    tiny = graph(changed)
    stored = tiny.file("tokens", None)
    stored.parent.mkdir(parents=True)
    stored.write_bytes(b"the tokens of last week")
    before = tiny.stored()
    result = tiny.tokenise(raise_on_error=False)
    (message,) = failures(result).values()
    assert expected in message
    assert tiny.stored() == before


def test_a_dataset_that_cannot_be_reached_is_refused_by_name_with_what_to_do(entries, graph):
    changed = entries()
    changed["text"]["measured"] = {"dataset": "nobody/no-such-dataset"}
    result = graph(changed).tokenise(raise_on_error=False)
    (message,) = failures(result).values()
    for words in ("nobody/no-such-dataset", "could not be opened", "local files"):
        assert words in message


def test_documents_shorter_than_two_tokens_are_left_out_and_the_rest_is_kept(entries, graph, tmp_path):
    (tmp_path / "mixed.jsonl").write_text(
        '{"text": ""}\n{"text": "ab"}\n{"text": ""}\n{"text": "c"}\n', encoding="utf-8"
    )
    changed = entries()
    changed["text"]["measured"] = {"files": ["mixed.jsonl"]}
    tiny = graph(changed)
    told = metadata(tiny.tokenise(), "tokens")
    assert (told["documents"], told["tokens"]) == (2, 3)
    assert load_file(tiny.file("tokens", None))["lengths"].tolist() == [3, 2]


def test_training_text_with_nothing_in_it_fails_the_pair_and_nothing_else(entries, graph, tmp_path):
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n' * 400, encoding="utf-8")
    changed = entries()
    changed["text"]["empty"] = {"files": ["empty.jsonl"]}
    changed["pairs"][1]["train"]["text"] = "empty"
    tiny = graph(changed)
    tiny.tokenise()
    result = tiny.measure(1, "jsae/sae_pair", "traditional/sae_pair")
    assert failures(result).keys() == {"jsae/sae_pair"}
    assert "no text" in failures(result)["jsae/sae_pair"]
    assert materialised(result) == {"traditional/sae_pair"}


def test_a_prompt_of_one_token_is_drawn_too(entries, measured_again):
    changed = entries()
    changed["models"]["tiny"]["prompt"] = "x"
    reading_it = {f"{variant}/jacobian_examples" for variant in ("traditional", "jsae")}
    reading_it |= {figure for figure in FIGURES if "jacobian_examples" in figure}
    result = measured_again(changed).measure(1, *reading_it)
    assert failures(result) == {}
    assert materialised(result) == reading_it


def test_a_pair_is_checked_before_the_next_one_is_trained(measured):
    # a pair without its check would be trained again after an interruption
    events = [event for run in measured.cell.runs for event in run.all_events]
    begun = [event.step_key for event in events if event.event_type_value == "STEP_START"]
    pairs_and_checks = [step for step in begun if step.endswith(("__sae_pair", "_faithful"))]
    assert pairs_and_checks == [
        "traditional__sae_pair",
        "traditional__sae_pair_faithful",
        "jsae__sae_pair",
        "jsae__sae_pair_faithful",
    ]
