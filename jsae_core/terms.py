"""Names and numbers that measures, figures, sweeps and the platform must agree on.

Here: what several of them say or store. Not here: what one of them alone decides. Imports nothing, so that whoever
draws or declares need not load what computes.
"""

from __future__ import annotations

from typing import Any

Z95 = 1.96  # standard errors on either side of a 95% interval
THRESHOLDS = (0.005, 0.01, 0.015, 0.02)  # of |J|
NOTEWORTHY = 0.01  # |J| and changes below it are of no interest by themselves: most are
NOTEWORTHY_SHARE = 0.01  # the same on any scale, of what an output latent's activation is on the average

# Where the Jacobian is evaluated: at the MLP's true input, or at the input SAE's reconstruction of it
EVALUATED_AT = ("input", "reconstruction")
AT_RECONSTRUCTION = "_at_reconstruction"  # after the name of what is of the second, where both are told

AS_PUBLISHED = "_as_published"  # after the name of what is under the convention of the reported numbers

# Norms of one token's Jacobian, by which histograms are divided
NORMS = {"l2t": "root mean square", "l4t": "fourth-power mean", "linft": "maximum"}

# How much of an input latent an intervention takes away
DOSES = {"unit": "one unit", "whole": "its whole activation", "double": "twice its activation"}
# What becomes of an output latent after an intervention, beside what the Jacobian predicts, and what the paper tells
# apart
AGREEMENTS = ("line", "off", "dropped", "negligible")
PUBLISHED_AGREEMENTS = ("line", "cluster", "other")

# Shapes of an output latent as a function of an input latent
FUNCTION_SHAPES = ("linear", "jumprelu", "other")
STRAIGHT_WITHIN = 0.01  # a curve is straight where no residual of its least-squares line reaches this; flat, no range
# The same on any scale: a curve is straight where no residual exceeds this share of its range, and flat, which is a
# shape of its own, where its range is at most that share of its largest value
RELATIVE_SHAPES = (*FUNCTION_SHAPES, "flat")
STRAIGHT_WITHIN_SHARE, FLAT_WITHIN_SHARE = 0.05, 0.01


def is_above(magnitude: Any, threshold: Any) -> Any:
    """Whether magnitudes (a number, an array or a tensor) are above a threshold, or each above its own. The threshold
    itself counts as above, as it does in a histogram, whose bins are [edge, edge + width)."""
    return magnitude >= threshold
