"""What the figure of interventions promises, read from its data."""

import numpy as np
import pandas as pd
import pytest

from jsae_core.figures import Variant, ablation_figure
from jsae_core.figures.export import page
from tests.jsae_core.subtitles import answer, details

TRADITIONAL, JSAE = Variant("Traditional", "#0072B2"), Variant("JSAE", "#D55E00")
SUBTITLE = "pythia-70m, layer 3 · 1000 tokens of C4 · k = 16, λ = 1"


def table(*rows: tuple[float, float, str]) -> pd.DataFrame:
    """Samples from their (jacobian, change, agreement), drawn in this order."""
    samples = pd.DataFrame(rows, columns=["jacobian", "change", "agreement"])
    samples["published"] = np.where((samples["jacobian"] + samples["change"]).abs() < 0.1, "line", "other")
    places = np.arange(len(samples))
    return samples.assign(drawn=places, input_latent=100 + places, output_latent=200 + places)


def many(n: int, scale: float) -> pd.DataFrame:
    """As the measure makes them, in token order, which is not the order of drawing."""
    generator = np.random.default_rng(n)
    jacobian = scale * generator.standard_t(2, n)
    change = np.where(generator.random(n) < 0.8, -jacobian * generator.normal(1, 0.1, n), -0.4)
    close = np.abs(jacobian + change) < 0.1 * np.abs(jacobian)
    small = np.maximum(np.abs(jacobian), np.abs(change)) <= 0.01
    return pd.DataFrame(
        {
            "jacobian": jacobian.astype(np.float32),
            "change": change.astype(np.float32),
            "agreement": np.select([change == -0.4, small, close], ["dropped", "negligible", "line"], "off"),
            "published": np.where(np.abs(jacobian + change) < 0.1, "line", "other"),
            "drawn": generator.permutation(n),
            "input_latent": generator.integers(0, 1024, n),
            "output_latent": generator.integers(0, 1024, n),
        }
    )


FIVE = table(
    (0.1, -0.1, "line"), (-0.2, 0.21, "line"), (0.001, 0.0, "negligible"), (0.3, 0.3, "off"), (0.004, -0.5, "dropped")
)


@pytest.fixture(scope="module")
def figure():
    return ablation_figure({TRADITIONAL: many(5000, 0.05), JSAE: many(3000, 0.005)}, SUBTITLE)


def points(figure, label: str) -> list:
    return list(figure.select_traces({"mode": "markers", "name": label}))


def coordinates(figure, label: str) -> list[tuple[float, float]]:
    return sorted(
        (float(x), float(y)) for trace in points(figure, label) for x, y in zip(trace.x, trace.y, strict=True)
    )


def marginals(figure, label: str, fill: str) -> list:
    return [trace for trace in figure.select_traces({"type": "scatter", "fill": fill}) if trace.name == label]


def bars(figure) -> dict:
    return {bar.name: bar for bar in figure.select_traces({"type": "bar"})}


def axis_of(figure, trace, axis: str):
    return figure.layout[trace[f"{axis}axis"].replace(axis, f"{axis}axis")]


def notes(figure) -> list[str]:
    return [note.text for note in figure.layout.annotations]


# scatter


def test_each_sample_is_a_point_at_the_magnitudes_of_its_jacobian_and_its_change():
    samples = table((0.1, -0.11, "line"), (-0.2, 0.3, "off"), (0.006, 0.007, "negligible"))
    expected = [(0.006, 0.007), (0.1, 0.11), (0.2, 0.3)]
    np.testing.assert_allclose(coordinates(ablation_figure({JSAE: samples}, SUBTITLE), "JSAE"), expected, rtol=1e-6)


def test_both_axes_of_every_scatter_are_logarithmic_alike_and_zoom_together(figure):
    axes = [axis_of(figure, points(figure, name)[0], axis) for name in ("Traditional", "JSAE") for axis in "xy"]
    assert {axis.type for axis in axes} == {"log"}
    assert len({axis.range for axis in axes}) == 1
    assert axes[0].matches == axes[2].plotly_name.replace("axis", "")
    assert axes[3].matches == axes[1].plotly_name.replace("axis", "")


def test_no_variant_hides_another(figure):
    traditional, jsae = (axis_of(figure, points(figure, name)[0], "y") for name in ("Traditional", "JSAE"))
    assert traditional.domain[0] > jsae.domain[1]


def test_zeros_of_change_are_on_the_lower_edge_which_is_labelled_and_mentioned():
    figure = ablation_figure({JSAE: FIVE}, SUBTITLE)
    axis = axis_of(figure, points(figure, "JSAE")[0], "y")
    lower_edge = axis.tickvals[0]
    assert axis.ticktext[0].startswith("≤ 10") and -0.1 < axis.range[0] - np.log10(lower_edge) < 0
    assert (0.001, lower_edge) in [(pytest.approx(x), pytest.approx(y)) for x, y in coordinates(figure, "JSAE")]
    assert details(figure) == SUBTITLE + " · zeros on the lower edges"


def test_nothing_is_remarked_where_every_sample_is_drawn_where_it_is():
    samples = table((0.1, -0.1, "line"), (0.2, -0.3, "off"))
    assert details(ablation_figure({JSAE: samples}, SUBTITLE)) == SUBTITLE


def test_tiny_values_do_not_stretch_the_axes_and_are_drawn_on_the_edge():
    samples = pd.concat([many(1000, 0.05), table((1e-7, -1e-7, "negligible")).assign(drawn=0)], ignore_index=True)
    figure = ablation_figure({JSAE: samples}, SUBTITLE)
    axis = axis_of(figure, points(figure, "JSAE")[0], "x")
    assert axis.range[1] - axis.range[0] < 6
    assert min(coordinates(figure, "JSAE")) == pytest.approx((axis.tickvals[0], axis.tickvals[0]))


def test_axes_never_have_more_decades_than_can_be_labelled():
    samples = table(*[(1e-30, 0.0, "negligible")] * 50, (5.0, -5.0, "line"))
    axis = axis_of(figure := ablation_figure({JSAE: samples}, SUBTITLE), points(figure, "JSAE")[0], "x")
    assert len(axis.tickvals) <= 8


def test_every_point_is_inside_the_axes(figure):
    # Plotly does not draw a point that is outside by as little as the rounding to float32
    zeros = ablation_figure({JSAE: FIVE, TRADITIONAL: table((0.0, 0.0, "negligible"))}, SUBTITLE)
    for drawn in (figure, zeros):
        for name in ("Traditional", "JSAE"):
            lower, upper = axis_of(drawn, points(drawn, name)[0], "x").range
            values = np.log10(coordinates(drawn, name))
            assert values.min() > lower and values.max() < upper


def test_at_most_2000_points_are_drawn_those_drawn_first_and_that_is_remarked(figure):
    for name, samples in (("Traditional", many(5000, 0.05)), ("JSAE", many(3000, 0.005))):
        first = samples[samples["drawn"] < 2000]
        drawn = np.concatenate([trace.customdata for trace in points(figure, name)])
        assert sorted(drawn[:, 2]) == sorted(first["jacobian"])
    assert "2,000 of 5,000 samples drawn as points" in details(figure)


def test_the_line_and_the_border_of_the_negligible_are_drawn_in_every_scatter_and_named_once(figure):
    lower, upper = 10 ** np.array(axis_of(figure, points(figure, "JSAE")[0], "x").range)
    for name, corner in (("|change| = |J|", (upper, upper)), ("below: negligible", (0.01, 0.01))):
        drawn = [trace for trace in figure.data if trace.name == name]
        assert {trace.yaxis for trace in drawn} == {points(figure, label)[0].yaxis for label in ("Traditional", "JSAE")}
        assert [trace.showlegend for trace in drawn] == [True, False]
        for trace in drawn:
            np.testing.assert_allclose((trace.x[1], trace.y[1]), corner)
            assert min(trace.x) == pytest.approx(lower)


def test_the_border_of_the_negligible_is_on_the_axes_even_if_all_samples_are_far_from_it():
    for samples in (table((5.0, -5.0, "line")), table((0.0, 0.0, "negligible"))):
        figure = ablation_figure({JSAE: samples}, SUBTITLE)
        lower, upper = axis_of(figure, points(figure, "JSAE")[0], "x").range
        assert lower <= -3 and upper > -1


def test_hovering_tells_which_latents_their_signed_values_and_the_agreement_in_words():
    figure = ablation_figure({JSAE: FIVE}, SUBTITLE)
    said = {
        tuple(np.round(row, 4)): trace.hovertemplate.split(":")[0]
        for trace in points(figure, "JSAE")
        for row in trace.customdata.astype(float)
    }
    assert said == {
        (100, 200, 0.1, -0.1): "on the line",
        (101, 201, -0.2, 0.21): "on the line",
        (102, 202, 0.001, 0.0): "negligible",
        (103, 203, 0.3, 0.3): "off the line",
        (104, 204, 0.004, -0.5): "dropped",
    }


# marginals


@pytest.mark.parametrize(("fill", "along", "across", "column"), [("tozeroy", "x", "y", 0), ("tozerox", "y", "x", 1)])
def test_marginals_are_per_cent_of_all_samples_in_bins_zeros_in_the_first(fill, along, across, column):
    samples = pd.concat([many(5000, 0.05), table((0.0, 0.0, "negligible"))], ignore_index=True)
    (line,) = marginals(ablation_figure({JSAE: samples}, SUBTITLE), "JSAE", fill)
    edges, percent = np.array(line[along]), np.array(line[across])
    assert percent[:-1].sum() == pytest.approx(100)
    values = samples[["jacobian", "change"]].abs().to_numpy()[:, column]
    assert percent[0] == pytest.approx(100 * (values < edges[1]).mean())
    middle = len(edges) // 2
    expected = 100 * ((values >= edges[middle]) & (values < edges[middle + 1])).mean()
    assert percent[middle] == pytest.approx(expected)


def test_marginals_share_the_axis_of_the_scatter_they_stand_beside_and_one_scale(figure):
    scales = set()
    for name in ("Traditional", "JSAE"):
        (above,), (beside,) = (marginals(figure, name, fill) for fill in ("tozeroy", "tozerox"))
        scatter = points(figure, name)[0]
        assert axis_of(figure, above, "x").range == axis_of(figure, scatter, "x").range
        assert axis_of(figure, beside, "y").range == axis_of(figure, scatter, "y").range
        assert axis_of(figure, beside, "y").domain == axis_of(figure, scatter, "y").domain
        scales |= {axis_of(figure, above, "y").range, axis_of(figure, beside, "x").range}
    (scale,) = scales
    assert scale[1] > max(
        max(line.x) for name in ("Traditional", "JSAE") for line in marginals(figure, name, "tozerox")
    )


# bars


def test_bars_show_the_shares_of_the_samples_that_are_not_negligible_with_the_number_on_each():
    figure = ablation_figure({TRADITIONAL: FIVE, JSAE: table((0.001, 0.001, "negligible"))}, SUBTITLE)
    # on the line, off it, dropped; and what the paper calls on the line, of all five
    np.testing.assert_allclose(bars(figure)["Traditional"].x, [50, 25, 25, 60])
    assert list(bars(figure)["Traditional"].text) == ["50.0", "25.0", "25.0", "60.0"]
    np.testing.assert_allclose(bars(figure)["JSAE"].x, [0, 0, 0, 100])
    # a share of nothing is no 0%
    assert list(bars(figure)["JSAE"].text) == [*["all are negligible"] * 3, "100.0"]
    assert "50% (Traditional), none (JSAE)" in figure.layout.meta["answer"]


def test_many_negligible_samples_make_no_variant_look_worse():
    more = pd.concat([FIVE, *[table((0.001, 0.0, "negligible"))] * 20], ignore_index=True).assign(drawn=range(25))
    figure = ablation_figure({TRADITIONAL: FIVE, JSAE: more}, SUBTITLE)
    assert list(bars(figure)["JSAE"].x[:3]) == list(bars(figure)["Traditional"].x[:3])
    assert any(">JSAE</b><br>84.0% negligible" in note for note in notes(figure))


def test_further_doses_have_bars_where_every_variant_has_them():
    one = FIVE.assign(agreement_whole=["line", "off", "negligible", "line", "line"])
    figure = ablation_figure({TRADITIONAL: one, JSAE: one}, SUBTITLE)
    np.testing.assert_allclose(bars(figure)["JSAE"].x, [50, 25, 25, 75, 60])
    assert any("<b>on the line for its whole activation</b>" in note for note in notes(figure))
    assert len(bars(ablation_figure({TRADITIONAL: one, JSAE: FIVE}, SUBTITLE))["JSAE"].x) == 4


def test_the_names_stand_above_the_scatters_and_cover_no_point(figure):
    for note in figure.layout.annotations:
        if "% negligible" in note.text:
            assert (note.y, note.yanchor, note.yref.endswith("domain")) == (1, "bottom", True)


def test_the_answer_is_the_share_on_the_line_of_the_samples_that_are_not_negligible():
    assert "50% (JSAE) change as the Jacobian says" in answer(ablation_figure({JSAE: FIVE}, SUBTITLE))


def test_variants_are_told_apart_in_grey(figure):
    assert len({bar.marker.pattern.shape for bar in bars(figure).values()}) == 2
    assert len({marginals(figure, name, "tozeroy")[0].line.dash for name in ("Traditional", "JSAE")}) == 2


def test_error_bars_are_two_standard_errors_of_the_summaries():
    errors = {"noteworthy_line_se": 0.01, "noteworthy_off_se": 0.02, "noteworthy_dropped_se": 0.03}
    summary = errors | {"published_line_se": 0.04, "slope": 0.987, "correlation": 0.5}
    figure = ablation_figure({JSAE: FIVE}, SUBTITLE, {JSAE: summary})
    assert any("% negligible, slope 0.99, r 0.50" in note for note in notes(figure))
    np.testing.assert_allclose(bars(figure)["JSAE"].error_x.array, [2, 4, 6, 8])
    assert not bars(ablation_figure({JSAE: FIVE}, SUBTITLE))["JSAE"].error_x.visible


def test_bars_count_all_samples_not_only_the_points(figure):
    samples = many(5000, 0.05)
    shares = samples["agreement"][samples["agreement"] != "negligible"].value_counts(normalize=True)
    np.testing.assert_allclose(bars(figure)["Traditional"].x[:3], 100 * shares[["line", "off", "dropped"]])


def test_bars_of_a_kind_are_together_below_a_heading_that_explains_it(figure):
    headings = [note for note in figure.layout.annotations if note.text.startswith("<b>")]
    names = [heading.text.split("</b>")[0].removeprefix("<b>") for heading in headings if 'style="' not in heading.text]
    assert names == ["on the line", "off the line", "dropped", "the paper's line"]
    for place, heading in enumerate(headings[-4:]):
        positions = [bar.y[place] for bar in bars(figure).values()]
        assert heading.y < min(positions) < max(positions) < place + 1
        assert all(part in heading.text for part in bars(figure)["JSAE"].customdata[place].split(", ", 1))


def test_no_two_kinds_of_bars_have_one_heading_and_that_of_all_samples_says_so():
    one = FIVE.assign(agreement_whole="line", agreement_double="line", relative_agreement="line")
    figure = ablation_figure({JSAE: one}, SUBTITLE)
    named = [name.split(", ")[0] for name in bars(figure)["JSAE"].customdata]
    titles = [note.split("</b>")[0] for note in notes(figure) if note.startswith("<b>") and 'style="' not in note]
    assert len(titles) == len(set(titles)) == len(named) == 7
    assert "of all: negligible ones too" in notes(figure)[-1]


def test_the_dropped_have_a_symbol_of_their_own(figure):
    symbols = {trace.hovertemplate.split(":")[0]: trace.marker.symbol for trace in points(figure, "JSAE")}
    assert symbols["dropped"] != symbols["on the line"] == symbols["off the line"] == symbols["negligible"]


def test_the_negligible_share_is_written_in_each_scatter_beside_the_name(figure):
    for name, samples in (("Traditional", many(5000, 0.05)), ("JSAE", many(3000, 0.005))):
        percent = 100 * (samples["agreement"] == "negligible").mean()
        assert any(f">{name}</b><br>{percent:.1f}% negligible" in note for note in notes(figure))


# the whole figure


def test_a_variant_has_its_colour_in_points_marginals_bars_and_name(figure):
    for variant in (TRADITIONAL, JSAE):
        assert {trace.marker.color for trace in points(figure, variant.label)} == {variant.colour}
        assert bars(figure)[variant.label].marker.color == variant.colour
        for fill in ("tozerox", "tozeroy"):
            assert [line.line.color for line in marginals(figure, variant.label, fill)] == [variant.colour]
        assert sum(f"color:{variant.colour}" in note and f">{variant.label}<" in note for note in notes(figure)) == 1


def test_axes_name_their_unit(figure):
    titles = [axis.title.text for axis in [*figure.select_xaxes(), *figure.select_yaxes()] if axis.title.text]
    assert titles == [
        "samples (%), negligible ones left out",
        "|J| (output per unit of input)",
        *["|change| (output activation)"] * 2,
    ]


def test_text_that_looks_like_markup_is_drawn_as_it_stands():
    figure = ablation_figure({Variant("<b>J</b>", "#D55E00"): FIVE}, "a < b & c")
    assert details(figure).startswith("a &lt; b &amp; c")
    assert list(bars(figure)) == ["&lt;b&gt;J&lt;/b&gt;"]
    assert any("&lt;b&gt;J&lt;/b&gt;</b>" in note for note in notes(figure))


@pytest.mark.parametrize("n", [1, 4])
def test_one_variant_and_four_are_drawn_as_large_as_two(figure, n):
    four = ablation_figure({Variant(str(place), "#D55E00"): FIVE for place in range(n)}, SUBTITLE)

    def side(drawn, name):
        low, high = axis_of(drawn, points(drawn, name)[0], "y").domain
        return (high - low) * (drawn.layout.height - drawn.layout.margin.t - drawn.layout.margin.b)

    assert side(four, "0") == pytest.approx(side(figure, "JSAE"), rel=0.01)


def test_a_variant_without_points_of_an_agreement_is_drawn():
    figure = ablation_figure({JSAE: table((0.5, -0.5, "line"))}, SUBTITLE)
    assert coordinates(figure, "JSAE") == [(0.5, 0.5)]
    np.testing.assert_allclose(bars(figure)["JSAE"].x, [100, 0, 0, 100])


def test_the_page_of_many_samples_stays_small():
    figure = ablation_figure({TRADITIONAL: many(20_000, 0.05), JSAE: many(20_000, 0.005)}, SUBTITLE)
    assert len(page(figure, "plotly.min.js", {})) < 200_000


@pytest.mark.parametrize(
    "column", ["jacobian", "change", "agreement", "published", "drawn", "input_latent", "output_latent"]
)
def test_samples_without_a_column_are_refused(column):
    with pytest.raises(ValueError, match=f"'JSAE' lack {column}"):
        ablation_figure({JSAE: FIVE.drop(columns=column)}, SUBTITLE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", ["jacobian", "change"])
def test_numbers_that_are_not_finite_are_refused(column, bad):
    samples = FIVE.copy()
    samples.loc[2, column] = bad
    with pytest.raises(ValueError, match="'JSAE' hold NaN or infinite"):
        ablation_figure({TRADITIONAL: FIVE, JSAE: samples}, SUBTITLE)


@pytest.mark.parametrize("unknown", ["outside", float("nan"), None])
def test_an_unknown_agreement_is_refused(unknown):
    samples = FIVE.astype({"agreement": object})
    samples.loc[0, "agreement"] = unknown
    with pytest.raises(ValueError, match=r"'JSAE' have the agreement .*expected one of line, off, dropped, negligible"):
        ablation_figure({JSAE: samples}, SUBTITLE)


def test_a_variant_of_no_sample_is_refused():
    with pytest.raises(ValueError, match="there are no samples of 'JSAE'"):
        ablation_figure({TRADITIONAL: FIVE, JSAE: FIVE[:0]}, SUBTITLE)


def test_a_figure_of_no_variant_is_refused():
    with pytest.raises(ValueError, match="no variant"):
        ablation_figure({}, SUBTITLE)


def test_however_many_decades_are_drawn_few_are_written_beside_each_other():
    samples = pd.concat([many(500, scale).assign(drawn=range(500)) for scale in (1e-3, 1.0, 1e3)], ignore_index=True)
    figure = ablation_figure({JSAE: samples}, SUBTITLE)
    axis = axis_of(figure, points(figure, "JSAE")[0], "x")
    written = [text for text in axis.ticktext if text]
    assert len(axis.tickvals) > 4 >= len(written) >= 2 and axis.tickangle == 0 and written[0].startswith("≤")
