import math

import numpy
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsae_core import SAEPair, run_sandwich, sae
from jsae_core.measures import ablation, ablation_samples, ablation_summary, nearby
from tests.jsae_core.builders import D_MODEL, D_SAE, K, changed, count_encoded, random_inputs, random_pair

N_TOKENS = 12
COLUMNS = [
    "token",
    "output_rank",
    "input_rank",
    "drawn",
    "output_latent",
    "input_latent",
    "jacobian",
    "change",
    "input_activation",
    "output_activation",
    "ablated_activation",
    "typical_activation",
    "n_typical",
    "agreement",
    "relative_agreement",
    "published",
    "document",
]
PHI = {
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "relu": lambda z: max(z, 0.0),
    "silu": lambda z: z / (1 + math.exp(-z)),
}
AGREEMENTS = ("line", "off", "dropped", "negligible")
CLASSES = ["agreement", "relative_agreement", "published"]
THREE = ["jacobian", "change", "output_activation"]


@pytest.fixture(scope="module")
def x():
    return random_inputs(N_TOKENS)


@pytest.fixture(scope="module")
def pair():
    return random_pair()


def silent(pair: SAEPair) -> SAEPair:
    """The same pair with no latent ever above zero."""
    biases = {name: pair.tensors()[name] - 1e4 for name in ("_b_enc", "_b_enc_out")}
    return changed(pair, **biases)


def numbers(frame: pandas.DataFrame) -> numpy.ndarray:
    return frame.drop(columns=CLASSES).to_numpy()


class OneByOne:
    """A pair in plain Python floats, one token and one element at a time; from its tensors alone."""

    def __init__(self, pair: SAEPair, activation: str):
        self.tensors = {name: tensor.tolist() for name, tensor in pair.tensors().items()}
        self.phi = PHI[activation]
        self.minus_b_dec = pair.config.apply_b_dec_to_input

    def affine(self, x: list[float], weight: str, bias: str) -> list[float]:
        columns = zip(*self.tensors[weight], strict=True)
        return [
            sum(value * w for value, w in zip(x, column, strict=True)) + b
            for column, b in zip(columns, self.tensors[bias], strict=True)
        ]

    def mlp(self, x: list[float]) -> list[float]:
        hidden = self.affine(x, "mlp.W_in", "mlp.b_in")
        if "mlp.W_gate" in self.tensors:
            gate = self.affine(x, "mlp.W_gate", "mlp.b_gate")
            hidden = [self.phi(g) * u for g, u in zip(gate, hidden, strict=True)]
        else:
            hidden = [self.phi(z) for z in hidden]
        return self.affine(hidden, "mlp.W_out", "mlp.b_out")

    def top(self, x: list[float], side: str) -> list[tuple[int, float]]:
        """(latent, activation), largest first."""
        if self.minus_b_dec:
            x = [value - b for value, b in zip(x, self.tensors[f"_b_dec{side}"], strict=True)]
        pre = self.affine(x, f"_W_enc{side}", f"_b_enc{side}")
        return [(latent, max(pre[latent], 0.0)) for latent in sorted(range(len(pre)), key=lambda n: -pre[n])[:K]]

    def ablate(self, x: list[float], output_rank: int, input_rank: int) -> dict[str, float]:
        output_latent, before = self.top(self.mlp(x), "_out")[output_rank]
        input_latent, input_activation = self.top(x, "")[input_rank]
        ablated = [value - d for value, d in zip(x, self.tensors["_W_dec"][input_latent], strict=True)]
        after = dict(self.top(self.mlp(ablated), "_out")).get(output_latent, 0.0)
        return {
            "output_latent": output_latent,
            "input_latent": input_latent,
            "change": after - before,
            "input_activation": input_activation,
            "output_activation": before,
            "ablated_activation": after,
        }


@pytest.mark.parametrize("apply_b_dec_to_input", [False, True], ids=["", "minus b_dec"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("activation", PHI)
def test_every_row_is_what_one_intervention_at_a_time_gives_in_plain_floats(x, activation, gated, apply_b_dec_to_input):
    pair = random_pair(activation, gated, apply_b_dec_to_input=apply_b_dec_to_input)
    frame = ablation_samples(pair, [x], ranks="all")
    one_by_one = OneByOne(pair, activation)
    assert len(frame) == N_TOKENS * K * K
    expected = pandas.DataFrame(
        [
            one_by_one.ablate(x[row.token].tolist(), row.output_rank, row.input_rank)
            for row in frame.itertuples(index=False)
        ]
    )
    pandas.testing.assert_frame_equal(frame[list(expected)], expected, rtol=1e-10, atol=1e-10)
    assert (frame["change"].abs() > 0.01).any() and (frame["ablated_activation"] == 0).any()


@pytest.fixture(scope="module", params=[(False, False), (True, True)], ids=["plain", "gated, minus b_dec"])
def wide_pair(request):
    """So many latents that after an intervention only the rivals of the active ones are looked at."""
    gated, apply_b_dec_to_input = request.param
    return random_pair("gelu", gated, d_model=16, d_sae=4096, apply_b_dec_to_input=apply_b_dec_to_input)


@pytest.mark.parametrize("step", [0.02, 0.2, 20.0], ids=lambda step: f"decoder rows of norm {step}")
@pytest.mark.parametrize("ranks", ["diagonal", "all"])
def test_looking_at_rivals_alone_gives_what_encoding_everything_gives(wide_pair, monkeypatch, ranks, step):
    pair = changed(wide_pair, _W_dec=step * wide_pair.tensors()["_W_dec"])
    x = random_inputs(N_TOKENS, 16)
    frame = ablation_samples(pair, [x], ranks=ranks)
    monkeypatch.setattr(ablation, "activations", nearby.exact)
    pandas.testing.assert_frame_equal(frame, ablation_samples(pair, [x], ranks=ranks), rtol=1e-9, atol=1e-9)
    assert (frame["ablated_activation"] > 0).any()


def test_after_small_interventions_nearly_nothing_is_encoded(wide_pair, monkeypatch):
    encoded = count_encoded(monkeypatch, nearby)
    pair = changed(wide_pair, _W_dec=0.02 * wide_pair.tensors()["_W_dec"])
    ablation_samples(pair, [random_inputs(N_TOKENS, 16)], ranks="diagonal")
    (interventions,) = encoded
    assert interventions < N_TOKENS * K / 10


def test_the_jacobian_element_is_the_sandwich_s(pair, x):
    jacobian = run_sandwich(pair, x).jacobian
    for row in ablation_samples(pair, [x], 50).itertuples():
        element = jacobian[row.token, row.output_rank, row.input_rank].item()
        assert row.jacobian == pytest.approx(element, rel=1e-12, abs=1e-12)


def test_a_linear_mlp_changes_by_exactly_minus_j_where_the_output_latent_stays(x):
    pair = random_pair("linear")
    frame = ablation_samples(pair, [x], ranks="all")
    stays = (frame["ablated_activation"] > 0) & (frame["output_activation"] > 0)
    assert 20 < stays.sum() < len(frame) - 20
    numpy.testing.assert_allclose(frame["change"][stays], -frame["jacobian"][stays], rtol=0, atol=1e-10)
    left = frame[frame["ablated_activation"] == 0]
    assert (left["change"] == -left["output_activation"]).all()


def test_a_linear_mlp_is_on_the_line_by_every_measure_where_topk_keeps_all_latents(x):
    pair = random_pair("linear", d_sae=K)
    pair = changed(pair, _b_enc_out=pair.tensors()["_b_enc_out"] + 1e3)
    summary = ablation_summary(ablation_samples(pair, [x]))
    for suffix in ("", "_noteworthy"):
        assert summary[f"slope{suffix}"] == pytest.approx(1, abs=1e-10)
        assert summary[f"correlation{suffix}"] == pytest.approx(1, abs=1e-10)
    assert summary["on_line_relative"] == summary["published_line"] == 1


def test_the_change_tends_to_minus_j_as_the_step_shrinks(pair, x):
    errors = []
    for step in (1e-2, 1e-3, 1e-4):
        frame = ablation_samples(changed(pair, _W_dec=pair.tensors()["_W_dec"] * step), [x], ranks="all")
        stays = (frame["ablated_activation"] > 0) & (frame["output_activation"] > 0)
        errors.append(((frame["change"] + frame["jacobian"])[stays].abs() / step).median())
    assert errors[0] > 5 * errors[1] > 25 * errors[2]


def test_columns_and_their_types_are_fixed(pair, x):
    frame = ablation_samples(pair, [x], 7)
    assert list(frame) == COLUMNS and frame.index.tolist() == list(range(7))
    assert [str(dtype) for dtype in frame.dtypes[:-4]] == ["int64"] * 6 + ["float64"] * 6 + ["int64"]
    assert set(frame["agreement"]) <= set(AGREEMENTS)


def test_random_rows_are_rows_of_all_rows(pair, x):
    every = ablation_samples(pair, [x], ranks="all")
    some = ablation_samples(pair, [x], 40, seed=5)
    expected = every.iloc[some["token"] * K * K + some["output_rank"] * K + some["input_rank"]].reset_index(drop=True)
    columns = [name for name in COLUMNS if name != "drawn"]
    pandas.testing.assert_frame_equal(some[columns], expected[columns], rtol=1e-12, atol=1e-12)


@given(n=st.integers(1, N_TOKENS * K * K), seed=st.integers(0, 9))
def test_the_rows_drawn_first_are_the_rows_of_a_smaller_sample_with_the_same_seed(pair, x, n, seed):
    more = ablation_samples(pair, [x], seed=seed)
    first = more[more["drawn"] < n].reset_index(drop=True)
    pandas.testing.assert_frame_equal(ablation_samples(pair, [x], n, seed=seed), first, rtol=1e-10, atol=1e-10)


def test_the_diagonal_is_the_diagonal_of_all_rows(pair, x):
    every = ablation_samples(pair, [x], ranks="all")
    expected = every[every["output_rank"] == every["input_rank"]].reset_index(drop=True)
    expected["drawn"] = range(N_TOKENS * K)
    diagonal = ablation_samples(pair, [x], ranks="diagonal")
    pandas.testing.assert_frame_equal(diagonal, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch_bytes", [1, 8 * D_SAE * 7])
@pytest.mark.parametrize("ranks", ["random", "all"])
def test_rows_do_not_depend_on_how_many_are_computed_at_once(pair, x, ranks, batch_bytes, monkeypatch):
    at_once = ablation_samples(pair, [x], 60, ranks)
    monkeypatch.setattr(sae, "PRE_ACTIVATION_BYTES", batch_bytes)
    pandas.testing.assert_frame_equal(ablation_samples(pair, [x], 60, ranks), at_once, rtol=1e-10, atol=1e-10)


@given(cuts=st.lists(st.integers(0, N_TOKENS), max_size=4))
def test_rows_do_not_depend_on_how_the_stream_is_cut(pair, x, cuts):
    edges = [0, *sorted(cuts), N_TOKENS]
    stream = (x[start:stop] for start, stop in zip(edges, edges[1:], strict=False))
    pandas.testing.assert_frame_equal(ablation_samples(pair, stream, 30), ablation_samples(pair, [x], 30))


@given(n_samples=st.integers(1, N_TOKENS * K * K), seed=st.integers(0, 9))
def test_any_number_of_samples_gives_that_many_finite_rows(pair, x, n_samples, seed):
    frame = ablation_samples(pair, [x], n_samples, seed=seed)
    assert len(frame) == n_samples and numpy.isfinite(numbers(frame)).all()


def frame_of(jacobian, change, before=100.0) -> pandas.DataFrame:
    """Samples of output latents that are `before` the intervention, each from a document of its own."""
    frame = pandas.DataFrame({"jacobian": jacobian, "change": change}, dtype=float)
    others = {"output_activation": before, "input_activation": 1.0, "typical_activation": 1.0}
    return frame.assign(**others, document=range(len(frame)))


def agreement_of(jacobian: float, change: float, before: float = 100.0) -> str:
    """The rule, for one element."""
    if before > 0 and before + change == 0:
        return "dropped"
    if abs(jacobian) < 0.01 and abs(change) < 0.01:
        return "negligible"
    return "line" if abs(jacobian + change) < 0.1 * abs(jacobian) else "off"


def published_of(jacobian: float, change: float) -> str:
    if abs(jacobian + change) < 0.1:
        return "line"
    return "cluster" if jacobian < 0.04 and change < -0.5 else "other"


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1])
def test_each_row_s_agreement_follows_the_rule_element_by_element(pair, x, scale):
    narrow = changed(pair, _W_dec=pair.tensors()["_W_dec"] * scale)
    frame = ablation_samples(narrow, [x], ranks="all")
    assert frame["agreement"].tolist() == list(map(agreement_of, *frame[THREE].to_numpy().T))
    assert frame["published"].tolist() == list(map(published_of, frame["jacobian"], frame["change"]))
    assert frame["agreement"].nunique() >= 2


@given(
    elements=st.lists(
        st.tuples(*[st.sampled_from([0.0, 0.01, -0.01, 0.0101, 10.0, -9.0, -11.0]) | st.floats(-1, 1)] * 2),
        min_size=1,
        max_size=50,
    )
)
def test_the_shares_of_the_agreements_are_those_of_the_rule_and_sum_to_one(elements):
    summary = ablation_summary(frame_of(*zip(*elements, strict=True)))
    expected = [agreement_of(jacobian, change) for jacobian, change in elements]
    shares = {name: summary[f"agreement_{name}"] for name in AGREEMENTS}
    assert shares == pytest.approx({name: expected.count(name) / len(elements) for name in AGREEMENTS})
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("jacobian", "change", "agreement"),
    [
        (0.0, 0.0, "negligible"),
        (0.0099, -0.0099, "negligible"),
        (-0.0099, -0.0099, "negligible"),
        (0.0, 0.0099, "negligible"),
        (0.01, -0.01, "line"),
        (-0.01, -0.01, "off"),
        (0.0, 0.01, "off"),
        (0.0, 0.0101, "off"),
        (0.0, -5.0, "off"),
        (100.0, -100.0, "dropped"),
        (0.0, -100.0, "dropped"),
        (0.005, -0.0101, "off"),
        (0.0101, 0.0, "off"),
        (0.0101, -0.0101, "line"),
        (0.01, -0.0105, "line"),
        (0.0105, -0.01, "line"),
        (10.0, -9.0, "off"),
        (10.0, -9.001, "line"),
        (10.0, -10.999, "line"),
        (-10.0, 11.0, "off"),
        (-10.0, 10.999, "line"),
        (10.0, 10.0, "off"),
    ],
)
def test_the_agreement_of_an_element_by_hand(jacobian, change, agreement):
    summary = ablation_summary(frame_of([jacobian], [change]))
    assert {name: summary[f"agreement_{name}"] for name in AGREEMENTS} == {
        name: float(name == agreement) for name in AGREEMENTS
    }


def test_a_typical_activation_is_the_mean_over_the_tokens_of_the_stream_in_which_the_latent_is_active(pair, x):
    frame = ablation_samples(pair, [x], ranks="all")
    latents = pair.output_sae.encode(pair.mlp(x))
    for row in frame.drop_duplicates("output_latent").itertuples():
        active = latents[:, row.output_latent]
        expected = active[active > 0].mean().item() if (active > 0).any() else 0.0
        assert row.typical_activation == pytest.approx(expected, rel=1e-5)
        assert row.n_typical == (active > 0).sum().item()


def test_a_typical_activation_of_a_low_precision_pair_is_a_mean_of_more_digits():
    pair, x = random_pair(dtype=torch.bfloat16), random_inputs(1000, dtype=torch.bfloat16)
    frame = ablation_samples(pair, [x], 2000)
    sandwich = run_sandwich(pair, x)
    latents, activations = sandwich.output_latents, sandwich.output_activations.double()
    for row in frame.drop_duplicates("output_latent").itertuples():
        active = activations[(latents == row.output_latent) & (activations > 0)]
        assert row.typical_activation == pytest.approx(active.mean().item(), rel=1e-3)
    assert latents.flatten().bincount().max() > 256  # from here on, bfloat16 would count no further


@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_what_is_negligible_by_the_relative_rule_does_not_depend_on_the_scale_of_the_output_latents(pair, x, scale):
    tensors = pair.tensors()
    scaled = changed(pair, _W_enc_out=scale * tensors["_W_enc_out"], _b_enc_out=scale * tensors["_b_enc_out"])
    before, after = (ablation_samples(of, [x], ranks="all") for of in (pair, scaled))
    assert (before["relative_agreement"] == after["relative_agreement"]).mean() > 0.999  # but for rounding
    assert (set(after["agreement"]) <= {"negligible", "dropped"}) == (scale < 1)  # which the absolute rule's does
    summary = ablation_summary(before)
    for name in AGREEMENTS:
        share = (before["relative_agreement"] == name).mean()
        assert summary[f"relative_agreement_{name}"] == pytest.approx(share), name
    noteworthy = before["relative_agreement"][before["relative_agreement"] != "negligible"]
    assert summary["relative_noteworthy_line"] == pytest.approx((noteworthy == "line").mean())


def test_the_summary_s_shares_are_those_of_the_table_s_own_column(pair, x):
    frame = ablation_samples(pair, [x], ranks="all")
    summary = ablation_summary(frame)
    for name in AGREEMENTS:
        assert summary[f"agreement_{name}"] == pytest.approx((frame["agreement"] == name).mean()), name


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(30, 200),
    noise=st.sampled_from([1e-4, 0.003, 0.1]),
    slope=st.floats(-2, 2),
)
def test_slope_and_correlation_are_numpy_s_over_what_stayed_in_the_topk(seed, n, noise, slope):
    random = numpy.random.default_rng(seed)
    jacobian = random.normal(scale=0.02, size=n)
    change = slope * -jacobian + random.normal(scale=noise, size=n)
    dropped = random.random(n) < 0.2
    change[dropped] = -100
    summary = ablation_summary(frame_of(jacobian, change))
    for suffix, some in (("", ~dropped), ("_noteworthy", ~dropped & (numpy.abs(jacobian) >= 0.01))):
        expected = numpy.polyfit(-jacobian[some], change[some], 1)[0]
        assert summary[f"slope{suffix}"] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        expected = numpy.corrcoef(-jacobian[some], change[some])[0, 1]
        assert summary[f"correlation{suffix}"] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert summary["agreement_dropped"] == pytest.approx(dropped.mean())
    on_line = numpy.abs(change + jacobian) < 0.1 * numpy.abs(jacobian)
    assert summary["on_line_relative"] == pytest.approx(on_line.mean()) and summary["samples"] == n


def test_a_dropped_sample_whose_change_is_what_j_predicts_is_on_the_line_relative_to_j_all_the_same():
    summary = ablation_summary(frame_of([100.0, 1.0], [-100.0, 1.0]))
    assert (summary["agreement_dropped"], summary["agreement_line"], summary["on_line_relative"]) == (0.5, 0, 0.5)


def test_the_shares_among_the_noteworthy_leave_the_negligible_out():
    summary = ablation_summary(frame_of([0.001] * 7 + [0.5, 0.5, 0.5], [0.0] * 7 + [-0.5, 0.5, -100]))
    assert summary["agreement_negligible"] == pytest.approx(0.7)
    for name in ("line", "off", "dropped"):
        assert summary[f"agreement_{name}"] == pytest.approx(0.1), name
        assert summary[f"noteworthy_{name}"] == pytest.approx(1 / 3), name


@pytest.mark.parametrize(
    ("jacobian", "change"),
    [
        ([0.3], [-0.3]),
        ([0.1] * 10, [0.3] * 10),
        ([0.1] * 10, list(range(10))),
        (list(range(10)), [0.3] * 10),
        ([0.0] * 4, [0.0] * 4),
        ([0.3, 0.3 * (1 + 1e-8)], [-0.3, -0.4]),
        ([0.3, 0.4], [-100, -100]),
    ],
    ids=["one", "neither varies", "jacobian constant", "change constant", "zero", "rounding", "all dropped"],
)
def test_a_summary_without_variation_has_no_slope_or_correlation_and_no_nan(jacobian, change):
    summary = ablation_summary(frame_of(jacobian, change))
    assert sum(summary[f"agreement_{name}"] for name in AGREEMENTS) == pytest.approx(1)
    for suffix in ("", "_noteworthy"):
        assert (summary[f"slope{suffix}"], summary[f"correlation{suffix}"]) == pytest.approx((0, 0), abs=1e-12)
    assert all(type(value) is float and math.isfinite(value) for value in summary.values())


def correlated_samples(random, n_documents: int = 80) -> pandas.DataFrame:
    """Samples whose documents differ in how well J predicts the change."""
    sizes = random.integers(1, 30, n_documents)
    document = numpy.arange(n_documents).repeat(sizes)
    slopes = (0.9 + 0.2 * random.normal(size=n_documents))[document]
    jacobian = random.normal(scale=0.05, size=len(document))
    change = -slopes * jacobian + random.normal(scale=0.004, size=len(document))
    change[random.random(len(document)) < random.beta(1, 9, n_documents)[document]] = -100
    return frame_of(jacobian, change).assign(document=document)


def test_the_errors_of_a_summary_are_those_of_a_bootstrap_over_documents():
    random = numpy.random.default_rng(0)
    samples = correlated_samples(random)
    agreement = samples[THREE].apply(lambda row: agreement_of(*row), axis=1)
    x, y, stays = -samples["jacobian"], samples["change"], agreement != "dropped"
    columns = {"all": 1, "stays": stays, "large": agreement != "negligible"}
    columns |= {name: agreement == name for name in ("line", "off", "dropped")}
    columns |= {"on_line": (y - x).abs() < 0.1 * x.abs()}
    columns |= {"x": stays * x, "y": stays * y, "xx": stays * x * x, "xy": stays * x * y, "yy": stays * y * y}
    of_document = pandas.DataFrame(columns, dtype=float).groupby(samples["document"]).sum()

    def summary_of(s: pandas.DataFrame) -> dict[str, pandas.Series]:
        """From sums over samples."""
        xx, xy, yy = (s[a + b] - s[a] * s[b] / s["stays"] for a, b in ("xx", "xy", "yy"))
        return {
            "slope": xy / xx,
            "correlation": xy / numpy.sqrt(xx * yy),
            "agreement_line": s["line"] / s["all"],
            "agreement_dropped": s["dropped"] / s["all"],
            "noteworthy_off": s["off"] / s["large"],
            "on_line_relative": s["on_line"] / s["all"],
        }

    summary, expected = ablation_summary(samples), summary_of(of_document.sum())
    drawn = of_document.to_numpy()[random.integers(80, size=(4000, 80))].sum(axis=1)
    # 4000 resamplings know a deviation to 1%
    for name, values in summary_of(pandas.DataFrame(drawn, columns=of_document.columns)).items():
        assert summary[name] == pytest.approx(expected[name], rel=1e-6), name
        assert summary[f"{name}_se"] == pytest.approx(values.std(), rel=0.07), name


def test_further_doses_are_the_whole_activation_and_twice_that(pair, x):
    frame = ablation_samples(pair, [x], ranks="all", doses=("unit", "whole", "double"))
    assert set(frame) == {*COLUMNS, "change_whole", "agreement_whole", "change_double", "agreement_double"}
    pandas.testing.assert_frame_equal(frame[COLUMNS], ablation_samples(pair, [x], ranks="all"), rtol=1e-10)
    # a sweep of the input latent passes there as well
    for dose, factor in (("whole", 1.0), ("double", 2.0)):
        few = frame.iloc[::17]
        expected = []
        for row in few.itertuples():
            moved = x[row.token] - factor * row.input_activation * pair.input_sae.W_dec[row.input_latent]
            latents = pair.output_sae.encode(pair.mlp(moved[None]))[0]
            expected.append(latents[row.output_latent].item() - row.output_activation)
        numpy.testing.assert_allclose(few[f"change_{dose}"], expected, rtol=0, atol=1e-10)
    summary = ablation_summary(frame)
    assert {"slope_whole", "agreement_line_double", "noteworthy_dropped_whole_se"} <= summary.keys()


def test_an_unknown_dose_is_refused(pair, x):
    with pytest.raises(ValueError, match="unknown dose 'half'; expected some of unit, whole, double"):
        ablation_samples(pair, [x], doses=("half",))


def test_one_latent_a_token_gives_one_row_a_token(x):
    frame = ablation_samples(random_pair(k=1), [x])
    assert frame["token"].tolist() == list(range(N_TOKENS)) and not frame[["output_rank", "input_rank"]].any(axis=None)
    assert numpy.isfinite(numbers(frame)).all()


def test_latents_that_are_all_dead_do_not_change(pair, x):
    frame = ablation_samples(silent(pair), [x])
    assert not frame[["change", "input_activation", "output_activation", "ablated_activation"]].any(axis=None)
    assert numpy.isfinite(numbers(frame)).all() and frame["jacobian"].any()
    summary = ablation_summary(frame)
    assert summary["slope"] == summary["correlation"] == summary["on_line_relative"] == 0
    assert all(map(math.isfinite, summary.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, K])
def test_one_token_repeated_gives_the_same_rows_again_and_a_finite_summary(x, dtype, k):
    pair, repeated = random_pair(k=k, dtype=dtype), x[:1].repeat(N_TOKENS, 1).to(dtype)
    frame = ablation_samples(pair, [repeated])
    summary = ablation_summary(frame)
    values = numbers(frame.drop(columns=["token", "drawn", "document"])).reshape(N_TOKENS, k * k, -1)
    numpy.testing.assert_allclose(values, numpy.broadcast_to(values[:1], values.shape), rtol=1e-4, atol=1e-5)
    assert all(map(math.isfinite, summary.values()))
    if k == 1:
        assert summary["slope"] == summary["correlation"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_pair_has_a_table_too(x, dtype):
    frame = ablation_samples(random_pair(dtype=dtype), [x.to(dtype)], 50)
    assert frame["change"].dtype == numpy.float32 and numpy.isfinite(numbers(frame)).all()
    assert frame["agreement"].tolist() == list(map(agreement_of, *frame[THREE].to_numpy().T))


def test_more_samples_than_the_tokens_hold_are_refused(pair, x):
    with pytest.raises(ValueError, match=f"{N_TOKENS} tokens with k {K} hold {N_TOKENS * K * K} samples"):
        ablation_samples(pair, [x], N_TOKENS * K * K + 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs_that_are_not_finite_are_refused(pair, x, value):
    broken = x.clone()
    broken[3, 0] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        ablation_samples(pair, [broken])


def test_inputs_of_another_model_s_width_are_refused_with_both_widths(pair):
    with pytest.raises(ValueError, match=rf"\({N_TOKENS}, {D_MODEL + 1}\).*{D_MODEL}"):
        ablation_samples(pair, [random_inputs(N_TOKENS, D_MODEL + 1)])
