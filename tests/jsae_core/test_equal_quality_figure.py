"""What the figure of pairs beside their controls at equal quality promises, read from its data."""

import pytest

from jsae_core.figures import PairNumbers, Variant, equal_quality_figure

JSAE, CONTROL = Variant("JSAE <b>", "#D55E00"), Variant("JSAE, randomised model", "#E69F00")
TRAINED = [
    PairNumbers(6.5, (0.66, 0.01), (0.22, 0.01), (0.38, 0.02)),
    PairNumbers(0.0, (0.82, 0.01), (0.83, 0.01), (0.96, 0.02)),
]
RANDOMISED = [
    PairNumbers(0.0, (0.9, 0.01), (0.88, 0.01), (0.95, 0.02)),
    PairNumbers(20.0, (0.6, 0.01), (0.08, 0.01), (-0.2, 0.02)),
]
READ_OFF = PairNumbers(None, (0.66, 0.01), (0.24, 0.02), (0.03, 0.05))


def drawn(read_off=READ_OFF):
    return equal_quality_figure({JSAE: TRAINED, CONTROL: RANDOMISED}, TRAINED[0], read_off, "layer 1")


def said(figure) -> str:
    return figure.layout.title.subtitle.text.replace("<br>", " ")


def test_each_model_s_pairs_are_a_line_in_the_order_of_what_they_explain_in_both_panels():
    lines = [trace for trace in drawn().data if "lines" in trace.mode]
    assert [list(line.x) for line in lines] == [[66, 82], [60, 90]] * 2
    assert [list(line.y) for line in lines] == [[22, 83], [8, 88], [38, 96], [-20, 95]]
    assert [list(line.text) for line in lines[:2]] == [["λ 6.5", "λ 0"], ["λ 20", "λ 0"]]
    assert list(lines[0].error_y.array) == list(lines[0].error_x.array) == pytest.approx([1.96] * 2)
    assert lines[0].line.dash != lines[1].line.dash and lines[0].marker.symbol != lines[1].marker.symbol


def test_what_was_read_off_is_a_diamond_with_its_interval_at_the_explained_variance_compared():
    share, accounted = (trace for trace in drawn().data if trace.marker.symbol == "diamond")
    assert (list(share.x), list(share.y)) == ([66], [24]) and list(share.error_y.array) == pytest.approx([3.92])
    assert list(accounted.y) == [3] and list(accounted.error_y.array) == pytest.approx([9.8])
    assert [shape.x0 for shape in drawn().layout.shapes] == [66, 66]


def test_axes_hold_every_interval():
    figure = drawn()
    for trace in figure.data:
        (low, high), (bottom, top) = (figure.layout[f"{axis}axis{trace.xaxis[1:]}"].range for axis in "xy")
        across, up = (trace.error_x.array or [0] * len(trace.x)), trace.error_y.array
        assert all(low < x - error and x + error < high for x, error in zip(trace.x, across, strict=True))
        assert all(bottom < y - error and y + error < top for y, error in zip(trace.y, up, strict=True))


def test_labels_of_pairs_at_one_place_stand_apart_and_those_without_room_are_told_when_pointed_at():
    same = [PairNumbers(coefficient, (0.82, 0.01), (1.0, 0.0), (0.9, 0.01)) for coefficient in range(8)]
    figure = equal_quality_figure({JSAE: same[:1], CONTROL: same[1:]}, same[0], None, "layer 1")
    lines = [trace for trace in figure.data if trace.xaxis == "x"]
    shown = [position for line in lines for text, position in zip(line.text, line.textposition, strict=True) if text]
    assert 1 < len(shown) == len(set(shown)) < 8
    assert [told for line in lines for told in line.customdata] == [f"λ {pair.coefficient}" for pair in same]


def test_the_subtitle_answers_with_both_numbers_and_their_intervals():
    assert said(drawn()).startswith(
        "At 66% explained variance, |J| ≥ 0.01: 22.0 ± 2.0% (JSAE &lt;b&gt;), 24.0 ± 3.9% (JSAE, randomised model, "
        "read off at equal explained variance); accounted: 38.0 ± 3.9%, 3.0 ± 9.8%. layer 1"
    )


@pytest.mark.parametrize(("explained", "which"), [(90, "larger"), (60, "smaller")])
def test_where_no_pairs_enclose_it_there_is_no_diamond_and_the_subtitle_says_what_it_takes(explained, which):
    (pair,) = (pair for pair in RANDOMISED if pair.explained[0] == explained / 100)
    figure = equal_quality_figure({JSAE: TRAINED, CONTROL: [pair]}, TRAINED[0], None, "layer 1")
    assert not [trace for trace in figure.data if trace.marker.symbol == "diamond"]
    assert f"they explain {explained} to {explained}%. It takes a {which} λ in the sweep." in said(figure)


@pytest.mark.parametrize("pairs", [{JSAE: TRAINED}, {JSAE: TRAINED, CONTROL: []}])
def test_a_model_without_pairs_is_refused(pairs):
    with pytest.raises(ValueError, match="expected two, with at least one pair each"):
        equal_quality_figure(pairs, TRAINED[0], None, "")
