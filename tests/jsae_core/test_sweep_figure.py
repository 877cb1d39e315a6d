"""What the figures of a sweep promise, read from their data."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jsae_core.figures import odd_runs, sweep_grid_figure, sweep_tradeoff_figure
from jsae_core.figures.style import WIDTH
from jsae_core.figures.sweep_runs import QUALITY, SPARSITY
from jsae_core.reported import reported_sweep
from tests.jsae_core.subtitles import answer, details

SUBTITLE = "a sweep"
COEFFICIENTS = (0.0, 0.1, 0.5, 1.0, 5.0)
SHARES, SCORES = (0.7, 0.4, 0.2, 0.1, 0.05), (0.93, 0.92, 0.91, 0.9, 0.6)  # the knee is at λ = 1


def table(coefficients=COEFFICIENTS, shares=SHARES, scores=SCORES, **changes) -> pd.DataFrame:
    """A row a run; every number of a run differs from every other."""
    rows = []
    for place, (coefficient, share, score) in enumerate(zip(coefficients, shares, scores, strict=True)):
        rows.append(
            {
                "run_id": f"id{place}",
                "name": f"run-{place}",
                "state": "finished",
                "deleted": False,
                "model": "pythia-70m",
                "layer": 3,
                "k": 32,
                "d_sae": 16384,
                "jacobian_coefficient": coefficient,
                "objective": "l1",
                "randomize_llm_weights": False,
                "jacobian_at": "input",
                "ce_score": score,
                "kl_score_input": score - 0.01,
                "kl_score_output": score - 0.05,
                "explained_variance_output": score - 0.06,
                "kurtosis": 10 + 5.0 * place,
                "l1_over_l2": 0.5 - 0.05 * place,
                "above_0.005": min(1, share + 0.2),
                "above_0.01": share,
                "above_0.015": share * 0.8,
                "above_0.02": share * 0.6,
            }
        )
    return pd.DataFrame(rows).assign(**changes)


def twice(runs: pd.DataFrame) -> pd.DataFrame:
    """As two seeds that gave the same: enough runs for a knee."""
    return pd.concat([runs, runs], ignore_index=True)


def of(runs: pd.DataFrame, place: int, **changes) -> pd.DataFrame:
    """The table with other values in one of its rows."""
    changed = runs.copy()
    for name, value in changes.items():
        changed[name] = changed[name].astype(object)
        changed.loc[place, name] = value
    return changed


def reported() -> pd.DataFrame:
    return reported_sweep("pythia-70m-deduped", 3).drop(columns="definition")


def tradeoff(runs: pd.DataFrame, subtitle: str = SUBTITLE, **more):
    return sweep_tradeoff_figure(runs, subtitle, **more)


def dots(figure):
    """The trace of the runs."""
    (trace,) = [trace for trace in figure.data if trace.marker.coloraxis]
    return trace


def diamonds(figure):
    (trace,) = [trace for trace in figure.data if trace.marker.symbol == "diamond"]
    return trace


def lines(figure) -> list[list[tuple[float, float]]]:
    """The paths that join runs."""
    (trace,) = [trace for trace in figure.data if trace.mode == "lines"]
    paths = [[]]
    for x, y in zip(trace.x, trace.y, strict=True):
        if np.isnan(x):
            paths.append([])
        else:
            paths[-1].append((x, y))
    return [path for path in paths if path]


def rings(figure) -> list[tuple[float, float]]:
    (trace,) = [trace for trace in figure.data if trace.marker.symbol == "circle-open"]
    return list(zip(trace.x, trace.y, strict=True))


def knees(figure) -> list[str]:
    return [annotation.text for annotation in figure.layout.annotations]


def remark(figure) -> str:
    return details(figure)


def legend(figure) -> list[str]:
    return [trace.name for trace in figure.data if trace.showlegend is not False]


def labels(trace) -> list[str]:
    return [text.strip("\xa0") for text in trace.text]


def test_a_dot_a_run_shows_the_share_in_per_cent_and_the_score():
    trace = dots(tradeoff(table()))
    np.testing.assert_allclose(trace.x, 100 * np.array(SHARES), rtol=1e-6)
    np.testing.assert_allclose(trace.y, SCORES, rtol=1e-6)


def at_both(runs: pd.DataFrame, factor: float = 0.5) -> pd.DataFrame:
    """Runs that are known at the input SAE's reconstruction as well."""
    names = [name for name in SPARSITY if name in runs]
    return runs.assign(**{f"{name}_at_reconstruction": factor * runs[name] for name in names})


def logged_by_the_original(runs: pd.DataFrame) -> pd.DataFrame:
    return at_both(runs, 1.0).assign(jacobian_at="reconstruction")


def test_a_sweep_of_one_definition_is_drawn_by_it_and_says_so():
    for runs, said in (
        (at_both(table()), "at the true input"),
        (logged_by_the_original(table()), "at the input SAE's reconstruction"),
    ):
        figure = tradeoff(runs)
        np.testing.assert_allclose(dots(figure).x, 100 * np.array(SHARES), rtol=1e-6)
        assert f"J {said}" in remark(figure)
        assert f"J {said}" in remark(sweep_grid_figure(runs, SUBTITLE))


def test_numbers_of_two_definitions_are_never_on_one_axis():
    here, theirs = at_both(table()), logged_by_the_original(table(shares=[share / 3 for share in SHARES]))
    figure = tradeoff(pd.concat([here, theirs], ignore_index=True))
    at_reconstruction = 100 * np.array([*(0.5 * np.array(SHARES)), *(np.array(SHARES) / 3)])
    np.testing.assert_allclose(dots(figure).x, at_reconstruction, rtol=1e-6)
    assert "J at the input SAE's reconstruction" in remark(figure)
    grid = sweep_grid_figure(pd.concat([here, theirs], ignore_index=True), SUBTITLE)
    kurtosis = next(trace for trace in grid.data if trace.marker.coloraxis and "kurtosis" in trace.hovertemplate)
    np.testing.assert_allclose(kurtosis.customdata[:5, 0], 0.5 * here["kurtosis"], rtol=1e-6)


def test_beside_runs_at_the_reconstruction_one_that_is_known_at_the_input_alone_is_incomplete():
    figure = tradeoff(pd.concat([table().iloc[:1], logged_by_the_original(table())], ignore_index=True))
    assert len(dots(figure).x) == len(SHARES) and "1 incomplete" in remark(figure)


def test_runs_beside_reported_ones_are_drawn_by_the_reported_definition():
    figure = tradeoff(at_both(table()), reported=reported())
    np.testing.assert_allclose(dots(figure).x, 50 * np.array(SHARES), rtol=1e-6)
    assert "J at the input SAE's reconstruction" in remark(figure)


def test_a_line_joins_the_runs_in_the_order_of_their_coefficients():
    shuffled = table().iloc[[3, 0, 4, 2, 1]]
    (path,) = lines(tradeoff(shuffled))
    np.testing.assert_allclose(path, np.transpose([100 * np.array(SHARES), SCORES]), rtol=1e-6)


def test_runs_of_one_coefficient_are_joined_in_their_mean():
    runs = table((0, 1, 1, 5), (0.7, 0.2, 0.3, 0.1), (0.93, 0.9, 0.92, 0.6))
    figure = tradeoff(runs)
    (path,) = lines(figure)
    np.testing.assert_allclose(path, [(70, 0.93), (25, 0.91), (10, 0.6)], rtol=1e-6)
    assert len(dots(figure).x) == 4


def test_many_coefficients_are_not_joined():
    n = 40
    runs = table(np.geomspace(0.01, 10, n), np.linspace(0.7, 0.1, n), np.linspace(0.9, 0.5, n) ** 0.5)
    assert lines(tradeoff(runs)) == []


def test_every_run_is_named_with_its_numbers_when_pointed_at():
    trace = dots(tradeoff(table()))
    assert trace.hovertext[1] == "run-1<br>λ = 0.1"
    np.testing.assert_allclose(trace.customdata, np.transpose([100 * np.array(SHARES), SCORES]), rtol=1e-6)
    assert "%{hovertext}" in trace.hovertemplate and "%{customdata[1]" in trace.hovertemplate


def test_few_runs_are_labelled_with_their_coefficients_and_the_knee_by_its_name():
    figure = tradeoff(twice(table()))
    assert sorted(labels(dots(figure))) == [""] * 6 + ["0", "0.1", "0.5", "5"]
    assert knees(figure) == ["<b>knee: λ = 1</b>"]


def test_of_equal_runs_one_is_labelled():
    runs = pd.concat([table((2,), (0.3,), (0.9,))] * 4)
    assert sorted(labels(dots(tradeoff(runs)))) == ["", "", "", "2"]


def test_a_single_run_is_a_dot_with_its_label_in_the_middle_of_the_axes_without_a_knee():
    figure = tradeoff(table((2,), (0.3,), (0.9,)))
    trace = dots(figure)
    assert labels(trace) == ["2"]
    assert rings(figure) == [] and "knee" not in remark(figure)
    assert np.mean(figure.layout.xaxis.range) == pytest.approx(30)
    assert np.mean(figure.layout.yaxis.range) == pytest.approx(0.9)
    assert remark(figure) == "a sweep · J at the true input · 1 run"
    assert not figure.layout.coloraxis.showscale


def test_all_points_are_inside_the_axes():
    figure = tradeoff(at_both(table(), 1.0), reported=reported())
    (left, right), (low, high) = figure.layout.xaxis.range, figure.layout.yaxis.range
    for trace in (dots(figure), diamonds(figure)):
        assert left < min(trace.x) and max(trace.x) < right
        assert low < min(trace.y) and max(trace.y) < high


def boxes(figure) -> tuple[list, list]:
    """What labels cover, and what dots do, in px from the upper left corner: left, right, top, bottom. A digit of this
    font is 0.556 of its size wide, and Plotly puts a text 0.625 of a marker's size and 1 px from its centre."""
    layout = figure.layout
    width = WIDTH - layout.margin.l - layout.margin.r
    height = layout.height - layout.margin.t - layout.margin.b

    def pixel(x, y):
        (left, right), (low, high) = layout.xaxis.range, layout.yaxis.range
        return (x - left) / (right - left) * width, (high - y) / (high - low) * height

    texts, marks = [], []
    for trace in (dots(figure), *(trace for trace in figure.data if trace.marker.symbol == "diamond")):
        size = trace.marker.size
        for x, y, text, position in zip(trace.x, trace.y, trace.text, trace.textposition, strict=True):
            x, y = pixel(x, y)
            marks.append((x - size / 2, x + size / 2, y - size / 2, y + size / 2))
            if text:
                font, away = trace.textfont.size, 0.625 * size + 1
                wide = 0.556 * font * len(text.strip("\xa0"))
                down, across = position.split()
                x += {"left": -away - wide / 2, "center": 0, "right": away + wide / 2}[across]
                y += {"top": -away - font / 2, "middle": 0, "bottom": away + font / 2}[down]
                texts.append((x - wide / 2, x + wide / 2, y - font / 2, y + font / 2))
    for annotation in layout.annotations:
        x, y = pixel(annotation.x, annotation.y)
        x, y = x + annotation.ax, y + annotation.ay
        wide, font = 0.5 * annotation.font.size * len(re.sub("<.*?>", "", annotation.text)), annotation.font.size
        texts.append((x - wide / 2, x + wide / 2, y - font / 2, y + font / 2))
    for left, right, top, bottom in texts:
        assert 0 <= left and right <= width and 0 <= top and bottom <= height
    return texts, marks


def overlap(one, other) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def assert_labels_cover_nothing(figure):
    texts, marks = boxes(figure)
    for place, text in enumerate(texts):
        assert not any(overlap(text, other) for other in texts[:place])
        assert not any(overlap(text, mark) for mark in marks)


numbers = st.floats(0, 1)


@given(
    st.lists(st.tuples(st.sampled_from([0, 0.001, 0.25, 1, 2.5, 33.333]), numbers, numbers), min_size=1, max_size=30)
)
def test_labels_cover_neither_each_other_nor_dots(runs):
    assert_labels_cover_nothing(tradeoff(at_both(table(*zip(*runs, strict=True)), 1.0), reported=reported()))


def test_of_500_runs_some_are_labelled_and_no_label_covers_anything():
    random = np.random.default_rng(0)
    coefficients = 10 ** random.uniform(-2, 1.5, 500)
    shares = 0.7 / (1 + coefficients) + 0.02 * random.random(500)
    figure = tradeoff(table(coefficients, shares, 0.93 - 0.01 * coefficients + 0.02 * random.random(500)))
    assert 5 < len([text for text in labels(dots(figure)) if text]) < 100
    assert len(knees(figure)) == 1
    assert_labels_cover_nothing(figure)
    assert dots(figure).marker.size < dots(tradeoff(table())).marker.size


def test_the_knee_is_ringed_named_and_explained():
    figure = tradeoff(twice(table()))
    np.testing.assert_allclose(rings(figure), [(10, 0.9)], rtol=1e-6)
    assert "ring: the knee, farthest from the line between both ends" in remark(figure)


def test_the_knee_of_the_reported_sweep_is_where_it_was_reported():
    runs = reported()
    figure = tradeoff(table(runs["jacobian_coefficient"], runs["above_0.01"], runs["ce_score"]))
    assert knees(figure) == ["<b>knee: λ = 1</b>"]


@given(st.integers(1, 8), st.floats(0.05, 0.9), st.floats(0.01, 0.3))
def test_the_knee_of_two_straight_pieces_is_where_they_meet(corner, height, worst):
    shares = np.linspace(0.9, 0, 10)
    scores = np.interp(shares, [0, shares[corner], 0.9], [worst, worst + height * (0.99 - worst), 0.99])
    if (scores - np.interp(shares, [0, 0.9], [worst, 0.99])).max() < 0.05:
        return  # as good as straight, or bent to the other side
    figure = tradeoff(table(np.geomspace(0.01, 10, 10), shares, scores))
    np.testing.assert_allclose(rings(figure), [(100 * shares[corner], scores[corner])], rtol=1e-5)


@settings(max_examples=8)
@given(st.floats(0.1, 1), st.floats(0.1, 1), st.floats(0, 0.1))
def test_the_knee_stays_when_the_axes_are_scaled(across, down, shift):
    runs = table(shares=shift + across * np.array(SHARES), scores=down * np.array(SCORES))
    assert knees(tradeoff(twice(runs))) == ["<b>knee: λ = 1</b>"]


def test_no_knee_is_claimed_from_five_single_runs():
    figure = tradeoff(table())
    assert rings(figure) == [] and knees(figure) == [] and "knee" not in remark(figure)


@pytest.mark.parametrize(
    "shares, scores",
    [
        pytest.param((0.6, 0.4, 0.2), (0.9, 0.8, 0.7), id="a straight line"),
        pytest.param((0.6, 0.5, 0.2), (0.9, 0.72, 0.7), id="bent to the other side"),
        pytest.param((0.6, 0.4, 0.2), (0.9, 0.8, 0.9), id="nothing given up"),
        pytest.param((0.6, 0.4, 0.2), (0.7, 0.8, 0.9), id="better in both"),
        pytest.param((0.6, 0.6, 0.6), (0.9, 0.9, 0.9), id="equal points"),
    ],
)
def test_there_is_no_knee_without_a_bend(shares, scores):
    runs = table((0, 1, 2), shares, scores)
    figure = tradeoff(pd.concat([runs] * 3, ignore_index=True))
    assert rings(figure) == [] and knees(figure) == []
    assert "knee" not in remark(figure)


def test_runs_that_differ_in_more_than_their_coefficient_have_their_own_symbol_line_and_knee():
    layers = [twice(table(layer=5, name="fifth")), twice(table(layer=1, shares=np.array(SHARES) / 2))]
    figure = tradeoff(pd.concat(layers))
    assert len(lines(figure)) == len(rings(figure)) == 2
    assert legend(figure) == ["layer 1 (knee: λ = 1)", "layer 5 (knee: λ = 1)"]
    entries = {trace.name[:7]: trace.marker.symbol for trace in figure.data if trace.showlegend is not False}
    assert list(dots(figure).marker.symbol) == [entries["layer 5"]] * 10 + [entries["layer 1"]] * 10
    assert dots(figure).hovertext[0] == "fifth<br>λ = 0, layer 5"


def test_a_group_is_named_by_all_that_differs():
    parts = [table(), table(model="a < b", k=16), table(k=None, d_sae=None), table(randomize_llm_weights=True)]
    assert {name.split(" (")[0] for name in legend(tradeoff(pd.concat(parts)))} == {
        "a &lt; b, k = 16, d_sae = 16384, pretrained LM",
        "pythia-70m, k = 32, d_sae = 16384, pretrained LM",
        "pythia-70m, k = ?, d_sae = ?, pretrained LM",
        "pythia-70m, k = 32, d_sae = 16384, randomised LM",
    }


def test_settings_that_a_run_does_not_tell_are_question_marks():
    runs = pd.concat([table(model=None, layer=None), table(randomize_llm_weights=None)])
    assert {name.split(" (")[0] for name in legend(tradeoff(runs))} == {"?, layer ?", "pythia-70m, layer 3"}


def test_objectives_are_groups_and_seeds_are_not():
    runs = pd.concat([table(seed=0), table(seed=1), table(objective="l1nb", seed=0)])
    assert [name.split(" (")[0] for name in legend(tradeoff(runs))] == ["l1", "l1nb"]
    assert sorted(len(path) for path in lines(tradeoff(runs))) == [5, 5]


def bars(trace) -> list[tuple[float, float]]:
    """The standard deviations across and down, of the points that have them."""
    if trace.error_x.array is None:
        return []
    both = np.transpose([trace.error_x.array, trace.error_y.array])
    return [tuple(pair) for pair in both[np.isfinite(both).all(axis=1)]]


def test_seeds_give_bars_of_one_standard_deviation_at_the_mean_of_their_lambda():
    runs = table((0, 1, 1, 1, 5), (0.7, 0.2, 0.3, 0.25, 0.1), (0.93, 0.9, 0.92, 0.94, 0.6))
    figure = tradeoff(runs)
    (trace,) = [trace for trace in figure.data if trace.mode == "lines"]
    np.testing.assert_allclose(bars(trace), [(5, 0.02)], rtol=1e-4)
    assert np.isfinite(trace.error_x.array).tolist() == [False, True, False, False]
    assert "bars: ± one standard deviation over the runs of a λ" in remark(figure)


def test_single_runs_have_no_bars_and_seeds_of_one_lambda_alone_do():
    figure = tradeoff(table())
    assert not [trace for trace in figure.data if trace.mode == "lines" and bars(trace)] and "bars" not in remark(
        figure
    )
    figure = tradeoff(table((1, 1), (0.2, 0.3), (0.9, 0.92)))
    (trace,) = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(bars(trace)) == 1


def test_every_chart_of_the_grid_has_the_bars_of_seeds():
    runs = pd.concat([table(), table(shares=np.array(SHARES) / 2, kurtosis=3.0)], ignore_index=True)
    figure = sweep_grid_figure(runs, SUBTITLE)
    charts = [trace for trace in figure.data if trace.mode == "lines"]
    assert len(charts) > 4 and all(len(bars(trace)) == 5 for trace in charts)
    assert "one standard deviation" in remark(figure)


def test_where_it_was_measured_the_accounted_share_is_a_panel_below_with_the_same_shares_across():
    shares = (0.96, 0.9, 0.8, 0.5, -0.2)
    figure = tradeoff(table(accounted_share=shares))
    below = [trace for trace in figure.data if trace.yaxis == "y2" and trace.marker.coloraxis]
    np.testing.assert_allclose(below[0].y, shares, rtol=1e-6)
    np.testing.assert_allclose(below[0].x, 100 * np.array(SHARES), rtol=1e-6)
    assert figure.layout.yaxis2.title.text == "accounted share"
    above = figure.layout.yaxis.domain
    assert figure.layout.yaxis2.domain[1] < above[0] and above[1] == 1
    assert figure.layout.yaxis2.range[0] < -0.2
    without = tradeoff(table(accounted_share=None))
    assert not [trace for trace in without.data if trace.yaxis == "y2"]
    assert figure.layout.height > 1.5 * without.layout.height


def test_one_group_needs_no_legend():
    assert legend(tradeoff(table())) == []


def test_more_groups_than_symbols_are_not_told_apart_and_said_so():
    figure = tradeoff(pd.concat([table(layer=layer) for layer in range(12)]))
    assert set(dots(figure).marker.symbol) == {"circle"}
    assert legend(figure) == [] and rings(figure) == []
    assert len(lines(figure)) == 12
    assert "12 settings, not told apart" in remark(figure)


def test_rows_in_any_order_make_the_same_lines_knees_and_legend():
    runs = pd.concat([twice(table(layer=1)), twice(table(layer=3))])
    one, other = tradeoff(runs), tradeoff(runs.iloc[::-1])
    assert lines(one) == lines(other) and rings(one) == rings(other) and legend(one) == legend(other)


def test_runs_that_are_not_finished_or_incomplete_are_left_out_and_counted():
    runs = table((0, 1, 2, 3, 4, 5, 6), (0.7, 0.6, 0.5, 0.4, 0.3, 0.2, np.nan), (0.9,) * 5 + (np.nan, 0.5))
    runs.loc[[1, 2], "state"] = ["running", "crashed"]
    runs.loc[4, "jacobian_coefficient"] = np.nan
    figure = tradeoff(runs)
    np.testing.assert_allclose(dots(figure).x, [70, 40], rtol=1e-6)
    assert remark(figure) == "a sweep · J at the true input · 2 runs; left out: 2 not finished, 3 incomplete"


def test_runs_deleted_upstream_are_drawn_and_counted():
    figure = tradeoff(of(table(), 2, deleted=True))
    assert len(dots(figure).x) == 5
    assert "5 runs, 1 of them deleted upstream" in remark(figure)


def test_a_score_beyond_the_axis_is_a_triangle_at_its_end_and_moves_neither_axis_nor_line():
    figure, usual = tradeoff(of(table(), 1, ce_score=-3.0)), tradeoff(table().drop(index=1))
    assert dots(figure).marker.symbol[1] == "triangle-down"
    low, high = figure.layout.yaxis.range
    assert -0.2 < low < dots(figure).y[1] < low + 0.1 * (high - low)
    assert dots(figure).customdata[1, 1] == -3
    assert lines(figure) == lines(usual) and rings(figure) == rings(usual)
    assert "triangles: beyond the axis" in remark(figure) and "triangles" not in remark(usual)


def colour(figure, value: float) -> str:
    """What Plotly draws a number of the colour axis in: the last colour of the scale at or below it."""
    axis = figure.layout.coloraxis
    place = (value - axis.cmin) / (axis.cmax - axis.cmin)
    return [colour for start, colour in axis.colorscale if start <= max(place, 0)][-1]


def test_colours_follow_the_logarithm_of_the_coefficient():
    figure = tradeoff(table((0.01, 0.1, 10), SHARES[:3], SCORES[:3]))
    np.testing.assert_allclose(dots(figure).marker.color, [-2, -1, 1], rtol=1e-6)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-2, 1)
    assert list(figure.layout.coloraxis.colorbar.ticktext) == ["0.01", "0.1", "1", "10"]
    np.testing.assert_allclose(figure.layout.coloraxis.colorbar.tickvals, [-2, -1, 0, 1], atol=1e-9)


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=5, unique=True))
def test_zero_has_its_own_colour_and_place_on_the_colour_bar(coefficients):
    coefficients = [0.0, *coefficients]
    figure = tradeoff(table(coefficients, [0.5] * len(coefficients), [0.9] * len(coefficients)))
    zero, *others = [colour(figure, value) for value in dots(figure).marker.color]
    assert zero not in others
    bar = figure.layout.coloraxis.colorbar
    assert bar.ticktext[0] == "0" and colour(figure, bar.tickvals[0]) == zero
    assert colour(figure, bar.tickvals[1]) != zero
    assert figure.layout.coloraxis.showscale


def test_runs_without_penalty_alone_can_be_drawn():
    figure = tradeoff(table((0, 0), SHARES[:2], SCORES[:2]))
    assert len(dots(figure).x) == 2 and not figure.layout.coloraxis.showscale


def test_reported_runs_are_labelled_diamonds_on_a_line_in_the_order_of_their_coefficients():
    trace = diamonds(tradeoff(at_both(table(), 1.0), reported=reported().iloc[::-1]))
    assert trace.name == "reported (Farnik et al., 2025)" and trace.showlegend
    np.testing.assert_allclose(trace.x, 100 * reported()["above_0.01"])
    np.testing.assert_allclose(trace.y, reported()["ce_score"])
    assert "lines" in trace.mode and set(labels(trace)) & {"0.2", "3", "50"}


@pytest.mark.parametrize("none", [None, reported_sweep("gpt2", 3)], ids=["None", "no row"])
def test_where_nothing_was_reported_there_are_no_diamonds(none):
    figure = tradeoff(table(), reported=none)
    assert legend(figure) == [] and len(diamonds(figure).x) == 0


def test_the_reported_sweep_is_the_reported_one():
    runs = reported()
    assert list(runs.columns) == ["jacobian_coefficient", "ce_score", "above_0.01", "jacobian_at"]
    assert set(runs["jacobian_at"]) == {"reconstruction"}
    assert runs["jacobian_coefficient"].tolist() == [0.01, 0.2, 0.5, 1, 3, 4, 5, 50]
    assert (1024 * runs["above_0.01"]).tolist() == [526, 323, 213, 84, 43, 37, 15, 0]
    assert runs["ce_score"].tolist() == [0.933, 0.932, 0.929, 0.92, 0.889, 0.792, 0.632, 0.54]
    assert reported_sweep("pythia-70m-deduped", 2).empty


@pytest.mark.parametrize(
    "bad, complaint",
    [
        (lambda runs: runs.drop(columns="ce_score"), "reported runs lacks ce_score"),
        (lambda runs: runs.drop(columns="jacobian_at"), "reported runs lacks jacobian_at"),
        (lambda runs: runs.assign(ce_score=np.nan), "reported runs holds NaN"),
        (lambda runs: runs.assign(ce_score=np.inf), "reported runs holds ce_score = inf, which is impossible"),
        (lambda runs: runs.assign(**{"above_0.01": 8.2}), "reported runs holds above_0.01 = 8.2, which is impossible"),
    ],
)
def test_reported_runs_that_make_no_sense_are_refused(bad, complaint):
    with pytest.raises(ValueError, match=complaint):
        tradeoff(table(), reported=bad(reported()))


def panels(figure) -> dict:
    """Runs and both axes by the titles of column and row: sparsity, quality."""

    def axis(name, letter):
        return figure.layout[name.replace(letter, f"{letter}axis")]

    def title(at, axes):
        (found,) = {axis.title.text for axis in axes if axis.domain == at.domain and axis.title.text}
        return found.split("<br>")[0]

    found = {}
    for trace in figure.data:
        if trace.marker.coloraxis:
            x, y = axis(trace.xaxis, "x"), axis(trace.yaxis, "y")
            key = title(x, figure.select_xaxes()), title(y, figure.select_yaxes())
            assert key not in found
            found[key] = trace, x, y
    return found


COLUMNS = {
    "L1/L2": ("l1_over_l2", 1),
    "kurtosis": ("kurtosis", 1),
    "|J| ≥ 0.005": ("above_0.005", 100),
    "|J| ≥ 0.01": ("above_0.01", 100),
    "|J| ≥ 0.02": ("above_0.02", 100),
}


def test_each_chart_of_the_grid_shows_its_two_measures():
    runs = table()
    found = panels(sweep_grid_figure(runs, SUBTITLE))
    rows = {
        "CE score": runs["ce_score"],
        "KL score": (runs["kl_score_input"] + runs["kl_score_output"]) / 2,
        "explained variance": runs["explained_variance_output"],
    }
    assert set(found) == {(column, row) for column in COLUMNS for row in rows}
    for (column, row), (trace, _, _) in found.items():
        name, unit = COLUMNS[column]
        np.testing.assert_allclose(trace.x, unit * runs[name], rtol=1e-6)
        np.testing.assert_allclose(trace.y, rows[row], rtol=1e-6)


def test_the_axes_of_the_grid_run_as_those_of_the_trade_off():
    one, grid = tradeoff(table()), sweep_grid_figure(table(), SUBTITLE)
    trace, _, _ = panels(grid)["|J| ≥ 0.01", "CE score"]
    np.testing.assert_allclose(trace.x, dots(one).x, rtol=1e-6)
    np.testing.assert_allclose(trace.y, dots(one).y, rtol=1e-6)


def test_the_answer_is_how_far_the_numbers_go_from_the_smallest_to_the_largest_coefficient():
    runs = table([0, 3, 30], [0.8, 0.5, 0.2], [0.83, 0.77, 0.49])
    assert answer(tradeoff(runs)) == "From λ = 0 to 30, |J| ≥ 0.01 80% → 20%, CE score 0.830 → 0.490."
    assert answer(sweep_grid_figure(runs, SUBTITLE)).startswith("From λ = 0 to 30, |J| ≥ 0.01 80% → 20%, kurtosis ")
    assert "The curve bends at λ = 1." in answer(tradeoff(twice(table())))
    both = pd.concat([table(layer=1), table(layer=5)])
    assert answer(tradeoff(both)).startswith("Over all runs: |J| ≥ 0.01 ")


def test_charts_in_a_row_share_their_y_axis_and_charts_in_a_column_their_x_axis():
    runs = of(table(), 2, **{"above_0.01": np.nan})  # what a chart shows differs, its axes do not
    found = panels(sweep_grid_figure(runs, SUBTITLE))
    for axis, along in ((1, 0), (2, 1)):
        for title in {key[along] for key in found}:
            axes = [panel[axis] for key, panel in found.items() if key[along] == title]
            assert len({one.range for one in axes}) == 1
            assert len({one.matches for one in axes} - {None}) == 1


def test_the_grid_says_what_means_sparser_and_whose_scores_are_shown():
    figure = sweep_grid_figure(table(), SUBTITLE)
    axes = [*figure.select_xaxes(), *figure.select_yaxes()]
    titles = {re.sub("</?span.*?>", "", axis.title.text) for axis in axes if axis.title.text}
    assert {
        "L1/L2<br>↓ sparser",
        "kurtosis<br>↑ sparser",
        "|J| ≥ 0.01<br>(%)",
        "CE score<br>mean of both SAEs",
        "explained variance<br>output SAE",
    } <= titles


def test_the_kurtosis_is_logarithmic_with_plain_numbers():
    _, x, _ = panels(sweep_grid_figure(table(), SUBTITLE))["kurtosis", "CE score"]
    assert x.type == "log"
    assert x.range[0] < 1 and np.log10(30) < x.range[1] < 2
    assert list(x.ticktext) == ["10", "20", "30"]


def test_any_columns_can_be_rows_and_columns():
    runs = table(speed=[1.0, 2, 3, 4, -2])
    found = panels(sweep_grid_figure(runs, SUBTITLE, ["above_0.015", "speed"], ["kl_score_input"]))
    assert set(found) == {("|J| ≥ 0.015", "KL score"), ("speed", "KL score")}
    trace, x, _ = found["speed", "KL score"]
    np.testing.assert_allclose(trace.x, runs["speed"])
    assert x.range[0] < -2 and 4 < x.range[1]


@pytest.mark.parametrize(
    "change", [lambda runs: runs.drop(columns="kurtosis"), lambda runs: runs.assign(kurtosis=None)]
)
def test_a_measure_without_numbers_is_left_out_and_named(change):
    figure = sweep_grid_figure(change(table()), SUBTITLE)
    assert not {column for column, _ in panels(figure)} & {"kurtosis"}
    assert len(panels(figure)) == 12
    assert "no run has kurtosis" in remark(figure)


def test_without_the_scores_of_both_saes_there_is_no_mean():
    figure = sweep_grid_figure(table().drop(columns="kl_score_input"), SUBTITLE)
    assert {row for _, row in panels(figure)} == {"CE score", "explained variance"}
    assert "no run has KL score" in remark(figure)


def test_a_run_is_missing_only_from_the_charts_of_numbers_that_it_lacks():
    found = panels(sweep_grid_figure(of(table(), 1, kurtosis=np.nan), SUBTITLE))
    assert {(column, len(trace.x)) for (column, _), (trace, _, _) in found.items()} == {
        (column, 4 if column == "kurtosis" else 5) for column in COLUMNS
    }


@pytest.mark.parametrize(
    "name, value, panel, symbol",
    [
        ("ce_score", -3.0, ("kurtosis", "CE score"), "triangle-down"),
        ("ce_score", 7.0, ("kurtosis", "CE score"), "triangle-up"),
        ("kurtosis", 0.0, ("kurtosis", "CE score"), "triangle-left"),
        ("l1_over_l2", 40.0, ("L1/L2", "CE score"), "triangle-right"),
    ],
)
def test_in_the_grid_what_is_beyond_an_axis_is_a_triangle_at_its_end(name, value, panel, symbol):
    figure = sweep_grid_figure(of(table(), 1, **{name: value}), SUBTITLE)
    trace, x, y = panels(figure)[panel]
    assert trace.marker.symbol[1] == symbol
    place = np.log10(trace.x[1]) if x.type == "log" else trace.x[1]
    assert x.range[0] < place < x.range[1] and y.range[0] < trace.y[1] < y.range[1]
    assert abs(x.range[1]) < 3 and abs(y.range[1]) < 2
    assert "triangles: beyond the axis" in remark(figure)


def test_the_grid_has_one_colour_bar_and_a_legend_of_groups():
    figure = sweep_grid_figure(pd.concat([table(layer=1), table(layer=2)]), SUBTITLE)
    assert legend(figure) == ["layer 1", "layer 2"]
    assert {trace.marker.coloraxis for trace in figure.data} == {"coloraxis", None}
    assert figure.layout.coloraxis.showscale


def test_the_grid_counts_what_it_draws_and_leaves_out():
    runs = of(of(table(), 0, state="running"), 1, jacobian_coefficient=np.nan)
    runs["accounted_share"] = 0.9
    said = "a sweep · J at the true input · 3 runs; left out: 1 not finished, 1 incomplete"
    assert remark(sweep_grid_figure(runs, SUBTITLE)) == said


@pytest.mark.parametrize("kind, names", [("sparsity", SPARSITY), ("quality", [*QUALITY, "kl_score_input"])])
def test_a_grid_without_any_measure_of_a_kind_is_refused(kind, names):
    with pytest.raises(ValueError, match=f"no finished run has a number of {kind}; expected one of {names[0]}"):
        sweep_grid_figure(table().drop(columns=[*names], errors="ignore"), SUBTITLE)


both = pytest.mark.parametrize("draw", [sweep_tradeoff_figure, sweep_grid_figure])


@both
def test_names_that_look_like_markup_are_drawn_as_they_stand(draw):
    runs = pd.concat([table(name="a < b & c", model="<i>"), table(model="x")])
    figure = draw(runs, SUBTITLE)
    runs_drawn = next(trace for trace in figure.data if trace.marker.coloraxis)
    assert runs_drawn.hovertext[0] == "a &lt; b &amp; c<br>λ = 0, &lt;i&gt;"
    assert legend(figure)[0].startswith("&lt;i&gt;")


@both
def test_500_runs_make_a_light_figure(draw):
    random = np.random.default_rng(0)
    runs = table(10 ** random.uniform(-2, 1, 500), random.random(500), random.random(500))
    assert len(draw(runs, SUBTITLE).to_json()) < 1_000_000


@both
def test_runs_without_what_describes_them_are_refused(draw):
    for name in ("name", "state", "deleted", "model", "layer", "jacobian_coefficient"):
        with pytest.raises(ValueError, match=f"the table of runs lacks {name}"):
            draw(table().drop(columns=name), SUBTITLE)


@pytest.mark.parametrize("name", ["ce_score", "above_0.01"])
def test_a_trade_off_without_one_of_its_columns_is_refused(name):
    with pytest.raises(ValueError, match=f"the table of runs lacks {name}"):
        tradeoff(table().drop(columns=name))
    with pytest.raises(ValueError, match="no finished run has jacobian_coefficient and above_0.01 and ce_score"):
        tradeoff(table(**{name: np.nan}))


@both
def test_a_table_without_runs_is_refused(draw):
    with pytest.raises(ValueError, match="the table of runs has no run"):
        draw(table().iloc[:0], SUBTITLE)


@both
def test_a_table_without_finished_runs_is_refused(draw):
    with pytest.raises(ValueError, match="none of the 5 runs is finished"):
        draw(table(state="running"), SUBTITLE)


@both
def test_finished_runs_without_a_coefficient_are_not_enough(draw):
    with pytest.raises(ValueError, match="no finished run has jacobian_coefficient"):
        draw(table(jacobian_coefficient=np.nan), SUBTITLE)


ODD = [
    ("jacobian_coefficient", -1, "jacobian_coefficient = -1"),
    ("jacobian_coefficient", np.inf, "jacobian_coefficient = inf"),
    ("ce_score", -np.inf, "ce_score = -inf"),
    ("above_0.01", np.inf, "above_0.01 = inf"),
    ("above_0.01", -0.1, "above_0.01 = -0.1"),
    ("above_0.02", 11.3, "above_0.02 = 11.3"),
]


@both
@pytest.mark.parametrize("name, value, why", ODD)
def test_a_run_with_a_number_that_cannot_be_is_left_out_of_both_figures_with_a_remark(draw, name, value, why):
    figure, usual = draw(of(table(), 1, **{name: value}), SUBTITLE), draw(table().drop(index=1), SUBTITLE)
    assert f" · 4 runs; left out: 1 odd ({why})" in remark(figure)
    assert [trace.to_json() for trace in figure.data] == [trace.to_json() for trace in usual.data]


@both
def test_infinite_numbers_of_unfinished_runs_do_not_matter(draw):
    figure = draw(of(table(), 1, ce_score=np.inf, state="running"), SUBTITLE)
    assert "; left out: 1 not finished" in remark(figure)


@both
def test_where_every_finished_run_is_odd_that_is_an_error(draw):
    with pytest.raises(ValueError, match="none of the 5 finished runs has possible numbers: jacobian_coefficient"):
        draw(table().assign(jacobian_coefficient=-1.0), SUBTITLE)


def test_a_kurtosis_beyond_all_measure_is_drawn_at_the_end_of_its_axis():
    _, x, _ = panels(sweep_grid_figure(of(table(), 1, kurtosis=1e300), SUBTITLE))["kurtosis", "CE score"]
    assert x.range[1] < 14  # a decimal logarithm


def test_odd_runs_are_told_by_their_place_in_the_table():
    runs = of(of(of(table(), 0, state="running", ce_score=np.inf), 3, ce_score=np.inf), 4, jacobian_coefficient=-2)
    assert odd_runs(runs).to_dict() == {3: "ce_score = inf", 4: "jacobian_coefficient = -2"}
    assert odd_runs(table()).empty


def test_a_large_lambda_is_written_out():
    figure = tradeoff(table([0.0, 300.0, 3000.0], [0.6, 0.3, 0.1], [0.9, 0.7, 0.5]))
    assert "3,000" in [label.strip("\xa0") for label in labels(dots(figure))]
