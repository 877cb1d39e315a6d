"""What the figure of quality by layer promises, read from its data."""

import numpy as np
import pandas as pd
import pytest

from jsae_core.figures import Variant, quality_by_layer_figure
from tests.jsae_core.subtitles import answer, details

TRADITIONAL, JSAE = Variant("Traditional", "#0072B2"), Variant("JSAE", "#D55E00")
SUBTITLE = "pythia-70m"
MEASURES = {"CE score": "ce_score", "KL score": "kl_score", "explained variance": "explained_variance"}
HEADINGS = {"input": "input SAE", "output": "output SAE", "pair": "both SAEs"}


def table(layers, start: float = 0.9, **changes) -> pd.DataFrame:
    """Every number differs from every other."""
    names = [f"{name}_{side}" for name in ("ce_score", "kl_score") for side in HEADINGS]
    names += [f"{name}_{side}" for name in ("explained_variance", "dead") for side in ("input", "output")]
    rows = []
    for layer in layers:
        row = {"layer": layer}
        for place, name in enumerate(names):
            row[name] = start - 0.01 * place - 0.001 * layer
            row[f"{name}_se"] = 0.001 * (place + 1)
        rows.append(row | changes)
    return pd.DataFrame(rows).drop(columns=["dead_input_se", "dead_output_se"])


def draw(tables: dict):
    return quality_by_layer_figure(tables, SUBTITLE)


def panels(figure) -> dict:
    """Traces and axes by the title of the row and the heading of the column."""
    rows = {axis.domain: axis.title.text for axis in figure.select_yaxes() if axis.title.text}
    headings = [annotation for annotation in figure.layout.annotations if annotation.text in HEADINGS.values()]
    found = {}
    for trace in figure.data:
        if trace.showlegend:
            continue  # what the legend shows
        x, y = figure.layout[trace.xaxis.replace("x", "xaxis")], figure.layout[trace.yaxis.replace("y", "yaxis")]
        (column,) = [heading.text for heading in headings if x.domain[0] < heading.x < x.domain[1]]
        found.setdefault((rows[y.domain], column), ([], x, y))[0].append(trace)
    return found


def test_each_panel_shows_its_measure_with_two_standard_errors():
    frame = table([0, 1, 2])
    found = panels(draw({JSAE: frame}))
    for title, name in MEASURES.items():
        for side in ("input", "output") if name == "explained_variance" else HEADINGS:
            ((trace,), _, _) = found[title, HEADINGS[side]]
            np.testing.assert_allclose(trace.y, frame[f"{name}_{side}"])
            np.testing.assert_allclose(trace.error_y.array, 2 * frame[f"{name}_{side}_se"])
            assert trace.error_y.visible


def test_dead_latents_are_in_per_cent_and_have_no_error():
    found = panels(draw({JSAE: table([0, 1], dead_input=0.25, dead_output=0.03)}))
    for side, percent in (("input", 25), ("output", 3)):
        ((trace,), _, _) = found["dead latents (%)", HEADINGS[side]]
        np.testing.assert_allclose(trace.y, percent)
        assert not trace.error_y.visible


def test_the_figure_says_what_the_error_bars_and_the_scores_are():
    note = " ".join(annotation.text for annotation in draw({JSAE: table([0])}).layout.annotations).replace("<br>", " ")
    assert "Error bars: ± 2 SE" in note
    assert "1 is no loss, 0 as bad as zeros" in note


@pytest.mark.parametrize("layers", [[5], [0, 1, 2], list(range(32)), [3, 15]])
def test_points_are_beside_their_layer_and_the_variants_beside_each_other(layers):
    figure = draw({TRADITIONAL: table(layers), JSAE: table(layers, 0.8)})
    distance = min(np.diff(layers), default=1)
    for (first, second), x, _ in panels(figure).values():
        np.testing.assert_allclose((first.x + second.x) / 2, layers)
        assert (first.x < second.x).all()
        assert (second.x - first.x < distance / 4).all()
        assert x.range[0] < first.x[0] and second.x[-1] < x.range[1]


def test_few_layers_have_a_tick_each_and_many_do_not():
    for _, x, _ in panels(draw({JSAE: table([3, 15])})).values():
        assert list(x.tickvals) == [3, 15]
    for _, x, _ in panels(draw({JSAE: table(range(32))})).values():
        assert x.tickvals is None and x.nticks < 10


def test_a_layer_that_a_variant_lacks_is_a_gap_in_its_line():
    figure = draw({TRADITIONAL: table([0, 1, 2]), JSAE: table([0, 2], 0.8)})
    for (_, line), _, _ in panels(figure).values():
        assert list(np.isnan(line.y)) == [False, True, False]
        assert not line.connectgaps


def test_rows_in_any_order_are_drawn_by_layer():
    frame = table([0, 1, 2])
    assert draw({JSAE: frame.iloc[::-1]}) == draw({JSAE: frame})


@pytest.mark.parametrize(
    ("name", "title"),
    [("ce_score", "CE score"), ("kl_score", "KL score"), ("explained_variance", "explained variance")],
)
def test_a_score_beyond_the_axis_is_a_triangle_at_its_end_and_leaves_the_others_their_room(name, title):
    wild = table([1], **{f"{name}_input": 5.9, f"{name}_input_se": 14.4, f"{name}_output": -3.0})
    figure = draw({TRADITIONAL: table([0, 1, 2]), JSAE: wild})
    found = panels(figure)
    for side, symbol, end in (("input", "triangle-up", 1), ("output", "triangle-down", 0)):
        ((usual, beyond), _, y) = found[title, HEADINGS[side]]
        assert set(usual.marker.symbol) == {"circle"}
        assert beyond.marker.symbol[1] == symbol
        assert y.range[0] < beyond.y[1] < y.range[1]
        assert abs(beyond.y[1] - y.range[end]) < 0.1 * (y.range[1] - y.range[0])
        assert beyond.error_y.array[1] == 0
        assert -0.2 < y.range[0] and y.range[1] < 1.2
    np.testing.assert_allclose(found[title, "input SAE"][0][1].customdata[1], [1, 5.9, 28.8])  # for the reader
    assert "▲ ▼: beyond the axis" in figure.layout.annotations[-1].text


def test_triangles_are_explained_only_where_there_are_any():
    assert "▲" not in str(draw({JSAE: table([0, 1])}).layout.annotations)


def test_a_score_just_above_1_with_a_huge_error_is_an_ordinary_point_on_an_ordinary_axis():
    frame = table([0, 1], 0.6, ce_score_output=1.008, ce_score_output_se=0.5)
    ((trace,), _, y) = panels(draw({JSAE: frame}))["CE score", "output SAE"]
    assert set(trace.marker.symbol) == {"circle"}
    np.testing.assert_allclose(trace.y, 1.008)
    assert 0.4 < y.range[0] and y.range[1] < 1.1


def test_an_axis_reaches_from_the_best_to_the_worst_that_occurs_and_is_shared_by_its_measure():
    found = panels(
        draw({TRADITIONAL: table([0], ce_score_pair=0.55), JSAE: table([0], dead_output=0.4, dead_input=0.1)})
    )
    for title, best, worst in (("CE score", 1, 0.55), ("dead latents (%)", 0, 90)):
        ranges = {y.range for (row, _), (_, _, y) in found.items() if row == title}
        (low, high), *others = ranges
        assert not others
        assert low < min(best, worst) and max(best, worst) < high
        assert high - low < 1.3 * abs(best - worst)


def test_perfect_numbers_still_get_an_axis():
    perfect = {f"{name}_{side}": 1.0 for name in MEASURES.values() for side in HEADINGS}
    frame = table([0], **perfect, dead_input=0.0, dead_output=0.0)
    for _, _, y in panels(draw({JSAE: frame})).values():
        assert y.range[1] - y.range[0] > 0.02


def test_a_variant_has_its_colour_in_all_panels_and_is_in_the_legend_once():
    figure = draw({TRADITIONAL: table([0, 1]), JSAE: table([0, 1])})
    for variant in (TRADITIONAL, JSAE):
        assert [t.line.color for t in figure.data if t.name == variant.label] == [variant.colour] * 11
    assert [trace.name for trace in figure.data if trace.showlegend] == ["Traditional", "JSAE"]


def test_the_legend_shows_a_variant_s_own_symbol_though_its_first_point_is_beyond_the_axis():
    figure = draw({TRADITIONAL: table([0, 1]), JSAE: table([0], ce_score_input=5.9)})
    symbols = [trace.marker.symbol for trace in figure.data if trace.showlegend]
    assert len(set(symbols)) == 2 and not {"triangle-up", "triangle-down"} & set(symbols)


def test_variants_are_told_apart_in_grey():
    figure = draw({TRADITIONAL: table([0, 1]), JSAE: table([0, 1])})
    for look in ("line.dash", "marker.symbol"):
        assert len({str(trace[look]) for trace in figure.data}) >= 2
    first, second = panels(figure)["CE score", "input SAE"][0]
    assert first.line.dash != second.line.dash and first.marker.symbol[0] != second.marker.symbol[0]


def test_a_single_layer_s_error_bars_are_on_the_axis():
    ((trace,), _, y) = panels(draw({JSAE: table([1], 0.8, ce_score_input_se=0.2)}))["CE score", "input SAE"]
    assert y.range[0] < trace.y[0] - trace.error_y.array[0]


def test_the_answer_tells_the_scores_with_both_reconstructions():
    figure = draw({TRADITIONAL: table([0, 1]), JSAE: table([1], kl_score_pair=-0.25)})
    said = "The KL score with both reconstructions spliced in is 0.85 to 0.85 (Traditional), −0.25 (JSAE)."
    assert answer(figure) == said.replace("0.85 to 0.85", "0.85")


def test_the_last_panel_of_every_column_names_and_numbers_its_layers():
    found = panels(draw({JSAE: table([0, 1])}))
    titled = {key for key, (_, x, _) in found.items() if x.title.text == "layer" and x.showticklabels}
    assert titled == {("dead latents (%)", "input SAE"), ("dead latents (%)", "output SAE"), ("KL score", "both SAEs")}


def test_headings_have_room_below_the_subtitle():
    figure = draw({JSAE: table([0])})
    lines = figure.layout.title.subtitle.text.count("<br>") + 1
    assert details(figure).startswith(SUBTITLE)
    assert figure.layout.margin.t >= 76 + 22 * lines + 28


def test_names_that_look_like_markup_are_drawn_as_they_stand():
    assert draw({Variant("a < b & c", "#D55E00"): table([0])}).data[0].name == "a &lt; b &amp; c"


@pytest.mark.parametrize(
    "name", ["layer", "ce_score_pair", "kl_score_input_se", "explained_variance_output", "dead_input"]
)
def test_a_table_that_lacks_a_column_is_refused(name):
    with pytest.raises(ValueError, match=f"'JSAE' lacks {name}"):
        draw({TRADITIONAL: table([0]), JSAE: table([0]).drop(columns=name)})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layer", "ce_score_pair", "kl_score_input_se", "dead_input"])
def test_numbers_that_are_not_finite_are_refused(name, bad):
    with pytest.raises(ValueError, match=f"'JSAE' holds NaN or infinite values in {name}"):
        draw({JSAE: table([0]).assign(**{name: bad})})


def test_a_negative_error_is_refused():
    with pytest.raises(ValueError, match="'JSAE' holds negative errors in ce_score_input_se"):
        draw({JSAE: table([0], ce_score_input_se=-0.1)})


def test_a_layer_that_is_there_twice_is_refused():
    with pytest.raises(ValueError, match="'JSAE' has layer 3 twice"):
        draw({JSAE: table([3, 4, 3])})


def test_a_variant_without_layers_is_refused():
    with pytest.raises(ValueError, match="'JSAE' has no layer"):
        draw({TRADITIONAL: table([0]), JSAE: table([0]).iloc[:0]})


def test_a_figure_of_no_variant_is_refused():
    with pytest.raises(ValueError, match="no variant"):
        draw({})
