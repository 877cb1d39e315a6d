"""Interventions, function shapes and quality through Dagster: the stored tables, and input that could break them."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from upath import UPath

from jsae_assets.files.estimates import stored_estimates
from jsae_assets.files.stored import StoredTable, StoredTensors
from jsae_core import MLPInputs, SAEPair, load_language_model
from jsae_core.measures import (
    ablation_samples,
    ablation_summary,
    function_curves,
    function_shapes,
    jacobian_measures,
    latent_accountings,
    latent_connections,
    latent_contexts,
    pair_quality,
)
from jsae_core.measures.moments import spread
from jsae_core.pair_format import PairConfig
from jsae_core.text import split_documents, split_sources
from tests.jsae_assets.conftest import ANYTHING_GOES, CELL_FIGURES, TABLES, failures, materialised, metadata
from tests.jsae_core.builders import mlp_tensors, random_sae_tensors, save_language_model, write_artifact

VARIANTS = ("traditional", "jsae")
PLACE = ["token", "output_rank", "input_rank"]
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def table(graph, asset: str) -> pd.DataFrame:
    return pd.read_parquet(graph.file(asset, extension="parquet"))


def stored_measure(graph, asset: str) -> StoredTable | StoredTensors:
    kind, extension = (StoredTable, "parquet") if asset.endswith(TABLES) else (StoredTensors, "safetensors")
    path = graph.file(asset, extension=extension)
    return kind(UPath(graph.storage), path.relative_to(graph.storage).as_posix(), asset)


@pytest.fixture(scope="module")
def lm(language_model):
    return load_language_model(language_model)


@pytest.fixture(scope="module")
def documents(measured):
    return split_documents(load_file(measured.graph.file("tokens", None)))


@pytest.fixture(scope="module")
def sources(measured):
    """Every document of the tiny catalog is longer than its model's context."""
    return split_sources(load_file(measured.graph.file("tokens", None)))


@pytest.fixture(scope="module")
def stream(lm, documents, sources):
    return MLPInputs(lm, documents, layer=1, batch_tokens=100, sources=sources)


@each_variant
def test_the_stored_samples_are_the_cores_on_the_stored_pair_and_tokens(measured, stream, variant):
    stored = table(measured.graph, f"{variant}/ablation_samples")
    pair = SAEPair.load(measured.graph.file(f"{variant}/sae_pair"))
    expected = ablation_samples(pair, stream, 500, doses=("unit", "whole", "double"))
    assert len(stored) == 500
    classes = ["agreement", "published", "agreement_whole", "agreement_double"]
    pd.testing.assert_frame_equal(stored.drop(columns=classes), expected.drop(columns=classes), atol=1e-4)
    assert (stored["agreement"] == expected["agreement"]).mean() > 0.99  # rounding may carry one over a boundary
    told = metadata(measured.cell, f"{variant}/ablation_samples")
    summary = {name: value for name, value in ablation_summary(stored).items() if not name.endswith("_se")}
    assert {name: told[name] for name in summary} == summary


@each_variant
def test_the_stored_shapes_are_the_cores_and_their_shares_are_told(measured, stream, variant):
    stored = table(measured.graph, f"{variant}/function_shapes")
    pair = SAEPair.load(measured.graph.file(f"{variant}/sae_pair"))
    expected = function_shapes(pair, stream, 60)
    assert (stored["shape"] == expected["shape"]).mean() > 0.9  # rounding may carry one over the tolerance
    pd.testing.assert_frame_equal(stored[PLACE], expected[PLACE])
    told = metadata(measured.cell, f"{variant}/function_shapes")
    for shape in ("linear", "jumprelu", "other"):
        assert told[f"share_{shape}"] == (stored["shape"] == shape).mean()
    assert told["share_flat"] == stored["flat"].mean()


def test_the_curves_that_are_kept_can_be_drawn_with_the_activation_that_occurred(measured, stream):
    stored = table(measured.graph, "jsae/function_shapes")
    assert stored["output_values"].notna().all()  # fewer samples than are kept
    pair = SAEPair.load(measured.graph.file("jsae/sae_pair"))
    ranks = [torch.tensor(stored[name].to_numpy()) for name in ("output_rank", "input_rank")]
    x = torch.cat(list(stream))[torch.tensor(stored["token"].to_numpy())]
    input_values, output_values = function_curves(pair, x, *ranks)
    np.testing.assert_allclose(np.stack(stored["input_values"]), input_values, atol=1e-4)
    np.testing.assert_allclose(np.stack(stored["output_values"]), output_values, atol=1e-3)
    reach = np.stack(stored["input_values"]).max(axis=1)
    assert (stored["input_activation"] <= reach).all()


@each_variant
def test_every_curve_belongs_to_an_element_that_was_intervened_on(measured, variant):
    curves = table(measured.graph, f"{variant}/function_shapes")
    samples = table(measured.graph, f"{variant}/ablation_samples")
    both = curves.merge(samples, on=[*PLACE, "drawn", "output_latent", "input_latent"])
    assert len(both) == len(curves)
    np.testing.assert_allclose(both["input_activation_x"], both["input_activation_y"], atol=1e-4)


@pytest.mark.parametrize("name", ["ablation_samples", "function_shapes"])
def test_both_variants_are_sampled_at_the_same_tokens_and_ranks(measured, name):
    one, other = (table(measured.graph, f"{variant}/{name}") for variant in VARIANTS)
    pd.testing.assert_frame_equal(one[PLACE], other[PLACE])


@each_variant
def test_the_quality_is_one_row_that_says_of_which_pair_it_is(measured, lm, documents, sources, variant):
    row = table(measured.graph, f"{variant}/pair_quality")
    assert len(row) == 1
    assert row[["model", "layer", "variant", "d_sae", "k"]].iloc[0].tolist() == ["tiny", 1, variant, 64, 8]
    assert row["jacobian_coefficient"].item() == {"traditional": 0.0, "jsae": 1.0}[variant]
    assert row["n_tokens"].item() == 300
    first, left = [], 300
    for document in documents:
        first.append(document[: left + 1])
        left -= len(first[-1]) - 1
        if not left:
            break
    of_first = sources[: len(first)]
    assert row["whole_documents"].item() == len(set(of_first)) < len(first)
    pair = SAEPair.load(measured.graph.file(f"{variant}/sae_pair"))
    expected = pair_quality(pair, lm, first, sources=of_first)
    assert row["spliced_at_bos"].item() == 0  # the pair was trained here, on streams that leave BOS out
    of_jacobian = {name for name in expected if name.startswith(("above_", "norm_", "kurtosis", "l1_over_l2"))}
    for name in expected.keys() - of_jacobian:
        assert row[name].item() == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
    assert not of_jacobian & set(row)  # the histogram says it, of all tokens


@each_variant
def test_the_jacobian_s_measures_are_of_the_histogram_s_tokens_with_errors_by_document(
    measured, lm, documents, sources, variant
):
    stored = stored_estimates(stored_measure(measured.graph, f"{variant}/jacobian_histogram"))
    pair = SAEPair.load(measured.graph.file(f"{variant}/sae_pair"))
    expected = pair_quality(pair, lm, documents, sources=sources)
    there = {name: of for name, of in stored.items() if name.endswith("_at_reconstruction")}
    for name, estimate in stored.items():
        if name in there:
            continue
        assert estimate.value == pytest.approx(expected[name], rel=1e-3, abs=1e-5), name
        assert estimate.standard_error == pytest.approx(expected[f"{name}_se"], rel=1e-2, abs=1e-6), name
        assert len(estimate.influence) == len(set(sources)) < len(documents)
    assert {"above_0.01", "kurtosis", "l1_over_l2", "norm_linft"} <= stored.keys()
    at_reconstruction = jacobian_measures(pair, MLPInputs(lm, documents, 1), at="reconstruction")
    assert there.keys() == {f"{name}_at_reconstruction" for name in at_reconstruction}
    for name, estimate in at_reconstruction.items():
        assert there[f"{name}_at_reconstruction"].value == pytest.approx(estimate.value, rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("name", ["jacobian_histogram", "pair_quality", "latent_accounting"])
def test_what_is_stored_of_each_document_gives_the_stored_standard_errors(measured, name):
    stored = stored_estimates(stored_measure(measured.graph, f"jsae/{name}"))
    assert stored
    for number, estimate in stored.items():
        assert spread(estimate.influence) == pytest.approx(estimate.standard_error, rel=1e-5, abs=1e-7), number


@each_variant
def test_the_accounting_is_that_of_the_model_s_own_mlp_inputs_with_errors_by_document(measured, stream, variant):
    rows = table(measured.graph, f"{variant}/latent_accounting")
    pair = SAEPair.load(measured.graph.file(f"{variant}/sae_pair"))
    expected = latent_accountings(pair, stream)
    together, latents = rows.iloc[0], rows.iloc[1:]
    for name, value in expected.overall.items():
        assert together[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert together["p_se"] > 0 and rows["output_latent"].isna().sum() == 1
    assert latents["n_tokens"].sum() == 1000 * 8


@each_variant
def test_the_stored_contexts_and_connections_are_the_cores(measured, lm, documents, stream, variant):
    pair = SAEPair.load(measured.graph.file(f"{variant}/sae_pair"))
    contexts = table(measured.graph, f"{variant}/latent_contexts")
    expected = latent_contexts(pair, lm, documents, 1)
    one, other = (frame[frame["kind"] == "latent"].set_index(["side", "latent"]) for frame in (contexts, expected))
    pd.testing.assert_frame_equal(one[["density"]], other[["density"]], atol=2e-3)  # rounding may carry one out of TopK
    assert contexts.columns.tolist() == expected.columns.tolist()
    connections = table(measured.graph, f"{variant}/latent_connections")
    core = latent_connections(pair, stream).set_index(["output_latent", "input_latent"])
    stored = connections.set_index(["output_latent", "input_latent"])[core.columns]
    both = stored.index.intersection(core.index)
    assert len(both) > 0.98 * max(len(stored), len(core)) > 100
    difference = (stored.loc[both] - core.loc[both])[["mean_jacobian", "share", "sign_agreement"]].abs()
    assert (difference < 0.02).to_numpy().mean() > 0.99
    with_curves = connections[connections["curve"].notna()]
    assert (connections.groupby("output_latent").cumcount()[with_curves.index] < 5).all() and len(with_curves) > 50


@pytest.mark.parametrize("name", [*TABLES, "jacobian_histogram", "jacobian_examples"])
def test_a_stored_measure_says_in_its_header_what_it_was_measured_on(measured, sources, name):
    stored = stored_measure(measured.graph, f"jsae/{name}")
    in_quality = stored_measure(measured.graph, "jsae/pair_quality").frame["whole_documents"].item()
    n_documents = {"pair_quality": in_quality, "jacobian_examples": None}.get(name, len(set(sources)))
    n_tokens = {"pair_quality": 300, "jacobian_examples": len(measured.graph.catalog.models["tiny"].prompt)}
    assert stored.settings == {
        "model": "tiny",
        "layer": 1,
        "variant": "jsae",
        "d_sae": 64,
        "k": 8,
        "jacobian_coefficient": 1.0,
        "text": "measured",
        "weights": "unprocessed",
        "n_tokens": n_tokens.get(name, 1000),
        "jacobian_at": "input",
    } | ({"whole_documents": n_documents} if n_documents else {})
    assert metadata(measured.cell, f"jsae/{name}")["settings"] == stored.settings
    if isinstance(stored, StoredTable):
        assert stored.frame.attrs == {}
    else:
        assert not {"d_sae", "k", "jacobian_coefficient"} & stored.keys()


@pytest.mark.parametrize("name", TABLES)
def test_a_materialisation_says_what_a_reader_wants_first(measured, name):
    told = metadata(measured.cell, f"jsae/{name}")
    wanted = {
        "ablation_samples": {
            "slope_noteworthy",
            "correlation",
            "on_line_relative",
            "agreement_dropped",
            "slope_double",
        },
        "function_shapes": {"share_linear", "share_flat", "share_relative_linear", "median_curvature", "samples"},
        "pair_quality": {
            "ce_score_pair",
            "kl_score_output",
            "explained_variance_input",
            "spliced_at_bos",
            "dead_output",
        },
        "latent_activity": {"dead_input", "dead_output", "unseen_input", "unseen_output"},
        "latent_accounting": {"accounted_share", "completeness", "r2_attribution_4", "r2_random_4", "n90"},
        "latent_contexts": {"dead_input", "dead_output", "density_median_input", "density_median_output"},
        "latent_connections": {"connections", "output_latents", "share_strongest_median"},
    }[name]
    assert wanted | {"device", "seconds", "path", "megabytes", "source"} <= told.keys()
    assert next(iter(told)) == "summary" and len(told["summary"]) < 1000  # the UI folds longer ones away
    assert len(told["summary"].splitlines()) <= 2 + 5
    assert all(np.isfinite(value) for value in told.values() if isinstance(value, float))


# Bad input


@pytest.mark.parametrize("name", ["ablation_samples", "function_shapes"])
def test_more_samples_than_the_tokens_hold_are_refused_naming_the_setting(entries, graph, name):
    changed = entries()
    changed["models"]["tiny"][name] = 64_001
    tiny = graph(changed)
    tiny.tokenise()
    result = tiny.measure(1, "jsae/sae_pair", f"jsae/{name}")
    message = failures(result)[f"jsae/{name}"]
    assert f"models.tiny.{name} in the catalog is too large for tiny, layer 1" in message
    assert "n_samples is 64001, but 1000 tokens with k 8 hold 64000" in message
    assert not tiny.file(f"jsae/{name}", extension="parquet").exists()


def constant(folder) -> None:
    """All tokens have the same embedding, and attention gives nothing: every MLP input is the same."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["gpt_neox.embed_in.weight"][:] = tensors["gpt_neox.embed_in.weight"][:1].clone()
    for name in tensors:
        if "attention.dense" in name:
            tensors[name].zero_()
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture
def odd(entries, graph, language_model, tmp_path):
    """The tiny graph with both pairs of layer 1 from directories, of a given k and encoder bias, on a model that the
    test may damage."""

    def make(k: int, bias: float, damage=None):
        model = tmp_path / "odd-model"
        shutil.copytree(language_model, model)
        if damage is not None:
            damage(model)
        lm = load_language_model(model)
        changed = entries()
        changed["models"]["tiny"] |= {
            "directory": str(model),
            "tokens": 200,
            "ablation_samples": 100,
            "function_shapes": 20,
            "quality_tokens": 100,
        }
        for seed, entry in enumerate(changed["pairs"]):
            tensors = random_sae_tensors(lm.d_model, 40, torch.float32, seed)
            for name in ("_b_enc", "_b_enc_out"):
                tensors[name] += bias
            config = PairConfig(model_name="tiny", layer=1, d_in=lm.d_model, d_sae=40, k=k, jacobian_coefficient=seed)
            folder = tmp_path / f"pair-{seed}"
            write_artifact(folder, tensors | mlp_tensors(lm.mlp(1)), config.to_artifact())
            del entry["train"]
            entry |= {"layers": [1], "directory": str(folder), "least_explained_variance": ANYTHING_GOES}
        tiny = graph(changed)
        tiny.tokenise()
        return tiny

    return make


@pytest.mark.parametrize(
    ("k", "bias", "damage"),
    [(1, 0.0, None), (5, -1e4, None), (5, 0.0, constant), (1, -1e4, None)],
    ids=["k of 1", "dead latents", "constant activations", "a dead latent a token"],
)
def test_odd_pairs_and_inputs_give_tables_without_nan_and_every_figure(odd, k, bias, damage):
    tiny = odd(k, bias, damage)
    result = tiny.measure(1)
    assert failures(result) == {}
    for variant in VARIANTS:
        for name in TABLES:
            frame = table(tiny, f"{variant}/{name}")
            numbers = frame.select_dtypes("number")
            if name == "latent_accounting":  # single latents have no standard errors, their sum has no number
                errors = [column for column in numbers if column.endswith("_se")]
                assert np.isfinite(numbers.loc[0, errors].to_numpy(float)).all()
                numbers = numbers.drop(columns=["output_latent", *errors])
            if name == "latent_contexts":  # a row of a latent has no place, that of a context no density
                numbers = frame.loc[frame["kind"] == "latent", ["density"]]
            if name == "latent_connections":  # only the strongest have a curve
                numbers = numbers.drop(columns="curve_end")
            assert np.isfinite(numbers.to_numpy(float)).all(), numbers.columns[~np.isfinite(numbers).all()].tolist()
            told = metadata(result, f"{variant}/{name}")
            assert all(np.isfinite(value) for value in told.values() if isinstance(value, float))
    drawn = [asset for asset in materialised(result) if asset.startswith("figures/")]
    assert len(drawn) == len(CELL_FIGURES)
    assert failures(tiny.compare_layers()) == {}


def test_a_pair_and_a_language_model_that_do_not_belong_together_are_refused(odd, tmp_path):
    tiny = odd(5, 0.0)
    assert failures(tiny.measure(1, "jsae/sae_pair")) == {}
    shutil.rmtree(tmp_path / "odd-model")
    save_language_model(tmp_path / "odd-model", hidden_act="relu", intermediate_size=80)
    result = tiny.with_catalog(tiny.catalog).measure(1, "jsae/pair_quality")
    (message,) = failures(result).values()
    assert "do not belong together" in message
    assert not tiny.file("jsae/pair_quality", extension="parquet").exists()


def test_a_row_of_quality_is_valid_json_too(measured):
    json.dumps(table(measured.graph, "jsae/pair_quality").iloc[0].to_dict(), allow_nan=False, default=str)
