"""Tables of fewer digits than the pair's: what is made of them, by how much it is off, and what is not made of them."""

import pandas as pd
import pytest
import torch

from jsae_core import MLPInputs, SAEPair, load_language_model, run_sandwich
from jsae_core.measures import ablation_samples, function_shapes, jacobian_histogram, latent_accounting
from jsae_core.tables import tables_bytes
from tests.jsae_core.builders import D_MLP, random_inputs, random_pair, save_language_model

plain_and_gated = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])


def with_tables(pair: SAEPair, dtype: torch.dtype | None = torch.bfloat16) -> SAEPair:
    return SAEPair.from_tensors(pair.tensors(), pair.config, table_dtype=dtype)


@plain_and_gated
def test_jacobians_are_the_products_of_the_rounded_rows_summed_in_the_pairs_own_dtype(gated):
    pair, x = random_pair("silu", gated, dtype=torch.float32), random_inputs(7, dtype=torch.float32)
    sandwich = run_sandwich(with_tables(pair), x)
    inputs, outputs = (table.bfloat16().double() for table in pair.tables())
    D = sum(
        inputs[sandwich.input_latents][..., b * D_MLP : (b + 1) * D_MLP] * slope[:, None].double()
        for b, slope in enumerate(pair.mlp.respond(x).slopes)
    )
    expected = outputs[sandwich.output_latents] @ D.transpose(1, 2)
    assert sandwich.jacobian.dtype == torch.float32
    assert (sandwich.jacobian - expected).norm() < 1e-6 * expected.norm()
    others = run_sandwich(pair, x)
    assert torch.equal(sandwich.output_latents, others.output_latents)
    error = (sandwich.jacobian - others.jacobian).norm() / others.jacobian.norm()
    assert 1e-4 < error < 5e-3  # what the docstring states of a pair of many more latents


def test_a_prompt_has_the_jacobians_that_it_has_among_many_tokens(monkeypatch):
    monkeypatch.setattr("jsae_core.tables.ROWS_AT_ONCE", 3)
    pair, x = with_tables(random_pair(d_sae=50)), random_inputs(3)
    of_rows = run_sandwich(pair, x).jacobian
    run_sandwich(pair, random_inputs(40))
    assert pair.tables_bytes == 2 * 50 * 2 * D_MLP  # all rows, in two bytes a number
    assert torch.equal(run_sandwich(pair, x).jacobian, of_rows)


def test_the_rows_follow_the_weights_and_the_device_and_dtype_of_the_pair():
    pair, x = with_tables(random_pair()), random_inputs(20)
    before = run_sandwich(pair, x).jacobian
    with torch.no_grad():
        pair.input_sae.W_dec.mul_(2)
    assert torch.equal(run_sandwich(pair, x).jacobian, 2 * before)
    assert run_sandwich(pair.bfloat16(), x.bfloat16()).jacobian.dtype == torch.bfloat16


@plain_and_gated
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_bytes_of_tables_are_known_before_they_are_built(gated, dtype):
    pair = random_pair("silu", gated)
    rows, *_ = with_tables(pair, dtype).table_rows(*[torch.arange(pair.config.d_sae)[None]] * 2)
    assert tables_bytes(pair.config.d_sae, pair.mlp, dtype) == sum(table.nbytes for table in rows)


def test_a_pair_of_as_few_digits_has_one_set_of_tables():
    pair = with_tables(random_pair(dtype=torch.bfloat16))
    run_sandwich(pair, random_inputs(40, dtype=torch.bfloat16))
    assert pair.tables_bytes == sum(table.nbytes for table in pair.tables())


def test_what_is_no_jacobian_is_the_same_to_the_last_bit():
    pair, x = random_pair(d_sae=2048, dtype=torch.float32), [random_inputs(12, dtype=torch.float32)]
    rounded = with_tables(pair)
    shapes = [function_shapes(one, x, 60, n_curves=5, rules=("published", "relative")) for one in (pair, rounded)]
    pd.testing.assert_frame_equal(*shapes)
    samples, of_rounded = (ablation_samples(one, x) for one in (pair, rounded))
    of_jacobian = ["jacobian", "agreement", "relative_agreement", "published"]
    pd.testing.assert_frame_equal(samples.drop(columns=of_jacobian), of_rounded.drop(columns=of_jacobian))
    assert not samples["jacobian"].equals(of_rounded["jacobian"])
    exact, by_rounded = (latent_accounting(one, x, order="ablation") for one in (pair, rounded))
    of_attributions = ("completeness", "n90", "participation_ratio")
    assert {name for name in exact if exact[name] != by_rounded[name]} <= {
        name + error for name in of_attributions for error in ("", "_se")
    }


def test_a_histogram_in_the_published_convention_is_of_rounded_rows_too(tmp_path):
    lm = load_language_model(save_language_model(tmp_path), dtype="float64")
    stream = MLPInputs(lm, [torch.arange(9)], 1)
    pair = random_pair(d_model=lm.d_model, d_mlp=lm.mlp(1).W_in.shape[1])
    counts = [
        jacobian_histogram(with_tables(pair, dtype), stream, convention="published")["hist"]
        for dtype in (None, torch.bfloat16)
    ]
    assert not torch.equal(*counts)


def test_digits_that_would_not_be_fewer_are_refused():
    pair = random_pair()
    with pytest.raises(ValueError, match="table_dtype is torch.float32; expected torch.bfloat16, or None"):
        with_tables(pair, torch.float32)


def test_a_stored_pair_is_loaded_with_the_tables_that_are_asked_for(tmp_path):
    random_pair().save(tmp_path)
    assert SAEPair.load(tmp_path).table_dtype is None
    assert SAEPair.load(tmp_path, table_dtype=torch.bfloat16).table_dtype == torch.bfloat16
