import numpy
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsae_core import SAEPair, run_sandwich, sae
from jsae_core.measures import ablation_samples, classify_curves, function_curves, function_shapes, nearby
from tests.jsae_core.builders import D_MODEL, D_SAE, K, changed, count_encoded, random_inputs, random_pair

N_TOKENS, POINTS = 12, 100
COLUMNS = [
    "token",
    "output_rank",
    "input_rank",
    "drawn",
    "output_latent",
    "input_latent",
    "shape",
    "flat",
    "input_activation",
    "output_activation",
    "document",
]
CURVES = ["input_values", "output_values"]
SHAPES = {"linear", "jumprelu", "other"}


@pytest.fixture(scope="module")
def x():
    return random_inputs(N_TOKENS)


@pytest.fixture(scope="module")
def pair():
    return random_pair()


@pytest.fixture(scope="module")
def uneven_pair():
    """Many of its functions are linear, as many input latents hardly move anything, many are not."""
    pair = random_pair()
    scales = torch.logspace(-5, 0, D_SAE, dtype=torch.float64)[:, None]
    return changed(pair, _W_dec=pair.tensors()["_W_dec"] * scales)


def every_rank(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each token with each pair of ranks: inputs, output ranks, input ranks."""
    row, output_rank, input_rank = torch.cartesian_prod(torch.arange(len(x)), *[torch.arange(K)] * 2).unbind(dim=1)
    return x[row], output_rank, input_rank


def slow_curve(pair: SAEPair, x: torch.Tensor, output_rank: int, input_rank: int) -> tuple[list[float], list[float]]:
    """One curve, a point at a time, with SAELens's own encoder."""
    pre = x @ pair.input_sae.W_enc + pair.input_sae.b_enc
    input_latent = pre.argsort(descending=True)[input_rank]
    pre_out = pair.mlp(x) @ pair.output_sae.W_enc + pair.output_sae.b_enc
    output_latent = pre_out.argsort(descending=True)[output_rank]
    occurred = max(pre[input_latent].item(), 0.0)
    top = max(5.0, occurred + 1)
    input_values, output_values = [], []
    for point in range(POINTS):
        value = top * point / (POINTS - 1)
        moved = x + (value - occurred) * pair.input_sae.W_dec[input_latent]
        input_values.append(value)
        output_values.append(pair.output_sae.encode(pair.mlp(moved))[output_latent].item())
    return input_values, output_values


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_curves_are_those_of_a_slow_loop_over_points(x, activation, gated):
    pair = random_pair(activation, gated)
    inputs, output_ranks, input_ranks = every_rank(x[:4])
    curves = function_curves(pair, inputs, output_ranks, input_ranks)
    slow = [slow_curve(pair, *row) for row in zip(inputs, output_ranks.tolist(), input_ranks.tolist(), strict=True)]
    for ours, expected in zip(curves, zip(*slow, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    # some leave the TopK on their way, others stay
    assert 10 < (curves[1] == 0).any(dim=1).sum() < len(inputs) - 10


@pytest.mark.parametrize("step", [0.1, 1.0, 10.0], ids=lambda step: f"decoder rows of norm {step}")
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_curves_among_many_latents_are_those_of_a_slow_loop_however_far_they_lead(activation, step):
    pair = random_pair(activation, d_model=16, d_mlp=24, d_sae=512)
    pair = changed(pair, _W_dec=step * pair.tensors()["_W_dec"])
    inputs, output_ranks, input_ranks = every_rank(random_inputs(2, 16))
    _, output_values = function_curves(pair, inputs, output_ranks, input_ranks)
    rows = zip(inputs, output_ranks.tolist(), input_ranks.tolist(), strict=True)
    slow = torch.tensor([slow_curve(pair, *row)[1] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(output_values, slow, rtol=1e-9, atol=1e-9)


def test_smooth_curves_need_few_encodes(monkeypatch):
    encoded = count_encoded(monkeypatch, nearby)
    pair = random_pair(d_model=64, d_mlp=64, d_sae=2048)
    pair = changed(pair, _W_dec=0.02 * pair.tensors()["_W_dec"])
    inputs, output_ranks, input_ranks = every_rank(random_inputs(4, 64))
    function_curves(pair, inputs, output_ranks, input_ranks)
    assert sum(encoded) < len(inputs) * POINTS / 20


def test_the_sweep_starts_at_zero_and_ends_one_above_what_occurred_or_at_five(pair, x):
    inputs, output_ranks, input_ranks = every_rank(x)
    input_values, _ = function_curves(pair, inputs, output_ranks, input_ranks)
    occurred = run_sandwich(pair, inputs).input_activations.gather(1, input_ranks[:, None]).squeeze(1)
    assert (occurred < 4).any() and (occurred > 4).any()
    assert not input_values[:, 0].any()
    torch.testing.assert_close(input_values[:, -1], (occurred + 1).clamp(min=5))
    torch.testing.assert_close(input_values.diff(), (input_values[:, -1:] / 99).expand(-1, 99))


def test_at_the_activation_that_occurred_a_curve_passes_through_the_output_that_occurred(x):
    pair = random_pair("linear", d_sae=K)
    pair = changed(pair, _b_enc_out=pair.tensors()["_b_enc_out"] + 1e3)
    inputs, output_ranks, input_ranks = every_rank(x)
    input_values, output_values = function_curves(pair, inputs, output_ranks, input_ranks)
    sandwich, row = run_sandwich(pair, inputs), torch.arange(len(inputs))
    # of a line, two points give every other; and its slope is the Jacobian
    slope = (output_values[:, -1] - output_values[:, 0]) / input_values[:, -1]
    torch.testing.assert_close(slope, sandwich.jacobian[row, output_ranks, input_ranks], rtol=0, atol=1e-9)
    occurred = output_values[:, 0] + slope * sandwich.input_activations[row, input_ranks]
    torch.testing.assert_close(occurred, sandwich.output_activations[row, output_ranks], rtol=1e-9, atol=1e-9)
    assert classify_curves(input_values, output_values) == ["linear"] * len(inputs)


def test_a_curve_one_below_what_occurred_agrees_with_the_ablation(pair, x):
    ablated = ablation_samples(pair, [x], ranks="all")
    chosen = ablated[ablated["input_activation"] > 4].iloc[:40]
    ranks = [torch.tensor(chosen[name].to_list()) for name in ("output_rank", "input_rank")]
    input_values, output_values = function_curves(pair, x[chosen["token"].to_list()], *ranks)
    assert len(chosen) == 40
    for n, row in enumerate(chosen.itertuples()):
        xs, ys = input_values[n].numpy(), output_values[n].numpy()
        right = numpy.searchsorted(xs, row.input_activation - 1)
        near = ys[max(0, right - 3) : right + 3]
        slack = numpy.abs(numpy.diff(near)).max() + 1e-9
        assert near.min() - slack <= row.ablated_activation <= near.max() + slack


@given(
    rows=st.lists(st.integers(0, N_TOKENS * K * K - 1), min_size=1, max_size=8),
    batch_bytes=st.sampled_from([1, 9**6]),
)
def test_a_curve_does_not_depend_on_those_beside_it_nor_on_how_many_are_computed_at_once(pair, x, rows, batch_bytes):
    inputs, output_ranks, input_ranks = every_rank(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sae, "PRE_ACTIVATION_BYTES", batch_bytes)
        some = function_curves(pair, inputs[rows], output_ranks[rows], input_ranks[rows])
    for ours, all_of_them in zip(some, function_curves(pair, inputs, output_ranks, input_ranks), strict=True):
        torch.testing.assert_close(ours, all_of_them[rows], rtol=1e-9, atol=1e-9)


def test_no_rows_have_no_curves(pair):
    none = torch.zeros(0, dtype=torch.int64)
    for values in function_curves(pair, torch.zeros(0, D_MODEL, dtype=torch.float64), none, none):
        assert values.shape == (0, POINTS)
    assert classify_curves(torch.zeros(0, POINTS), torch.zeros(0, POINTS)) == []


@pytest.mark.parametrize("which", ["output_ranks", "input_ranks"])
@pytest.mark.parametrize("bad", [[0, K], [-1, 0], [0], [0, 1, 2]], ids=["too large", "negative", "too few", "too many"])
def test_ranks_that_do_not_fit_the_rows_are_refused_by_name(pair, x, which, bad):
    ranks = {"output_ranks": torch.tensor([0, 1]), "input_ranks": torch.tensor([0, 1])} | {which: torch.tensor(bad)}
    with pytest.raises(ValueError, match=f"{which} must be 2 whole numbers from 0 to {K - 1}"):
        function_curves(pair, x[:2], **ranks)


VALUES = torch.linspace(0, 5, POINTS, dtype=torch.float64)
# alternating signs, with neither mean nor slope: residuals of a least-squares line are as large as they are
ZIGZAG = torch.tensor([1.0, -1, -1, 1] * 25, dtype=torch.float64)


def relu_after(zeros: int, curve: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(POINTS) < zeros, 0.0, curve)


HAND_MADE = {
    "a line": (2 + 3 * VALUES, "linear"),
    "a falling line": (20 - 3 * VALUES, "linear"),
    "a flat curve": (torch.full_like(VALUES, 7.0), "linear"),
    "all zero": (0 * VALUES, "linear"),
    "a line through the origin": (2 * VALUES, "linear"),
    "a line with small noise": (1 + VALUES + 0.009 * ZIGZAG, "linear"),
    "a line with large noise": (1 + VALUES + 0.011 * ZIGZAG, "other"),
    "zeros, then a line": (relu_after(40, VALUES), "jumprelu"),
    "zeros, then a jump to a line": (relu_after(40, 3 + VALUES), "jumprelu"),
    "one zero, then a line": (relu_after(1, 3 + VALUES), "jumprelu"),
    "zeros, then a flat curve": (relu_after(40, 0 * VALUES + 3), "jumprelu"),
    "a line, then zeros": (relu_after(40, 3 + VALUES).flip(0), "jumprelu"),
    "a line, then one zero": (relu_after(1, 3 + VALUES).flip(0), "jumprelu"),
    "zeros, then one point": (relu_after(99, 3 + VALUES), "other"),
    "zeros, then two points": (relu_after(98, VALUES**2), "jumprelu"),
    "zeros, then three points of a bend": (relu_after(97, ZIGZAG.abs() * 3 + ZIGZAG), "other"),
    "zeros at both ends": (relu_after(20, 3 + VALUES) * (torch.arange(POINTS) < 80), "other"),
    "zeros in the middle": ((3 + VALUES) * ((torch.arange(POINTS) < 40) | (torch.arange(POINTS) > 60)), "other"),
    "one point, then zeros": (relu_after(99, 3 + VALUES).flip(0), "other"),
    "zeros, then a falling line to zero": (relu_after(40, 5 - VALUES), "other"),
    "a quadratic": (VALUES**2, "other"),
    "a quadratic that does not touch zero": (1 + VALUES**2, "other"),
    "zeros, then a quadratic": (relu_after(40, VALUES**2), "other"),
    "zeros, then a line with small noise": (relu_after(40, 3 + VALUES + 0.009 * ZIGZAG), "jumprelu"),
    "zeros, then a line with large noise": (relu_after(40, 3 + VALUES + 0.011 * ZIGZAG), "other"),
    "almost zeros, then a line": (relu_after(40, 3 + VALUES).clamp(min=1e-9), "other"),
    "a step too low to be seen": (relu_after(50, 0 * VALUES + 0.009), "linear"),
}


@pytest.mark.parametrize(("curve", "shape"), HAND_MADE.values(), ids=HAND_MADE)
def test_a_hand_made_curve_has_the_class_the_paper_s_rule_gives_it(curve, shape):
    assert classify_curves(VALUES[None], curve[None]) == [shape]


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1, 1e6])
@pytest.mark.parametrize(
    ("curve", "shape"),
    [
        (2 + 3 * VALUES, "linear"),
        (relu_after(40, VALUES), "jumprelu"),
        (VALUES**2, "other"),
        (0 * VALUES, "flat"),
        (7 + 0.01 * VALUES, "flat"),
        (7 + 0.02 * VALUES, "linear"),
        (0.01 * VALUES - 7, "flat"),
        (1 + VALUES + 0.24 * ZIGZAG, "linear"),  # a range of 5.48, 5% of which is .27
        (1 + VALUES + 0.3 * ZIGZAG, "other"),
        (relu_after(99, 3 + VALUES), "other"),
    ],
)
def test_by_the_relative_rule_a_curve_has_the_same_shape_on_every_scale(curve, shape, scale):
    assert classify_curves(VALUES[None], scale * curve[None], "relative") == [shape]


def test_an_unknown_rule_is_refused(pair, x):
    with pytest.raises(ValueError, match="unknown rule 'strict'; expected one of published, relative"):
        classify_curves(VALUES[None], VALUES[None], "strict")
    with pytest.raises(ValueError, match="unknown rule 'strict'"):
        function_shapes(pair, [x], 5, rules=("strict",))


def test_relative_shapes_are_those_of_sweeps_over_the_usual_activations_one_at_a_time(pair, x):
    frame = function_shapes(pair, [x], 40, rules=("published", "relative"))
    sae, output_sae = pair.input_sae, pair.output_sae
    activations = sae.encode(x)
    for row in frame.itertuples():
        usual = activations[:, row.input_latent]
        top = numpy.quantile(usual[usual > 0].numpy(), 0.99)
        assert row.n_usual == (usual > 0).sum().item()
        values = torch.linspace(0, float(top), POINTS, dtype=torch.float64)
        moved = x[row.token] + (values - row.input_activation)[:, None] * sae.W_dec[row.input_latent]
        y = pair.mlp(moved)
        outputs = output_sae.encode(y)[:, row.output_latent]
        pre = output_sae.process_sae_in(y) @ output_sae.W_enc[:, row.output_latent]
        assert row.relative_shape == classify_curves(values[None], outputs[None], "relative")[0]
        line = numpy.polynomial.Polynomial.fit(values.numpy(), pre.numpy(), 1)
        curvature = numpy.abs(pre.numpy() - line(values.numpy())).max() / numpy.ptp(pre.numpy())
        assert row.curvature == pytest.approx(curvature, rel=1e-6, abs=1e-9)
    assert frame["relative_shape"].nunique() > 1


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_relative_shapes_and_curvature_do_not_change_when_the_model_s_scale_does(x, factor):
    """A linear MLP whose input SAE and output SAE both see everything times a factor."""
    pair = random_pair("relu")
    tensors = pair.tensors()
    biases = {
        f"_b_{which}{side}": factor * tensors[f"_b_{which}{side}"] for which in ("enc", "dec") for side in ("", "_out")
    }
    other = changed(pair, **biases, **{name: factor * tensors[name] for name in ("mlp.b_in", "mlp.b_out")})
    one, scaled = (
        function_shapes(of, [inputs], 100, rules=("relative",)) for of, inputs in ((pair, x), (other, factor * x))
    )
    assert one["relative_shape"].tolist() == scaled["relative_shape"].tolist()
    numpy.testing.assert_allclose(one["curvature"], scaled["curvature"], rtol=1e-6, atol=1e-9)
    assert (one["shape"] != scaled["shape"]).any()  # the published rule has a scale


def test_each_curve_is_classified_by_itself():
    curves, shapes = zip(*HAND_MADE.values(), strict=True)
    assert classify_curves(VALUES.expand(len(curves), -1), torch.stack(curves)) == list(shapes)


@pytest.mark.parametrize(("residual", "shape"), [(0.01 - 1e-9, "linear"), (0.01 + 1e-9, "other")])
def test_the_largest_residual_decides_at_a_hundredth(residual, shape):
    curve = 4 + 2 * VALUES + 0.001 * ZIGZAG
    curve[48:52] = (4 + 2 * VALUES + residual * ZIGZAG)[48:52]
    assert classify_curves(VALUES[None], curve[None]) == [shape]


def paper_rule(x: numpy.ndarray, y: numpy.ndarray) -> str:
    """By numpy's polyfit, one curve at a time."""

    def linear(x, y):
        if len(x) < 2:
            return True
        return bool((numpy.abs(y - numpy.polyval(numpy.polyfit(x, y, 1), x)) < 0.01).all())

    if linear(x, y):
        return "linear"
    active = numpy.flatnonzero(y)
    rest = [slice(active[0], None)] * bool(active[0]) + [slice(None, active[-1] + 1)] * bool(active[-1] < len(y) - 1)
    return "jumprelu" if any(linear(x[part], y[part]) for part in rest) else "other"


@given(
    ends=st.tuples(st.integers(0, POINTS), st.integers(0, POINTS)),
    coefficients=st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.sampled_from([0.0, 0.0, 0.002, 1.0])),
    noise=st.sampled_from([0.0, 0.004, 0.02]),
    seed=st.integers(0, 99),
)
def test_a_curve_has_the_class_that_numpy_s_polyfit_gives_it(ends, coefficients, noise, seed):
    start, stop = sorted(ends)
    a, b, c = coefficients
    curve = a + b * VALUES + c * VALUES**2 + noise * torch.tensor(numpy.random.default_rng(seed).normal(size=POINTS))
    curve[:start] = 0
    curve[stop:] = 0
    assert classify_curves(VALUES[None], curve[None]) == [paper_rule(VALUES.numpy(), curve.numpy())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_curves_are_classified(dtype):
    line = torch.arange(POINTS, dtype=dtype)
    assert classify_curves(line[None], 2 * line[None]) == ["linear"]


def test_each_curve_is_classified_over_its_own_inputs():
    wide = 40 * VALUES
    assert classify_curves(torch.stack([VALUES, wide]), torch.stack([3 * VALUES, 3 * wide])) == ["linear"] * 2


def curves_of(pair: SAEPair, x: torch.Tensor, frame: pandas.DataFrame) -> tuple[torch.Tensor, torch.Tensor]:
    """The curve of each row of a table, from its places alone."""
    ranks = [torch.tensor(frame[name].to_list()) for name in ("output_rank", "input_rank")]
    return function_curves(pair, x[frame["token"].to_list()], *ranks)


def test_shapes_are_the_classes_of_the_curves_of_the_sample(x):
    pair = random_pair("linear")
    pair = changed(pair, _W_dec=pair.tensors()["_W_dec"] * torch.logspace(-5, 0, D_SAE, dtype=x.dtype)[:, None])
    frame = function_shapes(pair, [x], 80)
    input_values, output_values = curves_of(pair, x, frame)
    assert frame["shape"].tolist() == classify_curves(input_values, output_values)
    assert frame["flat"].tolist() == [bool(curve.max() - curve.min() < 0.01) for curve in output_values.numpy()]
    assert frame["flat"].nunique() == 2 and set(frame["shape"]) == SHAPES


def test_the_sample_and_what_occurred_are_those_of_the_ablation(pair, x):
    shared = [column for column in COLUMNS if column not in ("shape", "flat")]
    shapes, ablated = function_shapes(pair, [x], 80, seed=4), ablation_samples(pair, [x], 80, seed=4)
    pandas.testing.assert_frame_equal(shapes[shared], ablated[shared], rtol=1e-12, atol=1e-12)


@given(n=st.integers(1, 60), n_more=st.integers(60, N_TOKENS * K * K), seed=st.integers(0, 9))
def test_the_sample_is_what_an_ablation_of_more_elements_draws_first(pair, x, n, n_more, seed):
    shared = [column for column in COLUMNS if column not in ("shape", "flat")]
    shapes, ablated = function_shapes(pair, [x], n, seed=seed), ablation_samples(pair, [x], n_more, seed=seed)
    first = ablated[ablated["drawn"] < n].reset_index(drop=True)
    pandas.testing.assert_frame_equal(shapes[shared], first[shared], rtol=1e-12, atol=1e-12)


def test_columns_are_fixed(pair, x):
    frame = function_shapes(pair, [x], 7)
    assert list(frame) == COLUMNS and frame.index.tolist() == list(range(7))
    assert frame["flat"].dtype == bool
    with_curves = function_shapes(pair, [x], 7, n_curves=3)
    assert list(with_curves) == COLUMNS + CURVES and with_curves.index.tolist() == list(range(7))


# --- the curves that are kept ---


def drawn_with_curves(frame: pandas.DataFrame) -> set[int]:
    """Places in the order of drawing; whoever has one half of a curve has the other."""
    has = [[value is not None for value in frame[name]] for name in CURVES]
    assert has[0] == has[1]
    return set(frame["drawn"][has[0]])


def to_be_kept(frame: pandas.DataFrame, n_curves: int) -> set[int]:
    """The first drawn and the first 30 of each shape, one row after another in the order of drawing."""
    kept, seen = set(), dict.fromkeys(SHAPES, 0)
    for row in frame.sort_values("drawn").itertuples():
        seen[row.shape] += 1
        if row.drawn < n_curves or seen[row.shape] <= 30:
            kept.add(row.drawn)
    return kept


@pytest.mark.parametrize("batch_bytes", [1, 8 * D_SAE * 7, 2**26])
@pytest.mark.parametrize("n_curves", [1, 50, 150, 1000])
def test_the_curves_kept_are_those_drawn_first_and_the_first_thirty_of_each_shape(
    uneven_pair, x, n_curves, batch_bytes, monkeypatch
):
    monkeypatch.setattr(sae, "PRE_ACTIVATION_BYTES", batch_bytes)
    n_samples = N_TOKENS * K * K - 2
    frame = function_shapes(uneven_pair, [x], n_samples, seed=1, n_curves=n_curves)
    counts = frame["shape"].value_counts()
    # two shapes have more than thirty, one has fewer
    assert set(counts.index) == SHAPES and (counts > 30).sum() == 2
    kept = drawn_with_curves(frame)
    assert kept == to_be_kept(frame, n_curves)
    assert set(range(min(n_curves, n_samples))) <= kept
    assert (len(kept) == n_samples) == (n_curves == 1000)


@pytest.mark.parametrize("batch_bytes", [8 * D_SAE * 7, 2**26])
def test_a_kept_curve_is_the_function_curve_of_its_row(uneven_pair, x, batch_bytes, monkeypatch):
    monkeypatch.setattr(sae, "PRE_ACTIVATION_BYTES", batch_bytes)
    frame = function_shapes(uneven_pair, [x], 150, seed=2, n_curves=40)
    frame = frame[frame["drawn"].isin(drawn_with_curves(frame))]
    assert 60 < len(frame) < 150
    for name, expected in zip(CURVES, curves_of(uneven_pair, x, frame), strict=True):
        assert {(value.shape, value.dtype) for value in frame[name]} == {((POINTS,), numpy.dtype("float32"))}
        numpy.testing.assert_allclose(numpy.stack(frame[name].to_list()), expected.float(), rtol=1e-6, atol=1e-6)


def test_keeping_curves_changes_nothing_else(uneven_pair, x):
    without, with_curves = (function_shapes(uneven_pair, [x], 150, seed=2, n_curves=n) for n in (0, 40))
    assert not set(CURVES) & set(without)
    pandas.testing.assert_frame_equal(with_curves[COLUMNS], without)


def test_kept_curves_survive_a_parquet_file(uneven_pair, x, tmp_path):
    frame = function_shapes(uneven_pair, [x], 150, seed=2, n_curves=40)
    frame.to_parquet(tmp_path / "shapes.parquet")
    read = pandas.read_parquet(tmp_path / "shapes.parquet")
    pandas.testing.assert_frame_equal(read[COLUMNS], frame[COLUMNS])
    assert drawn_with_curves(read) == drawn_with_curves(frame)
    for name in CURVES:
        for ours, theirs in zip(frame[name].dropna(), read[name].dropna(), strict=True):
            assert theirs.dtype == numpy.float32 and numpy.array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_low_precision_pair_s_curves_are_kept_in_float32(x, dtype):
    frame = function_shapes(random_pair(dtype=dtype), [x.to(dtype)], 20, n_curves=5)
    assert drawn_with_curves(frame) == set(range(20))
    for name in CURVES:
        kept = numpy.stack(frame[name].to_list())
        assert kept.shape == (20, POINTS) and kept.dtype == numpy.float32 and numpy.isfinite(kept).all()


def test_an_identity_mlp_has_linear_and_jumprelu_functions_only(x):
    # with all latents kept only the ReLU bends: zeros at one end, a line at the other
    kept = function_shapes(random_pair("linear", k=D_SAE), [x], 500, n_curves=500)
    one_point = numpy.array([(curve != 0).sum() == 1 for curve in kept["output_values"]])
    assert set(kept["shape"][~one_point]) == {"linear", "jumprelu"}


@pytest.mark.parametrize("batch_bytes", [1, 8 * D_SAE * 700])
def test_the_table_does_not_depend_on_how_many_curves_are_computed_at_once(pair, x, batch_bytes, monkeypatch):
    at_once = function_shapes(pair, [x], 40)
    monkeypatch.setattr(sae, "PRE_ACTIVATION_BYTES", batch_bytes)
    pandas.testing.assert_frame_equal(function_shapes(pair, [x], 40), at_once, rtol=1e-10, atol=1e-10)


@given(cuts=st.lists(st.integers(0, N_TOKENS), max_size=4))
def test_the_table_does_not_depend_on_how_the_stream_is_cut(pair, x, cuts):
    edges = [0, *sorted(cuts), N_TOKENS]
    stream = (x[start:stop] for start, stop in zip(edges, edges[1:], strict=False))
    pandas.testing.assert_frame_equal(function_shapes(pair, stream, 10), function_shapes(pair, [x], 10))


def assert_no_nan(frame: pandas.DataFrame) -> None:
    assert numpy.isfinite(frame.drop(columns="shape").to_numpy(float)).all()
    assert set(frame["shape"]) <= SHAPES


def test_latents_that_are_all_dead_are_flat_and_linear(pair, x):
    biases = {name: pair.tensors()[name] - 1e4 for name in ("_b_enc", "_b_enc_out")}
    frame = function_shapes(changed(pair, **biases), [x], 50, rules=("published", "relative"))
    assert set(frame["shape"]) == {"linear"} and frame["flat"].all() and set(frame["relative_shape"]) == {"flat"}
    # a sweep over no activation moves nothing, so there is no curve that could be bent
    assert not frame[["input_activation", "output_activation", "curvature"]].any(axis=None)
    assert_no_nan(frame.drop(columns="relative_shape"))


def test_one_latent_a_token_gives_a_table_without_nan(x):
    frame = function_shapes(random_pair(k=1), [x], N_TOKENS)
    assert sorted(frame["token"]) == list(range(N_TOKENS))
    assert_no_nan(frame)


def test_one_token_repeated_gives_the_same_shapes_again(pair, x):
    frame = function_shapes(pair, [x[:1].repeat(5, 1)], 5 * K * K)
    assert_no_nan(frame)
    by_token = [part["shape"].tolist() for _, part in frame.groupby("token")]
    assert by_token == by_token[:1] * 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_pair_has_a_table_too(x, dtype):
    frame = function_shapes(random_pair(dtype=dtype), [x.to(dtype)], 20)
    assert frame["input_activation"].dtype == numpy.float32
    assert_no_nan(frame)


@pytest.mark.parametrize("n_samples", [0, N_TOKENS * K * K + 1])
def test_a_number_of_samples_that_the_tokens_do_not_hold_is_refused(pair, x, n_samples):
    with pytest.raises(ValueError, match=f"n_samples is {n_samples}, but .* hold {N_TOKENS * K * K} samples"):
        function_shapes(pair, [x], n_samples)


@pytest.mark.parametrize("stream", [[], [torch.zeros(0, D_MODEL, dtype=torch.float64)]], ids=["nothing", "no tokens"])
def test_an_empty_stream_is_refused(pair, stream):
    with pytest.raises(ValueError, match="empty"):
        function_shapes(pair, stream, 1)


def test_inputs_that_are_not_finite_are_refused(pair, x):
    with pytest.raises(ValueError, match="NaN or infinite"):
        function_shapes(pair, [x / 0], 1)
