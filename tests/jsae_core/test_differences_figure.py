import numpy as np
import pytest

from jsae_core.figures import Difference, Variant, differences_figure
from tests.jsae_core.subtitles import answer, details

TRADITIONAL, JSAE = Variant("Traditional", "#0072B2"), Variant("JSAE", "#D55E00")
GROUPS = {
    "Jacobian": [Difference("|J| ≥ 0.01", 0.2, 0.8, 0.01, "jacobian_histogram, 10,000 tokens")],
    "Quality": [
        Difference("CE score", 0.75, 0.85, 0.02, "pair_quality, 3,000 tokens"),
        Difference("KL score", 0.5, 0.5, 0.0, "pair_quality, 3,000 tokens"),
    ],
}


@pytest.fixture(scope="module")
def figure():
    return differences_figure(JSAE, TRADITIONAL, GROUPS, "tiny, layer 1")


def test_each_number_is_a_dot_at_its_difference_in_points_with_a_95_per_cent_interval(figure):
    (dots,) = figure.data
    np.testing.assert_allclose(dots.x, [-60, -10, 0])
    np.testing.assert_allclose(dots.error_x.array, [1.96, 3.92, 0])
    assert list(figure.layout.yaxis.ticktext) == list(dots.text) == ["|J| ≥ 0.01", "CE score", "KL score"]
    assert list(figure.layout.yaxis.tickvals) == list(dots.y) == sorted(dots.y)


def test_both_values_stand_beside_and_each_row_says_its_tokens(figure):
    notes = [note.text for note in figure.layout.annotations]
    assert [note for note in notes if " / " in note] == ["20.0 / 80.0", "75.0 / 85.0", "50.0 / 50.0"]
    assert [row[0] for row in figure.data[0].customdata] == [
        "jacobian_histogram, 10,000 tokens",
        "pair_quality, 3,000 tokens",
        "pair_quality, 3,000 tokens",
    ]


def test_headings_stand_above_their_rows(figure):
    headings = [note for note in figure.layout.annotations if note.text.startswith("<b>")]
    assert [heading.text for heading in headings] == ["<b>Jacobian</b>", "<b>Quality</b>"]
    first, second, _ = figure.data[0].y
    assert headings[0].y < first < headings[1].y < second


def test_the_answer_counts_what_differs_by_more_than_its_interval_and_names_the_largest(figure):
    assert answer(figure) == "2 of 3 numbers differ by more than chance; most of all |J| ≥ 0.01, by −60.0 points."


def test_a_number_differs_by_more_than_chance_only_beyond_1_96_standard_errors():
    def of(standard_error: float) -> str:
        return answer(differences_figure(JSAE, TRADITIONAL, {"": [Difference("n", 0.5, 0.3, standard_error, "")]}, ""))

    assert of(0.2 / 1.95) == "None of 1 numbers differs by more than chance."
    assert of(0.2 / 1.97) == "1 of 1 numbers differ by more than chance; most of all n, by +20.0 points."


def with_unknown(standard_error: float) -> dict:
    return GROUPS | {"Scores": [Difference("CE of a model that needs no MLP", 1.6, 0.5, standard_error, "")]}


def test_a_number_that_is_hardly_known_is_neither_named_nor_does_it_press_the_others_together():
    figure = differences_figure(JSAE, TRADITIONAL, with_unknown(3.0), "tiny, layer 1")
    assert answer(figure) == "2 of 4 numbers differ by more than chance; most of all |J| ≥ 0.01, by −60.0 points."
    low, high = figure.layout.xaxis.range
    assert low == -high and 110 < high < 200 and "longer than the axis" in details(figure)
    known = differences_figure(JSAE, TRADITIONAL, with_unknown(0.01), "tiny, layer 1")
    assert known.layout.xaxis.range is None and "by +110.0 points" in answer(known)


def test_where_nothing_is_known_the_answer_names_nothing():
    rows = {"Quality": [Difference("CE score", 0.75, 0.85, 0.2, "")]}
    assert answer(differences_figure(JSAE, TRADITIONAL, rows, "")) == "None of 1 numbers differs by more than chance."


@pytest.mark.parametrize("groups", [{}, {"Jacobian": []}])
def test_nothing_to_draw_is_refused(groups):
    with pytest.raises(ValueError, match="no difference to draw"):
        differences_figure(JSAE, TRADITIONAL, groups, "")


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="CE score holds NaN or infinite values"):
        differences_figure(JSAE, TRADITIONAL, {"Quality": [Difference("CE score", float("nan"), 1, 1, "")]}, "")
