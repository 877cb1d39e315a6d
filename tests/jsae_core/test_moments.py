import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsae_core.measures.moments import Moments, NamedMoments, difference

NAMES = ("a", "b", "c", "d")


def tokens(n: int, seed: int = 0) -> numpy.ndarray:
    """Four quantities of n tokens, correlated, none with a mean near zero."""
    random = numpy.random.default_rng(seed)
    return random.normal(size=(n, 4)) @ random.normal(size=(4, 4)) + [3, -5, 8, 11]


def moments_of(*batches: numpy.ndarray) -> Moments:
    moments = Moments()
    for batch in batches:
        moments.add(torch.from_numpy(batch))
    return moments


def named_moments_of(*batches: numpy.ndarray) -> NamedMoments:
    moments = NamedMoments()
    for batch in batches:
        moments.add(dict(zip(NAMES, torch.from_numpy(batch).unbind(dim=1), strict=True)))
    return moments


def weights(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def standard_error(values: numpy.ndarray) -> float:
    return values.std(ddof=1) / math.sqrt(len(values))


@given(
    n=st.integers(2, 60),
    seed=st.integers(0, 10**6),
    weighted=st.tuples(*[st.sampled_from([0.0, 1.0, -1.0]) | st.floats(0.01, 9)] * 4),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
def test_means_and_standard_errors_of_weighted_sums_are_numpy_s_however_the_tokens_are_cut(n, seed, weighted, cuts):
    values = tokens(n, seed)
    moments = moments_of(*numpy.split(values, sorted(min(cut, n) for cut in cuts)))
    assert moments.n_tokens == n
    numpy.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12)
    expected = standard_error(values @ numpy.array(weighted))
    assert moments.standard_error(weights(*weighted)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_each_name_has_its_mean_and_its_standard_error():
    values = tokens(50)
    means = named_moments_of(values[:20], values[20:]).means()
    expected = {name: values[:, column].mean() for column, name in enumerate(NAMES)}
    expected |= {f"{name}_se": standard_error(values[:, column]) for column, name in enumerate(NAMES)}
    assert means == pytest.approx(expected, rel=1e-12)
    assert all(type(value) is float for value in means.values())


def test_a_mean_and_its_standard_error_by_hand():
    moments = NamedMoments()
    moments.add({"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([True, False])})
    moments.add({"x": torch.tensor([6.0]), "y": torch.tensor([False])})
    # deviations -2, -1 and 3: a variance of 14 / 2
    assert moments.means() == pytest.approx({"x": 3, "x_se": math.sqrt(7 / 3), "y": 1 / 3, "y_se": 1 / 3})


@given(
    n=st.integers(2, 60),
    seed=st.integers(0, 10**6),
    above=st.tuples(st.floats(-3, 3), st.floats(-3, 3)),
    below=st.tuples(st.floats(1, 3), st.floats(1, 3)),
    sign=st.sampled_from([1, -1]),
)
def test_a_ratio_has_the_standard_error_that_its_gradient_and_the_covariance_give(n, seed, above, below, sign):
    values = tokens(n, seed)
    # above shares "c" with below
    numerator, denominator = numpy.array([*above, 1.0, 0.0]), sign * numpy.array([0.0, 0.0, *below])
    mean, covariance = values.mean(axis=0), numpy.cov(values.T)
    expected = (mean @ numerator) / (mean @ denominator)
    gradient = numerator / (mean @ denominator) - denominator * (mean @ numerator) / (mean @ denominator) ** 2
    ratio, error, *_ = named_moments_of(values).ratio(
        dict(zip(NAMES, numerator.tolist(), strict=True)), {"c": sign * below[0], "d": sign * below[1]}
    )
    assert ratio == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert error == pytest.approx(math.sqrt(max(0, gradient @ covariance @ gradient) / n), rel=1e-6, abs=1e-9)


def test_a_ratio_s_standard_error_is_that_of_a_bootstrap():
    values = tokens(400)
    _, error, *_ = named_moments_of(values).ratio({"a": 1.0, "b": -1.0}, {"c": 1.0, "a": 1.0})
    resampled = values[numpy.random.default_rng(1).integers(400, size=(4000, 400))].mean(axis=1)
    ratios = (resampled[:, 0] - resampled[:, 1]) / (resampled[:, 2] + resampled[:, 0])
    # 4000 resamplings know a deviation to 1%
    assert error == pytest.approx(ratios.std(), rel=0.05)


@pytest.mark.parametrize("factor", [2.5, 0.1, -1 / 3])
def test_the_ratio_of_quantities_in_proportion_is_known_without_error(factor):
    for seed in range(200):  # rounding makes some of their variances less than zero
        values = tokens(50, seed)
        values[:, 0] = factor * values[:, 1]
        # the square root of float64's rounding
        assert named_moments_of(values).ratio({"a": 1.0}, {"b": 1.0})[:2] == pytest.approx((factor, 0), abs=1e-7)


def test_a_ratio_to_nothing_is_zero_with_a_standard_error_of_zero():
    values = tokens(9)
    values[:, 1] = 0
    assert named_moments_of(values).ratio({"a": 1.0}, {"b": 1.0})[:2] == (0, 0)


def test_a_single_token_has_no_standard_error():
    moments = named_moments_of(tokens(1))
    assert all(moments.means()[f"{name}_se"] == 0 for name in NAMES)
    assert moments.ratio({"a": 1.0}, {"b": 1.0})[1] == 0


@given(
    value=st.floats(-1e12, 1e12) | st.sampled_from([0.1, 1 / 3, 1e-300, 1e100]),
    n=st.integers(1, 300),
    cut=st.integers(0, 300),
)
def test_a_quantity_that_does_not_vary_has_a_standard_error_of_nearly_zero_and_no_nan(value, n, cut):
    values = numpy.full((n, 4), [value, value, 3 * value, 1.0])
    moments = named_moments_of(values[: min(cut, n)], values[min(cut, n) :])
    means = moments.means()
    assert means["a"] == pytest.approx(value, rel=1e-12)
    assert 0 <= means["a_se"] <= 1e-12 * abs(value)
    ratio, error, *_ = moments.ratio({"a": 1.0, "b": -1.0, "c": 1.0}, {"d": 1.0})
    assert ratio == pytest.approx(3 * value, rel=1e-12)
    assert 0 <= error <= 1e-12 * abs(value)


@pytest.mark.parametrize("mean", [1e4, 1e8, -1e10])
def test_a_large_mean_does_not_drown_a_small_spread(mean):
    values = tokens(100) + mean
    moments = moments_of(values[:30], values[30:])
    for column, axis in enumerate(torch.eye(4, dtype=torch.float64)):
        assert moments.mean[column].item() == pytest.approx(values[:, column].mean(), rel=1e-12)
        assert moments.standard_error(axis) == pytest.approx(standard_error(values[:, column]), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_sums_are_as_precise_as_float64_whatever_is_added(dtype):
    values = torch.from_numpy(100 * tokens(5000)[:, :1]).to(dtype)
    moments = Moments()
    for part in values.split(7):
        moments.add(part)
    exact = values.double().numpy()[:, 0]
    assert moments.mean.dtype == torch.float64 and moments.mean.item() == pytest.approx(exact.mean(), rel=1e-12)
    assert moments.standard_error(weights(1)) == pytest.approx(standard_error(exact), rel=1e-9)


def documents_of(sizes: list[int]) -> torch.Tensor:
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def correlated_documents(n_documents: int, random: numpy.random.Generator) -> tuple[numpy.ndarray, list[int]]:
    """Two quantities, alike within a document, of documents of 1 to 40 tokens."""
    sizes = random.integers(1, 41, n_documents).tolist()
    of_documents = random.normal(size=(n_documents, 2)).repeat(sizes, axis=0)
    own = random.normal(size=(sum(sizes), 2))
    return of_documents @ [[0.7, 0.2], [0.1, 0.5]] + 0.5 * own + [2.0, 5.0], sizes


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    seed=st.integers(0, 10**6),
    cuts=st.lists(st.integers(0, 108), max_size=6),
)
def test_a_document_counts_once_however_its_tokens_are_cut(sizes, seed, cuts):
    values, documents = tokens(sum(sizes), seed), documents_of(sizes)
    moments, places = Moments(), sorted(min(cut, len(values)) for cut in cuts)
    for start, end in zip([0, *places], [*places, len(values)], strict=True):
        moments.add(torch.from_numpy(values[start:end]), documents[start:end])
    numpy.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12)
    column = values @ numpy.array([1.0, -2.0, 0.0, 0.5])
    sums = [part.sum() for part in numpy.split(column - column.mean(), numpy.cumsum(sizes)[:-1])]
    n = len(sizes)
    expected = math.sqrt(n / max(1, n - 1) * numpy.square(sums).sum()) / len(values) if n > 1 else 0
    assert moments.standard_error(weights(1, -2, 0, 0.5)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_documents_of_one_token_are_tokens():
    values = tokens(50)
    moments = Moments()
    moments.add(torch.from_numpy(values), torch.arange(50))
    for axis in torch.eye(4, dtype=torch.float64):
        assert moments.standard_error(axis) == pytest.approx(moments_of(values).standard_error(axis), rel=1e-12)


def test_the_standard_error_of_a_mean_and_of_a_ratio_is_that_of_a_bootstrap_over_documents():
    random = numpy.random.default_rng(3)
    values, sizes = correlated_documents(300, random)
    moments = NamedMoments()
    moments.add({"a": torch.from_numpy(values[:, 0]), "b": torch.from_numpy(values[:, 1])}, documents_of(sizes))
    sums = numpy.stack([part.sum(axis=0) for part in numpy.split(values, numpy.cumsum(sizes)[:-1])])
    drawn = random.integers(len(sizes), size=(4000, len(sizes)))
    a, b = sums[drawn].sum(axis=1).T
    n_tokens = numpy.array(sizes)[drawn].sum(axis=1)
    # 4000 resamplings know a deviation to 1%
    assert moments.means()["a_se"] == pytest.approx((a / n_tokens).std(), rel=0.05)
    assert moments.ratio({"a": 1.0}, {"b": 1.0})[1] == pytest.approx((a / b).std(), rel=0.05)
    # as tokens they would seem to be known far better
    assert moments.means()["a_se"] > 2 * standard_error(values[:, 0])


def test_intervals_of_two_standard_errors_hold_the_truth_in_95_of_100_samples_of_correlated_documents():
    random, covered = numpy.random.default_rng(4), 0
    for _ in range(1000):
        values, sizes = correlated_documents(60, random)
        moments = NamedMoments()
        moments.add({"a": torch.from_numpy(values[:, 0])}, documents_of(sizes))
        means = moments.means()
        covered += abs(means["a"] - 2.0) < 1.96 * means["a_se"]
    assert 930 <= covered <= 970


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    seed=st.integers(0, 10**6),
    cuts=st.lists(st.integers(0, 108), max_size=6),
)
def test_the_influences_of_documents_sum_to_zero_and_give_the_standard_error(sizes, seed, cuts):
    values, documents = torch.from_numpy(tokens(sum(sizes), seed)), documents_of(sizes)
    moments, places = NamedMoments(), sorted(min(cut, len(values)) for cut in cuts)
    for start, end in zip([0, *places], [*places, len(values)], strict=True):
        part = values[start:end].unbind(dim=1)
        moments.add(dict(zip(NAMES, part, strict=True)), documents[start:end])
    n = len(sizes)
    for estimate in (moments.estimates()["a"], moments.ratio({"a": 1.0, "b": 2.0}, {"c": 1.0})):
        assert estimate.influence is not None and len(estimate.influence) == n
        assert estimate.influence.sum().item() == pytest.approx(0, abs=1e-9)
        squares = estimate.influence.square().sum().item()
        expected = math.sqrt(n / (n - 1) * squares) if n > 1 else 0
        assert estimate.standard_error == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_tokens_without_documents_have_no_influence_and_cannot_be_compared():
    estimate = named_moments_of(tokens(9)).estimates()["a"]
    assert estimate.influence is None
    with pytest.raises(ValueError, match="named documents can be compared"):
        difference(estimate, estimate)


def two_variants(random: numpy.random.Generator, n_documents: int = 60):
    """A quantity of two variants on the same documents, by 0.3 larger in the first; what documents differ by is mostly
    the same for both."""
    sizes = random.integers(1, 41, n_documents).tolist()
    shared = random.normal(size=n_documents).repeat(sizes)
    values, estimates = [], []
    for mean in (0.8, 0.5):
        own = 0.2 * random.normal(size=n_documents).repeat(sizes) + 0.5 * random.normal(size=sum(sizes))
        values.append(mean + shared + own)
        moments = NamedMoments()
        moments.add({"a": torch.from_numpy(values[-1])}, documents_of(sizes))
        estimates.append(moments.estimates()["a"])
    return estimates, numpy.array(values), sizes


def test_the_error_of_a_paired_difference_is_that_of_a_bootstrap_over_documents():
    random = numpy.random.default_rng(5)
    (one, other), values, sizes = two_variants(random, 300)
    paired = difference(one, other)
    assert paired.value == pytest.approx(values[0].mean() - values[1].mean())
    sums = numpy.stack([part.sum(axis=1) for part in numpy.split(values, numpy.cumsum(sizes)[:-1], axis=1)])
    drawn = random.integers(len(sizes), size=(4000, len(sizes)))
    means = sums[drawn].sum(axis=1) / numpy.array(sizes)[drawn].sum(axis=1)[:, None]
    assert paired.standard_error == pytest.approx((means[:, 0] - means[:, 1]).std(), rel=0.05)
    # what documents differ by in both would be counted twice by errors that are not paired
    assert paired.standard_error < 0.5 * math.hypot(one.standard_error, other.standard_error)


def test_intervals_of_a_paired_difference_hold_the_truth_in_95_of_100_samples_of_correlated_documents():
    random, covered = numpy.random.default_rng(6), 0
    for _ in range(1000):
        paired = difference(*two_variants(random)[0])
        covered += abs(paired.value - 0.3) < 1.96 * paired.standard_error
    assert 930 <= covered <= 970


def test_batches_without_tokens_change_nothing_first_or_last():
    values = tokens(20)
    moments = named_moments_of(values[:0], values, values[:0])
    assert moments.means() == named_moments_of(values).means()


@pytest.mark.parametrize("batches", [[], [tokens(1)[:0]]], ids=["nothing", "no tokens"])
def test_no_tokens_have_no_mean(batches):
    with pytest.raises(ValueError, match="no token"):
        _ = moments_of(*batches).mean


def test_what_is_added_is_left_as_it_was():
    values = torch.from_numpy(tokens(5))
    before = values.clone()
    Moments().add(values)
    assert torch.equal(values, before)


def test_a_document_without_a_sample_in_one_of_two_is_paired_with_nothing_and_all_others_with_themselves():
    def sampled(documents: list[int], values: list[float]):
        moments = NamedMoments()
        moments.add({"a": torch.tensor(values)}, torch.tensor(documents))
        return moments.estimates()["a"]

    one, other = sampled([0, 2, 2, 5], [1.0, 2.0, 3.0, 6.0]), sampled([2, 3, 5], [1.0, 4.0, 4.0])
    # (sum of a document - mean times its tokens) / tokens, of documents 0, 2, 3, 5; the means are 3 and 3
    of_one = [(1 - 3) / 4, (5 - 6) / 4, 0.0, (6 - 3) / 4]
    of_other = [0.0, (1 - 3) / 3, (4 - 3) / 3, (4 - 3) / 3]
    difference_ = difference(one, other)
    assert difference_.influence.tolist() == pytest.approx([a - b for a, b in zip(of_one, of_other, strict=True)])
