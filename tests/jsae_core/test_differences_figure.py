import numpy as np
import pytest

from jsae_core.figures import Difference, Variant, differences_figure
from tests.jsae_core.subtitles import answer

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


@pytest.mark.parametrize("groups", [{}, {"Jacobian": []}])
def test_nothing_to_draw_is_refused(groups):
    with pytest.raises(ValueError, match="no difference to draw"):
        differences_figure(JSAE, TRADITIONAL, groups, "")


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="CE score holds NaN or infinite values"):
        differences_figure(JSAE, TRADITIONAL, {"Quality": [Difference("CE score", float("nan"), 1, 1, "")]}, "")
