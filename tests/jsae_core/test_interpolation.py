"""Reading a value off between pairs of more and of less quality, against numbers worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsae_core.measures import Estimate, interpolated


def of(quality: float, value: float, quality_error: float = 0.0, error: float = 0.0) -> tuple[Estimate, Estimate]:
    return Estimate(quality, quality_error), Estimate(value, error)


def test_a_value_between_two_pairs_is_on_the_line_between_them_with_the_error_that_hand_work_gives():
    # 0.7 is a quarter of the way from 0.65 to 0.85, so the value is 0.1 + (0.3 - 0.1) / 4 = 0.15. The line rises by
    # (0.3 - 0.1) / (0.85 - 0.65) = 1, so qualities' errors count once: 0.75 * 0.01 + 0.25 * 0.02 = 0.0125 of values,
    # 0.75 * 0.004 + 0.25 * 0.008 = 0.005 of qualities, 0.003 of the quality asked for
    points = [of(0.85, 0.3, 0.008, 0.02), of(0.65, 0.1, 0.004, 0.01)]
    found = interpolated(points, Estimate(0.7, 0.003))
    assert found.value == pytest.approx(0.15)
    assert found.standard_error == pytest.approx(0.0125 + 0.005 + 0.003)


def test_the_pairs_that_enclose_a_quality_most_closely_count_whatever_their_order():
    points = [of(0.9, 0.5), of(0.6, 0.0), of(0.8, 0.4), of(0.2, 0.3)]
    assert interpolated(points, Estimate(0.7, 0.0)).value == pytest.approx(0.2)


def test_at_the_quality_of_a_pair_it_is_that_pair_s_value_also_where_two_pairs_have_it():
    assert interpolated([of(0.5, 1.0), of(0.7, 2.0)], Estimate(0.7, 0.0)).value == 2
    assert interpolated([of(0.7, 2.0, 0.1, 0.3), of(0.7, 2.0, 0.1, 0.3)], Estimate(0.7, 0.0))[:2] == (2, 0.3)


@pytest.mark.parametrize("at", [0.4999, 0.7001])
def test_nothing_is_said_beyond_the_pairs(at):
    assert interpolated([of(0.5, 1.0), of(0.7, 2.0)], Estimate(at, 0.0)) is None
    assert interpolated([], Estimate(at, 0.0)) is None


@given(st.floats(0, 1), st.floats(0.01, 1), st.floats(-1, 1), st.floats(-1, 1), st.lists(st.floats(-1, 1), min_size=5))
def test_the_error_bounds_what_errors_of_the_numbers_do_to_the_value(share, apart, low, high, signs):
    """To first order: moved by a thousandth of their errors."""
    errors = (0.01, 0.02, 0.03, 0.04, 0.05)
    tiny = 1e-3 * apart
    moved = [tiny * error * sign for error, sign in zip(errors, signs, strict=False)]
    at = 0.2 + share * apart
    before = interpolated([of(0.2, low, 0.03, 0.01), of(0.2 + apart, high, 0.04, 0.02)], Estimate(at, 0.05))
    points = [of(0.2 + moved[2], low + moved[0]), of(0.2 + apart + moved[3], high + moved[1])]
    after = interpolated(points, Estimate(at + moved[4], 0.0))
    if before is not None and after is not None:
        assert abs(after.value - before.value) <= 1.01 * tiny * before.standard_error + 1e-12
