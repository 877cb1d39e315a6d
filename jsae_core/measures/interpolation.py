"""A number of pairs at a given quality, interpolated between a pair of higher and a pair of lower quality.

A control whose pairs explain more or less than the pairs it controls for says little, since a Jacobian can always be
made smaller at the price of quality. So the controls' number is read off at equal quality, between two of them.
Not here: which pairs are compared, and by which quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from jsae_core.measures.moments import Estimate


def interpolated(points: Sequence[tuple[Estimate, Estimate]], at: Estimate) -> Estimate | None:
    """The value at a quality, on the straight line between the two points whose qualities enclose it most closely; None
    if no two do. With the point a below and b above, t = (q - q_a) / (q_b - q_a) of the way from a to b,

        v = (1 - t) v_a + t v_b,
        error <= (1 - t) e(v_a) + t e(v_b) + |v_b - v_a| / (q_b - q_a) (e(q) + (1 - t) e(q_a) + t e(q_b)).

    The error returned is this bound, to first order. The numbers come from the same documents, so their errors may be
    correlated; the bound holds for any correlation. It does not include how far the true curve is from a straight line.

    Args:
        points: quality and value of each pair, in any order.
        at: the quality at which the value is wanted.
    """
    ordered = sorted(points, key=lambda point: point[0].value)
    for (quality_a, value_a), (quality_b, value_b) in pairwise(ordered):
        if quality_a.value <= at.value <= quality_b.value:
            apart = quality_b.value - quality_a.value
            share = (at.value - quality_a.value) / apart if apart else 0.0
            slope = abs(value_b.value - value_a.value) / apart if apart else 0.0

            of_quality = (1 - share) * quality_a.standard_error + share * quality_b.standard_error
            return Estimate(
                (1 - share) * value_a.value + share * value_b.value,
                (1 - share) * value_a.standard_error
                + share * value_b.standard_error
                + slope * (at.standard_error + of_quality),
            )
    return None
