import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsae_core import SAEPair
from jsae_core.measures import reconstruction_quality
from tests.jsae_core.builders import D_MODEL, D_SAE, K, random_inputs, random_pair

N_TOKENS = 40
SIDES = ("input", "output")


@pytest.fixture(scope="module")
def pair():
    return random_pair()


@pytest.fixture(scope="module")
def x():
    return random_inputs(N_TOKENS)


def by_numpy(sae, fed: torch.Tensor) -> dict[str, float]:
    """Everything of one side, from SAELens's own encode and decode."""
    latents = sae.encode(fed)
    x, x_hat, active = fed.numpy(), sae.decode(latents).numpy(), latents.numpy() > 0
    cosines = (x * x_hat).sum(1) / (numpy.linalg.norm(x, axis=1) * numpy.linalg.norm(x_hat, axis=1))
    return {
        "explained_variance": 1 - ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(),
        "mse": ((x - x_hat) ** 2).mean(),
        "cosine": cosines.mean(),
        "l0": active.sum(1).mean(),
        "dead": 1 - active.any(0).mean(),
    }


@pytest.mark.parametrize("apply_b_dec_to_input", [False, True])
def test_every_number_is_what_numpy_makes_of_saelens_s_reconstruction(x, apply_b_dec_to_input):
    pair = random_pair(apply_b_dec_to_input=apply_b_dec_to_input)
    result = reconstruction_quality(pair, [x])
    expected = {
        f"{name}_{side}": value
        for side, sae, fed in (("input", pair.input_sae, x), ("output", pair.output_sae, pair.mlp(x)))
        for name, value in by_numpy(sae, fed).items()
    }
    # dead is a share of float32 ones and zeros
    assert result == pytest.approx(expected | {"n_tokens": N_TOKENS}, rel=1e-6)


@given(cuts=st.lists(st.integers(0, N_TOKENS), max_size=6))
def test_the_numbers_do_not_depend_on_how_the_stream_is_cut(pair, x, cuts):
    edges = [0, *sorted(cuts), N_TOKENS]
    stream = (x[start:stop] for start, stop in zip(edges, edges[1:], strict=False))
    assert reconstruction_quality(pair, stream) == pytest.approx(reconstruction_quality(pair, [x]), rel=1e-9)


def identity_pair() -> SAEPair:
    """Both SAEs and the MLP (relu) give back what they are given, for inputs above zero."""
    eye, zeros = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    tensors = {f"_{name}{side}": eye for name in ("W_enc", "W_dec") for side in ("", "_out")}
    tensors |= {f"_{name}{side}": zeros for name in ("b_enc", "b_dec") for side in ("", "_out")}
    tensors |= {"mlp.W_in": eye, "mlp.W_out": eye, "mlp.b_in": zeros, "mlp.b_out": zeros}
    return SAEPair.from_tensors(tensors, random_pair("relu", d_model=3, d_sae=3, k=2).config)


def test_a_perfect_reconstruction_explains_everything():
    x = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    result = reconstruction_quality(identity_pair(), [x])
    for side in SIDES:
        assert result[f"explained_variance_{side}"] == 1 and result[f"mse_{side}"] == 0
        assert result[f"cosine_{side}"] == pytest.approx(1)
        assert result[f"l0_{side}"] == 1.5 and result[f"dead_{side}"] == pytest.approx(1 / 3)


def test_what_topk_leaves_out_is_error_by_hand():
    x = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 0.0]], dtype=torch.float64)
    result = reconstruction_quality(identity_pair(), [x])
    for side in SIDES:
        assert result[f"mse_{side}"] == pytest.approx(1 / 6)
        assert result[f"explained_variance_{side}"] == pytest.approx(1 - 1 / 0.5)
        assert result[f"cosine_{side}"] == pytest.approx((math.sqrt(13 / 14) + 1) / 2)


def test_inputs_that_do_not_vary_have_no_variance_to_explain(pair):
    result = reconstruction_quality(pair, [torch.ones(5, D_MODEL, dtype=torch.float64)])
    assert result["explained_variance_input"] == 0 == result["explained_variance_output"]


def test_a_large_mean_does_not_drown_the_variance(x):
    sparse = identity_pair()
    far = torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]], dtype=torch.float64) + torch.tensor([1e4, 1e4, 0.0])
    assert reconstruction_quality(sparse, [far])["explained_variance_input"] == pytest.approx(1, abs=1e-3)


def test_l0_counts_what_is_above_zero_not_what_topk_keeps(x):
    tensors = random_pair().tensors()
    silent = SAEPair.from_tensors(tensors | {"_b_enc": tensors["_b_enc"] - 100}, random_pair().config)
    result = reconstruction_quality(silent, [x])
    assert (result["l0_input"], result["dead_input"]) == (0, 1)
    assert 0 < result["l0_output"] <= K and result["dead_output"] <= 1 - K / D_SAE


@pytest.mark.parametrize("stream", [[], [torch.zeros(0, D_MODEL, dtype=torch.float64)]], ids=["nothing", "no tokens"])
def test_an_empty_stream_is_refused(pair, stream):
    with pytest.raises(ValueError, match="empty"):
        reconstruction_quality(pair, stream)
