"""What the figures promise, read from the data of the figures themselves."""

import io
import re
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from jsae_core.figures import (
    Variant,
    export,
    jacobian_examples_figure,
    jacobian_histogram_figure,
    jacobian_thresholds_figure,
    permute_rows_and_columns,
)
from jsae_core.figures.export import png
from jsae_core.figures.style import decade_numbers, percent
from tests.jsae_core.subtitles import answer, details

TRADITIONAL, JSAE = Variant("Traditional", "#0072B2"), Variant("JSAE", "#D55E00")
SUBTITLE = "pythia-70m, layer 3 · 1000 tokens of C4 · k = 16, λ = 1"
TOKENS = [" import", "\n    ", "self", "<|endoftext|>"]
BAD_NUMBERS = [float("nan"), float("inf"), -1.0]


def jacobians(scale: float, n_tokens: int = 4, k: int = 16) -> np.ndarray:
    """Heavy-tailed: some elements are beyond the histogram's range."""
    return scale * np.random.default_rng(k).standard_t(2, size=(n_tokens, k, k))


def example(matrices) -> dict[str, np.ndarray]:
    """These Jacobians, between latents whose numbers tell the token and the row or column that they came from."""
    n_tokens, k_out, k_in = (*np.shape(matrices), 1, 1)[:3]
    tokens = np.arange(n_tokens)[:, None]
    return {
        "jacobian": matrices,
        "output_latents": 1000 * tokens + np.arange(k_out),
        "input_latents": 1000 * tokens + 500 + np.arange(k_in),
    }


def examples(scale: float) -> dict[str, np.ndarray]:
    return example(jacobians(scale))


def histogram(scale: float) -> dict[str, np.ndarray]:
    values, edges = np.abs(jacobians(scale, n_tokens=1000)), np.arange(1101) * 0.001
    return {
        "hist": np.histogram(values[values < 1.1], edges)[0],
        "overflow": np.array((values >= 1.1).sum()),
        "bin_edges": edges,
        "bin_centers": (edges[1:] + edges[:-1]) / 2,
    }


def both(make) -> dict:
    return {TRADITIONAL: make(0.03), JSAE: make(0.004)}


def shares(scale: float) -> dict[float, float]:
    return {threshold: float((np.abs(jacobians(scale)) > threshold).mean()) for threshold in (0.005, 0.01, 0.015, 0.02)}


@pytest.fixture
def histogram_figure():
    return jacobian_histogram_figure(both(histogram), SUBTITLE)


@pytest.fixture
def examples_figure():
    return jacobian_examples_figure(both(examples), TOKENS, SUBTITLE, None, seed=0)


@pytest.fixture
def figures(histogram_figure, examples_figure):
    return [histogram_figure, examples_figure, jacobian_thresholds_figure(both(shares), SUBTITLE)]


def panel(figure, axis: str) -> dict:
    return {trace.name: trace for trace in figure.data if trace.xaxis == axis}


# every figure


def test_importing_the_figures_imports_neither_torch_nor_dagster_nor_the_measures():
    code = (
        "import sys, jsae_core.figures as figures\n"
        "[getattr(figures, name) for name in figures.__all__]\n"
        "print({'torch', 'dagster', 'jsae_core.measures'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_figure_says_what_it_is_made_from(figures):
    for figure in figures:
        assert figure.layout.title.text
        assert details(figure).startswith(SUBTITLE)


def test_a_long_subtitle_is_broken_into_lines_between_words_and_the_axes_make_room():
    long = " · ".join([SUBTITLE] * 3)
    figure, short = (jacobian_thresholds_figure(both(shares), subtitle) for subtitle in (long, SUBTITLE))
    lines, fewer = (one.layout.title.subtitle.text.count("<br>") for one in (figure, short))
    assert lines > fewer
    assert details(figure) == long
    assert figure.layout.margin.t - short.layout.margin.t == 22 * (lines - fewer)


def test_text_that_looks_like_markup_is_drawn_as_it_stands():
    figure = jacobian_thresholds_figure({Variant("<b>J</b>", "#D55E00"): {0.01: 0.5}}, "a < b & c")
    assert details(figure) == "a &lt; b &amp; c"
    assert figure.data[0].name == "&lt;b&gt;J&lt;/b&gt;"


def test_below_its_title_every_figure_answers_its_question_with_a_number(figures):
    assert len({figure.layout.title.text for figure in figures}) == len(figures)
    histogram_figure, examples_figure, thresholds_figure = map(answer, figures)
    medians = [np.median(np.abs(jacobians(scale, n_tokens=1000))) for scale in (0.03, 0.004)]
    said = re.fullmatch(r"Half of the elements are below (.*) \(Traditional\), (.*) \(JSAE\)\.", histogram_figure)
    np.testing.assert_allclose([float(number) for number in said.groups()], medians, rtol=0.1)
    above = [100 * (np.abs(jacobians(scale)) >= 0.01).mean() for scale in (0.03, 0.004)]
    for sentence in (thresholds_figure, examples_figure):
        assert f"0.01 or more for {above[0]:.0f}% (Traditional), {above[1]:.0f}% (JSAE) of the elements" in sentence


def test_examples_that_are_divided_by_a_norm_are_compared_by_how_concentrated_they_are():
    equal, single = np.full((1, 10, 10), 3.0), np.zeros((1, 10, 10))
    single[0, 2, 3] = 0.1
    figure = jacobian_examples_figure(
        {TRADITIONAL: example(equal), JSAE: example(single)}, ["a"], SUBTITLE, "l2", seed=0
    )
    assert "10% (Traditional), 100% (JSAE) of the sum of |J|" in answer(figure)


def test_variants_are_told_apart_in_grey(figures):
    histogram_figure, _, thresholds_figure = figures
    for axis in ("x", "x2"):
        assert len({line.line.dash for line in panel(histogram_figure, axis).values()}) == 2
    four = jacobian_thresholds_figure(FOUR, SUBTITLE)
    assert len({bars.marker.pattern.shape for bars in four.data}) == 4
    assert len({bars.marker.pattern.shape for bars in thresholds_figure.data}) == 2


def test_a_figure_is_as_wide_as_what_it_is_shown_in(figures):
    assert [figure.layout.width for figure in figures] == [None] * 3
    assert all(figure.layout.autosize for figure in figures)


def test_its_page_has_a_title_grows_with_its_window_and_can_send_the_figure_nowhere(figures):
    for figure in figures:
        text = export.page(figure, "plotly.js", {"source": 'a "b" </script>'})
        assert f"<title>{figure.layout.title.text}</title>" in text and '<html lang="en">' in text
        assert '"responsive": true' in text and '"showSendToCloud": false' in text and "width:100%" in text


def test_a_variant_has_its_colour_in_every_figure(figures):
    histogram_figure, examples_figure, thresholds_figure = figures
    for variant in (TRADITIONAL, JSAE):
        lines = [trace.line.color for trace in histogram_figure.data if trace.name == variant.label]
        assert lines == [variant.colour] * 2
        assert [bar.marker.color for bar in thresholds_figure.data if bar.name == variant.label] == [variant.colour]
        titles = [axis.title.text for axis in examples_figure.select_yaxes() if axis.title.text]
        assert sum(variant.colour in title and variant.label in title for title in titles) == 1


def test_each_variant_is_in_the_legend_once(figures):
    histogram_figure, _, thresholds_figure = figures
    for figure in (histogram_figure, thresholds_figure):
        assert [trace.name for trace in figure.data if trace.showlegend is not False] == ["Traditional", "JSAE"]


def test_axes_name_their_unit(figures):
    histogram_figure, examples_figure, thresholds_figure = figures
    for figure in (histogram_figure, thresholds_figure):
        assert all("per unit of input" in axis.title.text for axis in figure.select_xaxes())
        assert all("%" in axis.title.text for axis in figure.select_yaxes())
    assert "per unit of input" in examples_figure.layout.coloraxis.colorbar.title.text


def test_figures_stay_small_as_json(figures):
    assert [len(figure.to_json()) < 32_000 for figure in figures] == [True, True, True]


@pytest.mark.parametrize(
    ("share", "told"),
    [
        (0, "0%"),
        (5e-5, "<0.01%"),
        (0.0043, "0.43%"),
        (0.052, "5.2%"),
        (0.994, "99%"),
        (0.9981, "99.8%"),
        (0.99999, ">99.9%"),
        (1, "100%"),
    ],
)
def test_a_share_is_told_in_two_digits_and_nearly_none_is_not_none_nor_nearly_all_all(share, told):
    assert percent(share) == told


def test_a_picture_is_a_png_below_100_kb_or_a_reason_and_a_remedy(figures):
    for figure in figures:
        picture, reason = png(figure)
        if picture is None:
            assert "Chromium" in reason and "BROWSER_PATH" in reason
        else:
            assert picture.startswith(b"\x89PNG") and len(picture) < 100_000 and not reason


@pytest.mark.parametrize(
    "draw",
    [
        lambda: jacobian_histogram_figure({}, SUBTITLE),
        lambda: jacobian_thresholds_figure({}, SUBTITLE),
        lambda: jacobian_examples_figure({}, TOKENS, SUBTITLE, None, seed=0),
    ],
)
def test_a_figure_of_no_variant_is_refused(draw):
    with pytest.raises(ValueError, match="no variant"):
        draw()


def test_torch_tensors_are_drawn_like_arrays():
    tensors = both(lambda scale: {name: torch.as_tensor(array) for name, array in histogram(scale).items()})
    assert jacobian_histogram_figure(tensors, SUBTITLE) == jacobian_histogram_figure(both(histogram), SUBTITLE)
    drawn = [
        jacobian_examples_figure(both(make), TOKENS, SUBTITLE, "l2", seed=0)
        for make in (examples, lambda scale: {name: torch.as_tensor(of) for name, of in examples(scale).items()})
    ]
    assert drawn[0] == drawn[1]


# histogram


def test_the_cumulative_distribution_ends_at_the_share_inside_the_range(histogram_figure):
    for variant, counted in both(histogram).items():
        inside = counted["hist"].sum() / (counted["hist"].sum() + counted["overflow"])
        line = panel(histogram_figure, "x2")[variant.label]
        assert line.y[0] == 0
        assert line.y[-1] == pytest.approx(100 * inside, abs=1e-9)
        assert line.x[-1] == counted["bin_edges"][-1]


def test_the_cumulative_distribution_is_the_share_of_elements_below_each_x(histogram_figure):
    for variant, scale in ((TRADITIONAL, 0.03), (JSAE, 0.004)):
        values = np.abs(jacobians(scale, n_tokens=1000))
        line = panel(histogram_figure, "x2")[variant.label]
        expected = [100 * (values < x).mean() for x in line.x]
        np.testing.assert_allclose(line.y, expected, atol=1e-3)  # an element may lie on an edge


def test_merging_bins_loses_no_element(histogram_figure):
    for variant, counted in both(histogram).items():
        line = panel(histogram_figure, "x")[variant.label]
        drawn = (line.y[:-1] * np.diff(line.x)).sum() / 0.001
        inside = counted["hist"].sum() / (counted["hist"].sum() + counted["overflow"])
        assert drawn == pytest.approx(100 * inside)


def test_bins_near_zero_are_drawn_as_they_were_counted(histogram_figure):
    for variant, counted in both(histogram).items():
        total = counted["hist"].sum() + counted["overflow"]
        line = panel(histogram_figure, "x")[variant.label]
        np.testing.assert_allclose(line.y[:20], 100 * counted["hist"][:20] / total)


def test_elements_above_the_range_are_mentioned_with_their_largest_share(histogram_figure):
    counted = both(histogram)[TRADITIONAL]
    percent = 100 * counted["overflow"] / (counted["hist"].sum() + counted["overflow"])
    assert percent > 0
    subtitle = details(histogram_figure)
    assert subtitle.endswith(f"at most {percent:.2g}% above 1.1")


def test_pointed_at_the_cumulative_distribution_says_its_own_numbers_and_no_others(histogram_figure):
    for line in panel(histogram_figure, "x2").values():
        assert line.hovertemplate == "|J| below %{x:.3~g}: %{y:.4~g}%"


def test_nothing_is_mentioned_when_nothing_is_above_the_range():
    counted = {variant: arrays | {"overflow": 0} for variant, arrays in both(histogram).items()}
    assert details(jacobian_histogram_figure(counted, SUBTITLE)) == SUBTITLE


def test_both_panels_show_nearly_all_elements_and_zoom_together(histogram_figure):
    right_end = histogram_figure.layout.xaxis.range[1]
    assert histogram_figure.layout.xaxis2.matches == "x"
    for line in panel(histogram_figure, "x2").values():
        assert np.interp(right_end, line.x, line.y) > 94
    assert right_end < 0.5


@pytest.mark.parametrize(("low", "high", "plain"), [(-3, 1, True), (-2.2, 4.9, True), (-6, 1, False), (0, 7, False)])
def test_the_numbers_of_a_logarithmic_axis_are_all_decimals_or_all_powers(low, high, plain):
    numbers = decade_numbers(low, high)
    assert (numbers.get("tickformat") == "~f") is plain and (numbers.get("exponentformat") == "power") is not plain


def test_normed_histograms_with_more_bins_are_drawn_too():
    edges = np.arange(1501) * 0.001
    counted = {"hist": np.ones(1500), "overflow": 0, "bin_edges": edges, "bin_centers": edges[1:] - 0.0005}
    figure = jacobian_histogram_figure({JSAE: counted}, SUBTITLE)
    np.testing.assert_allclose(panel(figure, "x")["JSAE"].y, 100 / 1500)


def test_a_histogram_with_all_elements_in_one_bin_is_drawn():
    hist = np.zeros(1100)
    hist[0] = 7
    figure = jacobian_histogram_figure({JSAE: histogram(0.01) | {"hist": hist, "overflow": 0}}, SUBTITLE)
    assert panel(figure, "x")["JSAE"].y[0] == 100
    assert np.isfinite(figure.layout.yaxis.range).all()


@pytest.mark.parametrize("bad", BAD_NUMBERS)
@pytest.mark.parametrize("name", ["hist", "overflow"])
def test_counts_that_are_negative_or_not_finite_are_refused(name, bad):
    counted = {key: np.array(value, dtype=float) for key, value in histogram(0.01).items()}
    counted[name].flat[0] = bad
    with pytest.raises(ValueError, match="'JSAE'.*negative or not finite"):
        jacobian_histogram_figure({JSAE: counted}, SUBTITLE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hist": np.ones(1099)}, r"'JSAE'.*hist \[1099\].*expected"),
        ({"hist": np.ones((2, 550))}, r"'JSAE'.*hist \[2, 550\].*expected"),
        ({"overflow": np.ones(2)}, r"'JSAE'.*overflow \[2\].*expected"),
        ({"hist": np.zeros(1100)}, "'JSAE' counts no element"),
        ({"bin_edges": np.zeros(1101)}, "'JSAE' do not increase"),
        ({"bin_edges": np.full(1101, np.nan)}, "'JSAE' do not increase"),
    ],
)
def test_a_histogram_that_does_not_fit_its_bins_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        jacobian_histogram_figure({JSAE: histogram(0.01) | change}, SUBTITLE)


def test_a_histogram_without_its_overflow_is_refused():
    counted = histogram(0.01)
    del counted["overflow"]
    with pytest.raises(ValueError, match="'JSAE' lacks overflow"):
        jacobian_histogram_figure({JSAE: counted}, SUBTITLE)


def test_variants_counted_in_different_bins_are_refused():
    other = histogram(0.01)
    other["bin_edges"] = other["bin_edges"] * 2
    with pytest.raises(ValueError, match="'JSAE' differ from those of 'Traditional'"):
        jacobian_histogram_figure({TRADITIONAL: histogram(0.01), JSAE: other}, SUBTITLE)


# thresholds


def test_bars_show_the_numbers_given_in_per_cent_with_the_value_on_each():
    reported = {0.02: 0.0194, 0.005: 0.771, 0.01: 0.583, 0.015: 0.44}
    (bars,) = jacobian_thresholds_figure({TRADITIONAL: reported}, SUBTITLE).data
    assert list(bars.x) == ["0.005", "0.01", "0.015", "0.02"]
    np.testing.assert_allclose(bars.y, [77.1, 58.3, 44.0, 1.94])
    assert list(bars.text) == ["77.1", "58.3", "44.0", "1.94"]


def test_a_share_too_small_to_write_is_not_written_as_zero():
    (bars,) = jacobian_thresholds_figure({JSAE: {0.01: 0.00002, 0.02: 0.0}}, SUBTITLE).data
    assert list(bars.text) == ["<0.01", "0.00"]


def test_the_axis_leaves_room_above_the_highest_bar():
    figure = jacobian_thresholds_figure(both(shares), SUBTITLE)
    assert figure.layout.yaxis.range[1] > 1.1 * max(max(bars.y) for bars in figure.data)


@pytest.mark.parametrize("bad", [*BAD_NUMBERS, 77.1])
def test_a_share_outside_zero_to_one_is_refused(bad):
    with pytest.raises(ValueError, match="'JSAE' has a share of"):
        jacobian_thresholds_figure({JSAE: {0.01: bad}}, SUBTITLE)


def test_variants_with_different_thresholds_are_refused():
    with pytest.raises(ValueError, match=r"'JSAE' has thresholds \[0.02\]"):
        jacobian_thresholds_figure({TRADITIONAL: {0.01: 0.5}, JSAE: {0.02: 0.5}}, SUBTITLE)


def test_bars_of_no_threshold_are_refused():
    with pytest.raises(ValueError, match="no threshold"):
        jacobian_thresholds_figure({JSAE: {}}, SUBTITLE)


FOUR = {
    Variant(label, colour): {0.005: 0.9 - drop, 0.01: 0.8 - drop, 0.015: 0.5 - drop, 0.02: 0.4 - drop}
    for label, colour, drop in (
        ("Traditional", "#0072B2", 0),
        ("JSAE", "#D55E00", 0.39),
        ("Traditional, randomised model", "#56B4E9", 0.1),
        ("JSAE, randomised model", "#E69F00", 0.38),
    )
}


def reported_traces(figure) -> dict:
    """By the variant over whose bars they are."""
    return {trace.offsetgroup: trace for trace in figure.data if trace.type == "scatter"}


def test_four_variants_have_four_bars_a_threshold_each_with_its_number():
    figure = jacobian_thresholds_figure(FOUR, SUBTITLE)
    assert [bars.name for bars in figure.data] == [variant.label for variant in FOUR]
    assert [len(bars.text) for bars in figure.data] == [4] * 4
    assert len({bars.offsetgroup for bars in figure.data}) == 4 and figure.layout.barmode == "group"


def test_reported_shares_are_open_diamonds_over_the_bars_of_their_variant():
    reported = {JSAE: {0.015: 0.3, 0.005: 0.7}, TRADITIONAL: {0.01: 0.6}}
    figure = jacobian_thresholds_figure(FOUR, SUBTITLE, reported)
    traces = reported_traces(figure)
    assert set(traces) == {"JSAE", "Traditional"}
    assert list(traces["JSAE"].x) == ["0.005", "0.015"]
    np.testing.assert_allclose(traces["JSAE"].y, [70, 30])
    np.testing.assert_allclose(traces["Traditional"].y, [60])
    assert {trace.marker.symbol for trace in traces.values()} == {"diamond"}
    assert {(trace.marker.color, trace.marker.line.color) for trace in traces.values()} == {("white", "#222222")}
    # side by side like the bars, whose groups they name
    assert figure.layout.scattermode == "group" and figure.layout.scattergap == figure.layout.bargap
    assert set(traces) <= {bars.offsetgroup for bars in figure.data if bars.type == "bar"}


def test_reported_shares_are_in_the_legend_once():
    reported = {JSAE: {0.015: 0.3}, TRADITIONAL: {0.01: 0.6}}
    figure = jacobian_thresholds_figure(FOUR, SUBTITLE, reported)
    names = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert names == [*(variant.label for variant in FOUR), "reported (Farnik et al., 2025)"]


@pytest.mark.parametrize("share", [0.39, 0.4, 0.41, 0.44])
def test_a_number_that_a_diamond_would_cover_is_written_above_the_diamond(share):
    figure = jacobian_thresholds_figure({JSAE: {0.01: 0.4, 0.02: 0.4}}, SUBTITLE, {JSAE: {0.01: share}})
    bars, diamonds = figure.data
    assert list(bars.text) == ["", "40.0"]
    assert list(diamonds.text) == ["40.0"] and diamonds.textposition == "top center"


@pytest.mark.parametrize("share", [0.2, 0.48])
def test_a_number_that_no_diamond_covers_stays_on_its_bar(share):
    figure = jacobian_thresholds_figure({JSAE: {0.01: 0.4}}, SUBTITLE, {JSAE: {0.01: share}})
    bars, diamonds = figure.data
    assert list(bars.text) == ["40.0"] and list(diamonds.text) == [""]


def test_numbers_beside_reported_shares_are_said_to_be_measured():
    figure = jacobian_thresholds_figure(FOUR, SUBTITLE, {JSAE: {0.01: 0.6}})
    assert details(figure) == SUBTITLE + " · numbers as measured here"


def test_the_axis_leaves_room_above_the_highest_diamond():
    figure = jacobian_thresholds_figure({JSAE: {0.01: 0.1}}, SUBTITLE, {JSAE: {0.01: 0.8}})
    assert figure.layout.yaxis.range[1] > 1.1 * 80


@pytest.mark.parametrize("reported", [None, {}, {JSAE: {}}, {JSAE: {0.03: 0.5}}])
def test_where_nothing_that_is_drawn_was_reported_the_figure_is_the_same(reported):
    assert jacobian_thresholds_figure(FOUR, SUBTITLE, reported) == jacobian_thresholds_figure(FOUR, SUBTITLE)


def test_reported_shares_of_a_variant_that_is_not_drawn_are_refused():
    with pytest.raises(ValueError, match="'JSAE' has reported shares, but is not drawn"):
        jacobian_thresholds_figure({TRADITIONAL: {0.01: 0.5}}, SUBTITLE, {JSAE: {0.01: 0.5}})


@pytest.mark.parametrize("bad", [*BAD_NUMBERS, 77.1])
def test_a_reported_share_outside_zero_to_one_is_refused(bad):
    with pytest.raises(ValueError, match="'JSAE' has a share of"):
        jacobian_thresholds_figure({JSAE: {0.01: 0.5}}, SUBTITLE, {JSAE: {0.01: bad}})


# export


def exported_from(monkeypatch, pixels: np.ndarray) -> tuple[bytes, np.ndarray]:
    """What becomes of RGB pixels [height, width, 3] that the browser draws: the picture, and its pixels again."""
    drawn = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert("RGBA").save(drawn, "PNG")
    monkeypatch.setattr("jsae_core.figures.export.browser.picture", lambda figure, kind="png": drawn.getvalue())
    picture, reason = png(jacobian_thresholds_figure({JSAE: {0.01: 0.5}}, SUBTITLE))
    assert not reason
    return picture, np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def test_a_picture_of_at_most_256_colours_keeps_every_pixel(monkeypatch):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (200, 3))[generator.integers(0, 200, (30, 40))]
    _, exported = exported_from(monkeypatch, pixels)
    assert (exported == pixels).all()


def test_a_picture_of_more_colours_keeps_the_frequent_ones_and_is_close_in_all(monkeypatch):
    pixels = np.zeros((64, 64, 3))
    pixels[:32] = (0, 114, 178)
    pixels[40:, :32] = np.random.default_rng(0).integers(0, 40, (24, 32, 3))
    _, exported = exported_from(monkeypatch, pixels)
    assert (exported[:32] == pixels[:32]).all()
    assert np.abs(exported - pixels).max() < 16


def test_a_picture_is_made_smaller(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 2, (100, 100, 1)).repeat(3, axis=2) * 255
    picture, _ = exported_from(monkeypatch, pixels)
    drawn = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).convert("RGBA").save(drawn, "PNG")
    assert len(picture) < 0.6 * len(drawn.getvalue())


# examples


@pytest.mark.parametrize(("k_out", "k_in"), [(16, 16), (5, 9), (1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_shuffling_moves_only_whole_rows_and_whole_columns(k_out, k_in, seed):
    matrix = np.arange(k_out * k_in).reshape(k_out, k_in)  # an element's value tells where it came from
    from_row, from_column = np.divmod(permute_rows_and_columns(matrix, seed), k_in)
    assert (from_row == from_row[:, :1]).all()  # all of an output row came from one row
    assert (from_column == from_column[:1]).all()  # all of an output column came from one column
    assert sorted(from_row[:, 0]) == list(range(k_out))
    assert sorted(from_column[0]) == list(range(k_in))


def test_rows_are_shuffled_independently_of_columns():
    from_row, from_column = np.divmod(permute_rows_and_columns(np.arange(256).reshape(16, 16), 0), 16)
    assert list(from_row[:, 0]) != list(range(16))
    assert list(from_column[0]) != list(range(16))
    assert list(from_row[:, 0]) != list(from_column[0])


def test_the_same_seed_shuffles_alike_and_another_differently():
    matrix = np.arange(256).reshape(16, 16)
    first, again, other = (permute_rows_and_columns(matrix, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_each_matrix_of_a_figure_is_shuffled_differently():
    matrix = np.arange(256).reshape(16, 16)
    figure = jacobian_examples_figure({JSAE: example(np.stack([matrix, matrix]))}, ["a", "b"], SUBTITLE, None, seed=0)
    assert (figure.data[0].z != figure.data[1].z).any()


@pytest.mark.parametrize(
    ("normalise", "norm"),
    [(None, lambda j: 1), ("l1", lambda j: np.abs(j).sum()), ("l2", lambda j: np.sqrt((j**2).sum()))],
)
def test_panels_hold_each_jacobian_over_its_own_norm_variants_in_rows_and_tokens_in_columns(normalise, norm):
    figure = jacobian_examples_figure(both(examples), TOKENS, SUBTITLE, normalise, seed=0)
    given = [jacobian for variant in both(jacobians).values() for jacobian in variant]
    assert len(figure.data) == len(given) == 8
    for trace, jacobian in zip(figure.data, given, strict=True):
        expected = np.abs(jacobian) / norm(jacobian)
        np.testing.assert_allclose(np.sort(trace.z, axis=None), np.sort(expected, axis=None), rtol=1e-5)
    rows = [figure.layout[trace.yaxis.replace("y", "yaxis")].domain for trace in figure.data]
    assert rows[0] == rows[3] and rows[4] == rows[7] and rows[0][0] > rows[4][1]


def test_pointed_at_an_element_names_its_latents_its_token_and_its_variant():
    matrices = np.arange(2 * 3 * 4).reshape(2, 3, 4) / 24
    figure = jacobian_examples_figure({JSAE: example(matrices)}, [" a", "b"], SUBTITLE, None, seed=0)
    for token, (trace, name) in enumerate(zip(figure.data, ("␣a", "b"), strict=True)):
        assert trace.hovertemplate.startswith(f"JSAE, token {name}<br>input latent %{{x}} → output latent %{{y}}")
        for row, output in enumerate(trace.y):
            for column, latent in enumerate(trace.x):
                expected = matrices[token, output - 1000 * token, latent - 1000 * token - 500]
                assert trace.z[row][column] == pytest.approx(expected)


def test_latents_that_do_not_fit_the_jacobian_are_refused():
    wrong = example(jacobians(0.1)) | {"input_latents": np.zeros((4, 3), int)}
    with pytest.raises(ValueError, match=r"input_latents of 'JSAE' are \[4, 3\]; expected \[4, 16\]"):
        jacobian_examples_figure({JSAE: wrong}, TOKENS, SUBTITLE, None, seed=0)


def test_normalisations_of_one_seed_show_the_same_shuffling():
    raw, l2 = (
        jacobian_examples_figure(both(examples), TOKENS, SUBTITLE, normalise, seed=3).data[0].z
        for normalise in (None, "l2")
    )
    np.testing.assert_allclose(raw / np.linalg.norm(raw), l2, rtol=1e-5)


def test_all_panels_share_one_colour_scale_that_starts_at_zero(examples_figure):
    assert {trace.coloraxis for trace in examples_figure.data} == {"coloraxis"}
    scale = examples_figure.layout.coloraxis
    drawn = np.concatenate([trace.z.ravel() for trace in examples_figure.data])
    assert scale.cmin == 0
    assert 0.98 < (drawn <= scale.cmax).mean() < 1
    assert scale.colorbar.ticktext[-1].startswith("≥")


def test_whitespace_in_tokens_is_visible_long_ones_are_cut_and_markup_is_escaped():
    tokens = [" a b", "\n\t", "x" * 40, "<b>\x00"]
    figure = jacobian_examples_figure({JSAE: examples(0.1)}, tokens, SUBTITLE, None, seed=0)
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == ["␣a␣b", "↵⇥", "x" * 11 + "…", "&lt;b&gt;\\x00"]


@pytest.mark.parametrize("normalise", [None, "l1", "l2"])
def test_a_jacobian_of_zeros_is_drawn_as_zeros(normalise):
    figure = jacobian_examples_figure({JSAE: example(np.zeros((1, 4, 4)))}, ["a"], SUBTITLE, normalise, seed=0)
    assert (figure.data[0].z == 0).all()
    assert figure.layout.coloraxis.cmax > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_jacobians_that_are_not_finite_are_refused(bad):
    values = jacobians(0.1)
    values[1, 2, 3] = bad
    with pytest.raises(ValueError, match="'JSAE' hold NaN or infinite"):
        jacobian_examples_figure({JSAE: example(values)}, TOKENS, SUBTITLE, None, seed=0)


@pytest.mark.parametrize("shape", [(3, 16, 16), (4, 16), (4, 0, 16)])
def test_jacobians_that_are_not_one_matrix_a_token_are_refused(shape):
    with pytest.raises(ValueError, match=r"'JSAE' are \[.*expected \[4, k_out, k_in\]"):
        jacobian_examples_figure({JSAE: example(np.ones(shape))}, TOKENS, SUBTITLE, None, seed=0)


def test_examples_of_no_token_are_refused():
    with pytest.raises(ValueError, match="no token"):
        jacobian_examples_figure({JSAE: example(np.ones((0, 4, 4)))}, [], SUBTITLE, None, seed=0)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="unknown normalisation 'l3'"):
        jacobian_examples_figure({JSAE: examples(0.1)}, TOKENS, SUBTITLE, "l3", seed=0)


def runs(number: int) -> bool:
    """Whether this process does. One that ended stays listed until its parent has asked how, which a container's first
    process may never do."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def silent_browser(tmp_path, monkeypatch):
    """A browser that starts and never answers; which of those that were started still run."""
    script, started = tmp_path / "browser", tmp_path / "started"
    script.write_text(f"#!/bin/sh\necho $$ >> {started}\nexec sleep 1000\n", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(script))
    monkeypatch.setattr(export, "PATIENCE", 0.5)
    export.browser.close()
    yield lambda: [number for number in map(int, started.read_text(encoding="utf-8").split()) if runs(number)]
    export.browser.close()


def test_a_browser_that_does_not_answer_is_given_up_ended_and_not_asked_again(silent_browser, tmp_path):
    figure = jacobian_thresholds_figure({JSAE: {0.01: 0.5}}, SUBTITLE)
    drawn, reason = export.pictures(figure)  # two at once
    assert drawn is None
    assert "not answer" in reason and "BROWSER_PATH" in reason
    picture, reason = png(figure)
    assert picture is None and "was not asked again" in reason
    assert len((tmp_path / "started").read_text(encoding="utf-8").split()) == 1
    end = time.monotonic() + 10  # a process that was killed takes a moment to end
    while silent_browser() and time.monotonic() < end:
        time.sleep(0.05)
    assert not silent_browser()
