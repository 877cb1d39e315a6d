import tempfile

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsae_core import MLPInputs, SAEPair, load_language_model, run_sandwich
from jsae_core.measures import (
    jacobian_histogram,
    jacobian_histograms,
    jacobian_measures,
    jacobian_sizes,
    share_above,
)
from jsae_core.measures.histogram import OFTEN
from jsae_core.terms import THRESHOLDS, is_above
from tests.jsae_core.builders import (
    D_MODEL,
    D_SAE,
    K,
    changed,
    random_inputs,
    random_pair,
    save_language_model,
)

N_TOKENS = 60
NORMS = ("l2t", "l4t", "linft")
ORIGINAL_NAMES = {"hist", "mean_jac_hist", "bin_edges", "bin_centers", "count_jac"}


def scaled(pair: SAEPair, factor: float) -> SAEPair:
    """The same pair with its Jacobian times a factor."""
    tensors = pair.tensors()
    return SAEPair.from_tensors(tensors | {"_W_dec": tensors["_W_dec"] * factor}, pair.config)


@pytest.fixture(scope="module")
def pair():
    """Its |J| spread over the bins, with some above 1.1."""
    return scaled(random_pair("silu", gated=True), 0.02)


@pytest.fixture(scope="module")
def x():
    return random_inputs(N_TOKENS)


@pytest.fixture(scope="module")
def magnitude(pair, x):
    return run_sandwich(pair, x).jacobian.abs().numpy()


@pytest.fixture(scope="module")
def means(pair, x):
    """Mean |J| of each (output, input) pair of latents, one element after another."""
    sandwich = run_sandwich(pair, x)
    sums, counts = numpy.zeros((D_SAE, D_SAE)), numpy.zeros(D_SAE, dtype=int)
    latents = zip(sandwich.output_latents, sandwich.input_latents, strict=True)
    for jacobian, (outputs, inputs) in zip(sandwich.jacobian, latents, strict=True):
        for row, o in enumerate(outputs):
            counts[o] += 1
            for column, i in enumerate(inputs):
                sums[o, i] += abs(jacobian[row, column].item())
    return sums / numpy.maximum(counts, 1)[:, None], counts


def numpy_norm(magnitude: numpy.ndarray, norm: str) -> float:
    if norm == "l2t":
        return numpy.mean([numpy.sqrt((token**2).mean()) for token in magnitude])
    if norm == "l4t":
        return numpy.mean([(token**4).mean() ** 0.25 for token in magnitude])
    return numpy.mean([token.max() for token in magnitude])


def numpy_histogram(values: numpy.ndarray, bins: int) -> tuple[list[int], int]:
    edges = numpy.arange(bins + 1) / 1000
    return numpy.histogram(values, edges)[0].tolist(), int((values > edges[-1]).sum())


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-12, atol=1e-12)


def test_the_histogram_counts_every_element_as_numpy_does(pair, x, magnitude):
    result = jacobian_histogram(pair, [x])
    assert (result["hist"].tolist(), result["overflow"].item()) == numpy_histogram(magnitude, 1100)


def test_elements_above_the_range_are_counted_and_none_is_lost(pair, x, magnitude):
    result = jacobian_histogram(pair, [x])
    assert 0 < result["overflow"] == (magnitude > 1.1).sum()
    assert result["hist"].sum() + result["overflow"] == N_TOKENS * K * K


def test_the_mean_histogram_counts_every_pair_of_latents_as_a_loop_does(pair, x, means):
    result = jacobian_histogram(pair, [x])
    mean, counts = means
    assert (result["mean_jac_hist"].tolist(), result["mean_jac_overflow"].item()) == numpy_histogram(mean, 1100)
    assert result["mean_jac_hist"].sum() + result["mean_jac_overflow"] == D_SAE**2
    assert result["count_jac"].tolist() == counts.tolist()


@pytest.mark.parametrize("norm", NORMS)
def test_a_normed_histogram_divides_by_the_data_s_mean_of_the_token_norm(pair, x, magnitude, means, norm):
    result = jacobian_histogram(pair, [x], norm)
    scale = numpy_norm(magnitude, norm)
    assert result["mean_norm"].item() == pytest.approx(scale, rel=1e-12)
    assert (result["hist"].tolist(), result["overflow"].item()) == numpy_histogram(magnitude / scale, 1500)
    got_mean = (result["mean_jac_hist"].tolist(), result["mean_jac_overflow"].item())
    assert got_mean == numpy_histogram(means[0] / scale, 1500)


@pytest.mark.parametrize("norm", [None, *NORMS])
def test_names_shapes_and_dtypes_are_the_original_s(pair, x, norm):
    result, bins = jacobian_histogram(pair, [x], norm), 1100 if norm is None else 1500
    assert result.keys() - {"mean_norm"} == ORIGINAL_NAMES | {"overflow", "mean_jac_overflow", "n_tokens"}
    assert ("mean_norm" in result) == (norm is not None)
    for name in ("hist", "mean_jac_hist", "count_jac", "overflow", "mean_jac_overflow", "n_tokens"):
        assert result[name].dtype == torch.int64
    assert result["hist"].shape == result["mean_jac_hist"].shape == result["bin_centers"].shape == (bins,)
    assert result["bin_edges"].shape == (bins + 1,) and result["count_jac"].shape == (D_SAE,)
    assert result["bin_edges"][0] == 0 and result["bin_edges"][-1].item() == pytest.approx(bins / 1000)
    assert result["bin_centers"][0].item() == pytest.approx(0.0005)
    assert result["n_tokens"] == N_TOKENS


@pytest.mark.parametrize("memory_bytes", [0, 2**21, 2**30])
@pytest.mark.parametrize("d_sae", [D_SAE, 2100], ids=["sums of all pairs", "of those that occur"])
def test_of_many_tokens_every_pair_of_latents_is_counted_whatever_the_memory(d_sae, memory_bytes):
    """20000 tokens: 3 MB of Jacobians, of more rows than are looked at at once."""
    pair, many = scaled(random_pair(d_sae=d_sae), 0.02), random_inputs(20000)
    sandwich = run_sandwich(pair, many)
    sums, counts = numpy.zeros((d_sae, d_sae)), numpy.bincount(sandwich.output_latents.flatten(), minlength=d_sae)
    places = (sandwich.output_latents[:, :, None].numpy(), sandwich.input_latents[:, None].numpy())
    numpy.add.at(sums, places, sandwich.jacobian.abs().numpy())
    means = sums / numpy.maximum(counts, 1)[:, None]
    for norm, result in jacobian_histograms(pair, many.split(3000), (None, "l2t"), memory_bytes).items():
        expected = numpy_histogram(means / float(result.get("mean_norm", 1)), 1100 if norm is None else 1500)
        assert (result["mean_jac_hist"].tolist(), result["mean_jac_overflow"].item()) == expected
        assert result["count_jac"].tolist() == counts.tolist()


@given(cuts=st.lists(st.integers(0, N_TOKENS), max_size=6))
def test_the_histogram_does_not_depend_on_how_the_stream_is_cut(pair, x, cuts):
    edges = [0, *sorted(cuts), N_TOKENS]
    stream = [x[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]
    for norm in (None, "l2t"):
        assert_same(jacobian_histogram(pair, stream, norm), jacobian_histogram(pair, [x], norm))


@pytest.mark.parametrize("norm", [None, "l4t"])
@pytest.mark.parametrize("memory_bytes", [2**30, 0])
def test_an_iterator_that_can_be_read_only_once_gives_the_same(pair, x, norm, memory_bytes):
    once = jacobian_histogram(pair, iter(x.split(7)), norm, memory_bytes)
    assert_same(once, jacobian_histogram(pair, [x], norm))


@pytest.mark.parametrize("norm", [None, "l4t"])
@pytest.mark.parametrize("memory_bytes", [2**30, 0])
def test_the_stream_is_read_once_whatever_is_made_of_it(pair, x, norm, memory_bytes):
    reads = []

    class Stream:
        def __iter__(self):
            reads.append("read")
            return iter(x.split(7))

    jacobian_histogram(pair, Stream(), norm, memory_bytes)
    assert len(reads) == 1


def test_a_full_disk_is_reported_with_what_to_do(pair, x, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **kwargs: open("/dev/full", "w+b", buffering=0))
    with pytest.raises(OSError, match="temporary file.*(?s:.)*TMPDIR"):
        jacobian_histogram(pair, [x], "l2t", memory_bytes=0)
    jacobian_histogram(pair, [x], "l2t")


def test_no_temporary_file_is_left_behind(pair, x, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    jacobian_histogram(pair, [x], "l2t", memory_bytes=0)
    with pytest.raises(ValueError, match="NaN"):
        jacobian_histogram(pair, [x, x * torch.nan], "l2t", memory_bytes=0)
    assert not list(tmp_path.iterdir())


def test_several_norms_at_once_equal_each_alone(pair, x):
    together = jacobian_histograms(pair, [x])
    assert list(together) == [None, *NORMS]
    for norm, result in together.items():
        assert_same(result, jacobian_histogram(pair, [x], norm))


def test_latents_that_were_never_active_count_as_zero_means(pair, x):
    result = jacobian_histogram(pair, [x[:1]])
    assert (result["count_jac"] == 0).sum() == D_SAE - K
    # of one token, each mean is the element itself
    never = result["mean_jac_hist"] - result["hist"]
    assert never[0] == D_SAE**2 - K * K and not never[1:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_pair_s_jacobians_land_in_the_bins_that_their_values_belong_to(pair, x, dtype):
    low, x = random_pair("silu", gated=True, dtype=dtype), x.to(dtype)
    low = scaled(low, 0.02)
    result = jacobian_histogram(low, [x])
    magnitude = run_sandwich(low, x).jacobian.abs().float().numpy()
    # in float32, as there: these values lie on few points, some of them next to an edge
    index = numpy.minimum((magnitude / numpy.float32(0.001)).astype(int), 1100)
    counts = numpy.bincount(index.reshape(-1), minlength=1101).tolist()
    assert [*result["hist"].tolist(), result["overflow"].item()] == counts
    assert counts[1100] > 0


def test_a_hand_made_jacobian_is_put_in_its_bin():
    one = torch.ones(1, 1, dtype=torch.float64)
    tensors = {f"_{name}{side}": 0 * one[0] for name in ("b_enc", "b_dec") for side in ("", "_out")}
    tensors |= {"_W_enc": one, "_W_enc_out": one, "_W_dec": one, "_W_dec_out": one}
    tensors |= {"mlp.W_in": one, "mlp.W_out": 0.0425 * one, "mlp.b_in": 0 * one[0], "mlp.b_out": 0 * one[0]}
    pair = SAEPair.from_tensors(tensors, random_pair("relu", d_model=1, d_sae=1, k=1).config)
    result = jacobian_histogram(pair, [torch.tensor([[1.0], [2.0], [-1.0]], dtype=torch.float64)])
    # relu: slope 1 for the first two tokens, 0 for the third; the mean is 2/3 of 0.0425
    assert {int(bin): int(result["hist"][bin]) for bin in result["hist"].nonzero()} == {0: 1, 42: 2}
    assert result["mean_jac_hist"].nonzero().tolist() == [[28]]
    assert result["count_jac"].tolist() == [3]


def test_the_histogram_over_a_language_model_does_not_depend_on_its_batch_size(tmp_path):
    language_model = load_language_model(save_language_model(tmp_path), dtype="float64")
    pair = random_pair(d_model=16)
    documents = [torch.tensor([0, *range(1, 1 + length)]) for length in (3, 11, 1, 7, 7)]
    results = [
        jacobian_histogram(pair, MLPInputs(language_model, documents, 1, batch_tokens), "l2t")
        for batch_tokens in (1, 20, 999)
    ]
    assert results[0]["n_tokens"] == 29
    for result in results[1:]:
        for name in ("hist", "mean_jac_hist", "count_jac"):
            # the last bits of attention depend on padding, and may move an element over an edge
            assert (result[name] - results[0][name]).abs().sum() <= 2


def test_the_share_above_a_threshold_counts_the_overflow_too(pair, x, magnitude):
    result = jacobian_histogram(pair, [x])
    for threshold in (0.005, 0.01, 0.015, 0.02, 1.1):
        assert share_above(result, threshold) == pytest.approx((magnitude > threshold).mean(), abs=1e-12)
    assert share_above(result, 0.0) == 1.0


@pytest.mark.parametrize("threshold", [0.0105, -0.001, 1.101])
def test_a_threshold_that_is_no_edge_of_the_bins_is_refused(pair, x, threshold):
    with pytest.raises(ValueError, match=f"{threshold} is no edge"):
        share_above(jacobian_histogram(pair, [x]), threshold)


def test_an_unknown_norm_is_refused_naming_those_there_are(pair, x):
    with pytest.raises(ValueError, match="'l3t'.*l2t, l4t, linft"):
        jacobian_histogram(pair, [x], "l3t")


@pytest.mark.parametrize("stream", [[], [torch.zeros(0, D_MODEL, dtype=torch.float64)]], ids=["nothing", "no tokens"])
def test_an_empty_stream_is_refused(pair, stream):
    with pytest.raises(ValueError, match="empty"):
        jacobian_histogram(pair, stream)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused(pair, x, value):
    broken = x.clone()
    broken[3, 0] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        jacobian_histogram(pair, [broken])


def test_a_jacobian_that_is_zero_everywhere_has_a_histogram_but_no_normed_one(pair, x):
    flat = scaled(pair, 0.0)
    assert jacobian_histogram(flat, [x])["hist"][0] == N_TOKENS * K * K
    with pytest.raises(ValueError, match="zero"):
        jacobian_histogram(flat, [x], "l2t")


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_an_element_at_a_threshold_is_above_it_in_the_histogram_as_everywhere(threshold):
    # the one element of the Jacobian is the product of the weights along its way, all of them 1 but one
    pair = random_pair("linear", d_model=1, d_mlp=1, d_sae=1, k=1)
    names = ("_W_dec", "_W_enc_out", "mlp.W_in", "mlp.W_out")
    pair = changed(pair, **{name: torch.ones(1, 1).double() for name in names})
    pair = changed(pair, _W_dec=torch.full((1, 1), threshold, dtype=torch.float64))
    x = torch.ones(1, 1).double()
    jacobian = run_sandwich(pair, x).jacobian
    assert is_above(jacobian.abs(), threshold).all()
    assert share_above(jacobian_histogram(pair, [x]), threshold) == 1
    assert jacobian_measures(pair, [x])[f"above_{threshold}"].value == 1


# --- what else the same pass says ---


class Documents(list):
    """A stream of a single batch, with documents of these lengths."""

    def __init__(self, x: torch.Tensor, lengths: list[int]):
        super().__init__([x])
        self.document_lengths = lengths


LENGTHS = [1, 7, 12, 3, 20, 9, 8]


@pytest.fixture(scope="module")
def sizes(pair, x):
    return jacobian_sizes(pair, Documents(x, LENGTHS))


def test_the_shares_above_thresholds_are_the_histogram_s_with_errors_by_document(sizes, magnitude):
    for threshold in THRESHOLDS:
        estimate = sizes.estimates[f"above_{threshold}"]
        assert estimate.value == pytest.approx(share_above(sizes.histograms[None], threshold), rel=1e-12)
        of_tokens = is_above(magnitude, threshold).mean(axis=(1, 2)) - estimate.value
        sums = numpy.array([part.sum() for part in numpy.split(of_tokens, numpy.cumsum(LENGTHS)[:-1])])
        expected = numpy.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / N_TOKENS
        assert estimate.standard_error == pytest.approx(expected, rel=1e-9)
        numpy.testing.assert_allclose(estimate.influence, sums / N_TOKENS, rtol=1e-9, atol=1e-12)


def test_the_error_of_a_share_is_that_of_a_bootstrap_over_documents():
    pair, lengths = scaled(random_pair(), 0.003), [3] * 100
    # the tokens of a document are alike
    x = random_inputs(100).repeat_interleave(3, dim=0) + 0.1 * random_inputs(300, seed=4)
    estimate = jacobian_sizes(pair, Documents(x, lengths), [None]).estimates["above_0.01"]
    shares = is_above(run_sandwich(pair, x).jacobian.abs(), 0.01).double().mean(dim=(1, 2)).view(100, 3).mean(dim=1)
    drawn = torch.randint(100, (4000, 100), generator=torch.Generator().manual_seed(0))
    assert estimate.standard_error == pytest.approx(shares[drawn].mean(dim=1).std().item(), rel=0.05)
    by_token = jacobian_sizes(pair, [x], [None]).estimates["above_0.01"]
    assert by_token.value == pytest.approx(estimate.value) and by_token.influence is None
    assert estimate.standard_error > 1.4 * by_token.standard_error


def test_kurtosis_norms_and_l1_over_l2_are_numpy_s_token_by_token(sizes, magnitude):
    l2 = numpy.sqrt((magnitude**2).mean(axis=(1, 2)))
    expected = {
        "kurtosis": (magnitude**4).mean(axis=(1, 2)) / l2**4,
        "l1_over_l2": magnitude.mean(axis=(1, 2)) / l2,
        "norm_l2t": l2,
        "norm_l4t": (magnitude**4).mean(axis=(1, 2)) ** 0.25,
        "norm_linft": magnitude.max(axis=(1, 2)),
    }
    for name, of_tokens in expected.items():
        assert sizes.estimates[name].value == pytest.approx(of_tokens.mean(), rel=1e-9), name


def test_nothing_depends_on_how_many_elements_are_counted_at_once(pair, x, sizes, monkeypatch):
    monkeypatch.setattr("jsae_core.measures.histogram.CACHED_ELEMENTS", 7 * K * K)
    in_parts = jacobian_sizes(pair, Documents(x, LENGTHS))
    for norm, histogram in sizes.histograms.items():
        assert_same(in_parts.histograms[norm], histogram)
    assert in_parts.logarithmic["log_hist"].equal(sizes.logarithmic["log_hist"])
    alone = jacobian_measures(pair, Documents(x, LENGTHS))
    for name, estimate in sizes.estimates.items():
        assert in_parts.estimates[name][:2] == alone[name][:2] == pytest.approx(estimate[:2], rel=1e-12)


@pytest.mark.parametrize("scale", [1e-18, 1e-9, 1, 1e12])
def test_logarithmic_bins_hold_every_element_on_any_scale(x, scale):
    pair = scaled(random_pair(), scale)
    magnitude = run_sandwich(pair, x).jacobian.abs().flatten()
    logarithmic = jacobian_sizes(pair, [x], [None]).logarithmic
    edges, counts = logarithmic["log_edges"], logarithmic["log_hist"]
    assert counts.sum() == magnitude.numel() and len(edges) == len(counts) + 1
    assert edges[0] == 0 and edges[-1] == torch.inf and (edges.diff() > 0).all()
    assert counts.tolist() == numpy.histogram(magnitude.float().double().numpy(), edges.numpy())[0].tolist()
    inside = edges[1:][(edges[1:] > 1e-30) & (edges[1:] < 1e30)]
    assert (inside.diff() / inside[:-1]).max() <= 0.25


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_what_has_no_scale_stays_as_it_is_in_float32_when_j_is_scaled(x, scale):
    of_one, of_other = (
        jacobian_sizes(scaled(random_pair(dtype=torch.float32), factor), [x.float()]).estimates for factor in (1, scale)
    )
    for name in ("kurtosis", "l1_over_l2"):
        assert of_other[name].value == pytest.approx(of_one[name].value, rel=1e-5)
    for norm in NORMS:
        assert of_other[f"norm_{norm}"].value == pytest.approx(scale * of_one[f"norm_{norm}"].value, rel=1e-5)


@pytest.mark.parametrize("in_a_matrix", [True, False], ids=["sums of all pairs", "rows"])
def test_means_of_seldom_active_output_latents_are_left_out_and_the_coverage_is_said(
    pair, x, means, in_a_matrix, monkeypatch
):
    monkeypatch.setattr("jsae_core.measures.kept_jacobians.sums_fit", lambda d_sae, device: in_a_matrix)
    mean, counts = means
    assert OFTEN == 20
    fewest = int(numpy.sort(counts)[D_SAE // 2])  # so that some latent is active just so often
    monkeypatch.setattr("jsae_core.measures.histogram.OFTEN", fewest)
    logarithmic = jacobian_sizes(pair, [x], [None]).logarithmic
    often = counts >= fewest
    assert 0 < often.sum() < D_SAE and logarithmic["often"] == fewest
    expected = numpy.histogram(mean[often].astype(numpy.float32).astype(float), logarithmic["log_edges"].numpy())[0]
    # means are summed in fixed point: one may be carried over an edge
    assert numpy.abs(logarithmic["log_mean_hist"].numpy() - expected).sum() <= 2
    assert logarithmic["log_mean_hist"].sum() == often.sum() * D_SAE
    assert logarithmic["n_often"] == often.sum()
    assert logarithmic["share_often"].item() == pytest.approx(counts[often].sum() / counts.sum())


def test_at_the_reconstruction_everything_is_counted_of_the_jacobians_there(pair, x):
    magnitude = run_sandwich(pair, x, at="reconstruction").jacobian.abs()
    histogram = jacobian_histogram(pair, [x], at="reconstruction")
    assert (histogram["hist"].tolist(), histogram["overflow"].item()) == numpy_histogram(magnitude.numpy(), 1100)
    estimates = jacobian_measures(pair, Documents(x, LENGTHS), at="reconstruction")
    assert estimates["above_0.01"].value == pytest.approx(is_above(magnitude, 0.01).double().mean().item())
    assert len(estimates["above_0.01"].influence) == len(LENGTHS)
    of_true_input = jacobian_measures(pair, Documents(x, LENGTHS))
    expected = jacobian_sizes(pair, Documents(x, LENGTHS)).estimates
    assert {name: of.value for name, of in of_true_input.items()} == {name: of.value for name, of in expected.items()}
    assert of_true_input["above_0.01"].value != estimates["above_0.01"].value
