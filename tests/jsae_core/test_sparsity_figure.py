"""What the figure of Jacobian sparsity promises, read from its data."""

import re

import numpy as np
import pandas as pd
import pytest

from jsae_core.figures import Variant, jacobian_histogram_figure, jacobian_sparsity_figure
from jsae_core.figures.export import png
from tests.jsae_core.subtitles import answer, details

TRADITIONAL, JSAE = Variant("Traditional", "#0072B2"), Variant("JSAE", "#D55E00")
SUBTITLE = "pythia-70m, layer 3"
PREFIXES = {"": 1100, "l2t.": 1500, "l4t.": 1500, "linft.": 1500}
UNIT = "|J| (output per unit of input)"
SCALED = [UNIT, f"threshold on {UNIT}", f"mean {UNIT}"]
NORMED = ["|J| / root mean square", "|J| / fourth-power mean", "|J| / maximum"]


def counted(sizes: dict[str, float], n: int = 1000) -> dict[str, np.ndarray]:
    """Histograms of n values each: half of them at the size given under the name of the counts, half below 0.001."""
    tensors = {}
    for prefix, n_bins in PREFIXES.items():
        edges = np.arange(n_bins + 1) * 0.001
        tensors[f"{prefix}bin_edges"] = edges
        for kind in ("", "mean_jac_"):
            values = np.repeat([0.0005, sizes.get(f"{prefix}{kind}hist", 0.0305)], n // 2)
            tensors[f"{prefix}{kind}hist"] = np.histogram(values, edges)[0]
            tensors[f"{prefix}{kind}overflow"] = np.array((values > edges[-1]).sum())
    return tensors


def quality(
    kurtosis: float = 5.0, l1_over_l2: float = 0.75, se: float = 0.01, accounted_share: float = 0.9
) -> dict[str, float]:
    return {
        "kurtosis": kurtosis,
        "kurtosis_se": se,
        "l1_over_l2": l1_over_l2,
        "l1_over_l2_se": se / 100,
        "accounted_share": accounted_share,
        "accounted_share_se": se,
    }


def draw(sizes=None, n_variants: int = 2, **changes):
    variants = [TRADITIONAL, JSAE][:n_variants]
    return jacobian_sparsity_figure(
        {variant: counted(sizes or {}) for variant in variants},
        {variant: quality(**changes) for variant in variants},
        SUBTITLE,
    )


def titled(figure, title: str) -> list:
    """The panels, each with its traces and axes, whose horizontal axis has that title."""
    panels = {}
    for trace in figure.data:
        axis = figure.layout[trace.xaxis.replace("x", "xaxis")]
        if axis.title.text.startswith(title):
            vertical = figure.layout[trace.yaxis.replace("y", "yaxis")]
            panels.setdefault(trace.xaxis, ([], axis, vertical))[0].append(trace)
    return list(panels.values())


def largest_drawn(trace) -> float:
    """Where the last bin with elements begins."""
    return trace.x[:-1][np.flatnonzero(trace.y[:-1])[-1]]


def test_every_panel_draws_the_counts_it_is_named_after():
    sizes = {"hist": 0.0025, "l2t.hist": 0.0045, "l4t.hist": 0.0065, "linft.hist": 0.0085}
    figure = draw(sizes)
    histogram, cumulative = titled(figure, UNIT)
    drawn = [histogram, *(titled(figure, name)[0] for name in NORMED)]
    for (traces, _, _), size in zip(drawn, sizes.values(), strict=True):
        assert [largest_drawn(trace) for trace in traces] == pytest.approx([size - 0.0005] * 2)
    for trace in cumulative[0]:
        np.testing.assert_allclose(trace.y[trace.x <= 0.0025][1:], 50)
        np.testing.assert_allclose(trace.y[trace.x > 0.0025], 100)


def test_bars_show_the_share_of_elements_above_each_threshold():
    ((bars, _, axis),) = titled(draw({"hist": 0.0125}), f"threshold on {UNIT}")
    assert list(bars[0].x) == ["0.005", "0.01", "0.015", "0.02"]
    np.testing.assert_allclose(bars[0].y, [50, 50, 0, 0])
    assert "%" in axis.title.text


def test_what_is_above_the_last_bin_counts_as_above():
    figure = draw({"hist": 2.0, "mean_jac_hist": 2.0})
    ((bars, _, _),), ((lines, _, _),) = titled(figure, f"threshold on {UNIT}"), titled(figure, f"mean {UNIT}")
    np.testing.assert_allclose(bars[0].y, 50)
    np.testing.assert_allclose(lines[0].y, 50)


def test_the_share_of_pairs_with_a_larger_mean_counts_the_pairs_that_are_never_active_together():
    ((lines, x, y),) = titled(draw({"mean_jac_hist": 0.0125}), f"mean {UNIT}")
    assert (x.type, y.type) == ("log", "log")
    np.testing.assert_allclose(lines[0].y, 50)
    assert lines[0].x[-1] == pytest.approx(0.012)
    assert x.range[0] <= np.log10(0.012) - 0.9
    assert 10 ** x.range[1] >= 0.012


def logarithmic(size: float, n: int = 1000) -> dict[str, np.ndarray]:
    """n values of that size in logarithmic bins, and as many means, half of them zero."""
    edges = np.array([0.0, *np.geomspace(1e-12, 1e12, 401), np.inf])
    counts = np.histogram(np.full(n, size), edges)[0]
    means = np.histogram(np.repeat([0.0, size], n // 2), edges)[0]
    return {
        "log_edges": edges,
        "log_hist": counts,
        "log_mean_hist": means,
        "often": np.array(20),
        "n_often": np.array(30),
        "count_jac": np.zeros(40),
    }


@pytest.mark.parametrize("size", [3e-6, 40.0])
def test_on_another_scale_than_the_paper_s_bins_the_axes_are_logarithmic_and_the_subtitle_says_so(size):
    histograms = {variant: counted({"hist": size}) | logarithmic(size) for variant in (TRADITIONAL, JSAE)}
    figure = jacobian_sparsity_figure(histograms, dict.fromkeys(histograms, quality()), SUBTITLE)
    said = details(figure)
    assert "the paper's bins do not fit this scale" in said
    for traces, x, _ in titled(figure, UNIT):
        assert x.type == "log" and x.range[0] <= np.log10(size) <= x.range[1]
        assert all(np.isfinite(np.asarray(trace.y, dtype=float)).all() for trace in traces)
    alone = jacobian_histogram_figure(histograms, SUBTITLE)
    assert alone.layout.xaxis.type == "log" and "do not fit" in details(alone)


def test_where_the_paper_s_bins_fit_they_are_drawn():
    histograms = {JSAE: counted({"hist": 0.0305}) | logarithmic(0.0305)}
    figure = jacobian_histogram_figure(histograms, SUBTITLE)
    assert figure.layout.xaxis.type != "log" and details(figure) == SUBTITLE


def test_means_of_often_active_output_latents_are_drawn_where_they_were_counted_and_their_share_is_said():
    histograms = {JSAE: counted({"hist": 0.0305}) | logarithmic(0.0125)}
    figure = jacobian_sparsity_figure(histograms, {JSAE: quality()}, SUBTITLE)
    (((line,), _, _),) = titled(figure, f"mean {UNIT}")
    np.testing.assert_allclose(line.y, 50)
    assert line.x[-1] == pytest.approx(0.0125, rel=0.2)
    said = details(figure)
    assert "active in 20 tokens or more, 75.0% of them" in said


def test_pairs_that_all_have_the_smallest_means_leave_the_axes_finite():
    ((lines, x, y),) = titled(draw({"mean_jac_hist": 0.0005}), f"mean {UNIT}")
    assert lines[0].y.size == 0
    assert np.isfinite([*x.range, *y.range]).all()
    assert x.range[0] < x.range[1]


@pytest.mark.parametrize(("title", "written"), [("kurtosis", "7.00 ± 0.04"), ("L1/L2", "0.6500 ± 0.0004")])
def test_kurtosis_and_l1_over_l2_are_bars_with_two_standard_errors_written_beside(title, written):
    figure = draw(kurtosis=7, l1_over_l2=0.65, se=0.02)
    (((bars,), x, _),) = titled(figure, title)
    assert list(bars.text) == [written] * 2
    assert list(bars.x) == [float(written.split()[0])] * 2
    assert "± 2 SE, by document" in details(figure)
    assert x.range[0] == 0 and x.range[1] > 1.5 * bars.x[0]


def test_the_direction_of_more_sparseness_is_on_the_axis():
    figure = draw()
    assert "higher: sparser" in titled(figure, "kurtosis")[0][1].title.text
    assert "lower: sparser" in titled(figure, "L1/L2")[0][1].title.text


def test_qualities_in_another_order_keep_their_variant():
    histograms = {TRADITIONAL: counted({}), JSAE: counted({})}
    figure = jacobian_sparsity_figure(histograms, {JSAE: quality(9), TRADITIONAL: quality(3)}, SUBTITLE)
    ((bars,), _, _) = titled(figure, "kurtosis")[0]
    assert dict(zip(bars.marker.color, bars.x, strict=True)) == {TRADITIONAL.colour: 3, JSAE.colour: 9}
    assert list(bars.customdata) == ["Traditional", "JSAE"]


def test_what_follows_the_scale_of_j_is_in_group_a_and_has_its_unit_and_the_rest_in_group_b_has_none():
    figure = draw()
    headings = {annotation.text[3:4]: annotation.y for annotation in figure.layout.annotations}
    for group in (SCALED, [*NORMED, "kurtosis", "L1/L2"]):
        for title in group:
            for _, x, y in titled(figure, title):
                above_b = y.domain[0] > headings["B"]
                assert above_b == (group is SCALED) == ("per unit of input" in x.title.text)
                assert y.domain[1] < headings["A"]


def test_the_subtitle_says_how_to_read_the_groups():
    subtitle = details(draw())
    assert subtitle.startswith(SUBTITLE)
    assert subtitle.endswith("where only A differs, J is merely smaller; where B differs, too, it is sparser")


def test_normed_histograms_share_one_density_axis_and_the_plain_panels_zoom_together():
    figure = draw({"l2t.hist": 0.4, "linft.hist": 0.2})
    assert len({titled(figure, name)[0][2].range for name in NORMED}) == 1
    (_, first, _), (_, second, _) = titled(figure, UNIT)
    assert second.matches == "x" and first.range == second.range


def test_a_variant_has_its_colour_in_all_nine_panels_and_is_in_the_legend_once():
    figure = draw()
    for place, variant in enumerate((TRADITIONAL, JSAE)):
        own = [trace for trace in figure.data if trace.name == variant.label]
        lines = [trace.line.color if trace.type == "scatter" else trace.marker.color for trace in own]
        assert lines == [variant.colour] * 7
        for title in ("kurtosis", "L1/L2"):
            assert titled(figure, title)[0][0][0].marker.color[place] == variant.colour
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == ["Traditional", "JSAE"]


def test_variants_are_told_apart_in_grey():
    figure = draw()
    assert {trace.line.dash for trace in figure.data if trace.type == "scatter"} == {"solid", "dash"}
    (((bars,), _, _),) = titled(figure, "kurtosis")
    assert list(bars.marker.pattern.shape) == ["", "/"]


def test_the_answer_has_a_measure_with_the_scale_and_two_without():
    said = answer(draw({"hist": 0.0125}, kurtosis=7.0, l1_over_l2=0.65))
    assert re.fullmatch(
        r"Median \|J\|: .* \(Traditional\), .* \(JSAE\)\. Whatever the scale: "
        r"kurtosis 7\.00 \(Traditional\), 7\.00 \(JSAE\); L1/L2 0\.65 \(Traditional\), 0\.65 \(JSAE\)\.",
        said,
    )


def test_panels_do_not_overlap():
    figure = draw()
    taken = [
        (x.domain, y.domain) for title in [*SCALED, *NORMED, "kurtosis", "L1/L2"] for _, x, y in titled(figure, title)
    ]
    assert len(taken) == 9
    for place, (x, y) in enumerate(taken):
        for other_x, other_y in taken[:place]:
            beside = x[1] < other_x[0] or other_x[1] < x[0]
            assert beside or y[1] < other_y[0] or other_y[1] < y[0]


def test_a_row_of_a_table_is_drawn_like_a_dictionary():
    row = pd.DataFrame([quality()]).iloc[0]
    assert jacobian_sparsity_figure({JSAE: counted({})}, {JSAE: row}, SUBTITLE) == jacobian_sparsity_figure(
        {JSAE: counted({})}, {JSAE: quality()}, SUBTITLE
    )


def test_names_that_look_like_markup_are_drawn_as_they_stand():
    variant = Variant("J < 1 & 2", "#D55E00")
    figure = jacobian_sparsity_figure({variant: counted({})}, {variant: quality()}, SUBTITLE)
    assert {trace.name for trace in figure.data if trace.name} == {"J &lt; 1 &amp; 2"}
    assert "J < 1 & 2" not in str([trace.hovertemplate for trace in figure.data])


def test_a_picture_of_four_variants_is_below_100_kb():
    variants = [
        Variant(f"variant {n}", colour) for n, colour in enumerate(["#0072B2", "#D55E00", "#56B4E9", "#E69F00"])
    ]
    figure = jacobian_sparsity_figure(
        {variant: counted({"hist": 0.01 * (n + 1)}) for n, variant in enumerate(variants)},
        {variant: quality(kurtosis=3 + n) for n, variant in enumerate(variants)},
        SUBTITLE,
    )
    picture, reason = png(figure)
    assert reason if picture is None else len(picture) < 100_000


@pytest.mark.parametrize(
    "name", ["hist", "mean_jac_hist", "mean_jac_overflow", "l2t.hist", "l4t.overflow", "linft.hist"]
)
def test_histograms_that_lack_something_are_refused(name):
    histogram = counted({})
    del histogram[name]
    with pytest.raises(ValueError, match=f"'JSAE' lacks {name}"):
        jacobian_sparsity_figure({JSAE: histogram}, {JSAE: quality()}, SUBTITLE)


@pytest.mark.parametrize("name", ["hist", "mean_jac_hist", "l4t.hist"])
def test_counts_that_are_not_finite_are_refused_with_their_name(name):
    histogram = counted({})
    histogram[name] = np.full(histogram[name].shape, np.nan)
    with pytest.raises(ValueError, match=f"'JSAE' holds counts in {name}.*not finite"):
        jacobian_sparsity_figure({JSAE: histogram}, {JSAE: quality()}, SUBTITLE)


@pytest.mark.parametrize("name", list(quality()))
def test_a_quality_that_lacks_something_is_refused(name):
    numbers = quality()
    del numbers[name]
    with pytest.raises(ValueError, match=f"'JSAE' lack {name}"):
        jacobian_sparsity_figure({JSAE: counted({})}, {JSAE: numbers}, SUBTITLE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("name", [name for name in quality() if name != "accounted_share"])
def test_a_quality_that_is_negative_or_not_finite_is_refused(name, bad):
    with pytest.raises(ValueError, match=f"'JSAE' has a {name} of {bad}"):
        jacobian_sparsity_figure({JSAE: counted({})}, {JSAE: quality() | {name: bad}}, SUBTITLE)


def test_histograms_and_qualities_of_different_variants_are_refused():
    with pytest.raises(ValueError, match="histograms are of Traditional, but the numbers of JSAE"):
        jacobian_sparsity_figure({TRADITIONAL: counted({})}, {JSAE: quality()}, SUBTITLE)


def test_a_figure_of_no_variant_is_refused():
    with pytest.raises(ValueError, match="no variant"):
        jacobian_sparsity_figure({}, {}, SUBTITLE)
