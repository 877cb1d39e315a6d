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
MEANS = ("explained_variance", "mse", "cosine", "l0")


@pytest.fixture(scope="module")
def pair():
    return random_pair()


@pytest.fixture(scope="module")
def x():
    return random_inputs(N_TOKENS)


def by_numpy(sae, fed: torch.Tensor, side: str) -> dict[str, float]:
    """Everything of one side, from SAELens's own encode and decode."""
    latents = sae.encode(fed)
    x, x_hat, active = fed.numpy(), sae.decode(latents).numpy(), latents.numpy() > 0
    errors, distances = ((x - x_hat) ** 2).sum(1), ((x - x.mean(0)) ** 2).sum(1)
    unexplained = errors.mean() / distances.mean()
    per_token = {
        "mse": ((x - x_hat) ** 2).mean(1),
        "cosine": (x * x_hat).sum(1) / (numpy.linalg.norm(x, axis=1) * numpy.linalg.norm(x_hat, axis=1)),
        "l0": active.sum(1),
    }
    return (
        {f"{name}_{side}": values.mean() for name, values in per_token.items()}
        | {f"{name}_{side}_se": standard_error(values) for name, values in per_token.items()}
        | {
            f"explained_variance_{side}": 1 - unexplained,
            f"explained_variance_{side}_se": standard_error(errors - unexplained * distances) / distances.mean(),
            f"dead_{side}": 1 - active.any(0).mean(),
        }
    )


def standard_error(values: numpy.ndarray) -> float:
    return values.std(ddof=1) / math.sqrt(len(values))


def standard_errors(result: dict[str, float]) -> dict[str, float]:
    return {f"{name}_{side}_se": result[f"{name}_{side}_se"] for name in MEANS for side in SIDES}


@pytest.mark.parametrize("k", [K, D_SAE - 3])
@pytest.mark.parametrize("apply_b_dec_to_input", [False, True])
def test_every_number_is_what_numpy_makes_of_saelens_s_reconstruction(x, apply_b_dec_to_input, k):
    pair = random_pair(apply_b_dec_to_input=apply_b_dec_to_input, k=k)
    result = reconstruction_quality(pair, [x])
    expected = by_numpy(pair.input_sae, x, "input") | by_numpy(pair.output_sae, pair.mlp(x), "output")
    # dead is a share of float32 ones and zeros
    assert result == pytest.approx(expected | {"n_tokens": N_TOKENS}, rel=1e-6)
    assert all(type(value) is float for value in result.values())
    # with many latents kept, how many are above zero varies too
    assert k == K or min(standard_errors(result).values()) > 0


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_the_explained_variance_s_standard_error_is_that_of_a_bootstrap(pair, shift):
    x = random_inputs(400) + shift
    result = reconstruction_quality(pair, [x])
    chosen = numpy.random.default_rng(0).integers(len(x), size=(2000, len(x)))
    for side, sae, fed in (("input", pair.input_sae, x), ("output", pair.output_sae, pair.mlp(x))):
        errors = (fed - sae.decode(sae.encode(fed))).square().sum(1).numpy()
        resampled = [1 - errors[rows].mean() / fed.numpy()[rows].var(axis=0).sum() for rows in chosen]
        # 2000 resamplings know a deviation to 1.6%
        assert result[f"explained_variance_{side}_se"] == pytest.approx(numpy.std(resampled), rel=0.07), side


def test_more_of_the_same_tokens_have_smaller_standard_errors(pair, x):
    once, tenfold = (standard_errors(reconstruction_quality(pair, [x] * times)) for times in (1, 10))
    smaller = math.sqrt((N_TOKENS - 1) / (10 * N_TOKENS - 1))
    assert tenfold == pytest.approx({name: smaller * value for name, value in once.items()}, rel=1e-9)


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
        assert result[f"explained_variance_{side}_se"] == result[f"mse_{side}_se"] == 0
        assert result[f"l0_{side}_se"] == 0.5
        assert result[f"cosine_{side}"] == pytest.approx(1)
        assert result[f"l0_{side}"] == 1.5 and result[f"dead_{side}"] == pytest.approx(1 / 3)


def test_what_topk_leaves_out_is_error_by_hand():
    x = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 0.0]], dtype=torch.float64)
    result = reconstruction_quality(identity_pair(), [x])
    for side in SIDES:
        assert result[f"mse_{side}"] == pytest.approx(1 / 6)
        assert result[f"mse_{side}_se"] == pytest.approx(1 / 6)
        assert result[f"explained_variance_{side}"] == pytest.approx(1 - 1 / 0.5)
        # errors 1 and 0, distances from the mean 1 / 4 each: the variance is certain, the error is not
        assert result[f"explained_variance_{side}_se"] == pytest.approx(0.5 / 0.25)
        assert result[f"cosine_{side}"] == pytest.approx((math.sqrt(13 / 14) + 1) / 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [1.0, 0.1, 1e4])
def test_inputs_that_do_not_vary_have_no_variance_to_explain_and_no_standard_errors(value, dtype):
    constant = torch.full((5, D_MODEL), value, dtype=dtype)
    result = reconstruction_quality(random_pair(dtype=dtype), [constant, constant.repeat(3, 1)])
    for side in SIDES:
        assert result[f"explained_variance_{side}"] == result[f"explained_variance_{side}_se"] == 0
        assert result[f"l0_{side}_se"] == 0
        # a matrix product may round a row differently beside others
        for name in ("mse", "cosine"):
            assert 0 <= result[f"{name}_{side}_se"] <= 1e-5 * abs(result[f"{name}_{side}"])


def test_a_single_token_has_no_standard_error(pair, x):
    result = reconstruction_quality(pair, [x[:1]])
    assert set(standard_errors(result).values()) == {0.0} and result["n_tokens"] == 1


@pytest.mark.parametrize("mean", [1e2, 1e4])
def test_a_large_mean_does_not_drown_the_standard_error_of_the_explained_variance(pair, x, mean):
    result, expected = reconstruction_quality(pair, [x + mean]), by_numpy(pair.input_sae, x + mean, "input")
    for name in ("explained_variance_input", "explained_variance_input_se"):
        assert result[name] == pytest.approx(expected[name], rel=1e-5), name


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
