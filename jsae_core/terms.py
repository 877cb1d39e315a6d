"""Names and numbers that measures, figures, sweeps and the platform must agree on.

Here: what several of them display or store. Not here: what only one of them uses. Imports nothing, so that code which
only draws or declares does not load torch.
"""

from __future__ import annotations

from typing import Any

Z95 = 1.96  # standard errors on either side of a 95% interval
# With fewer documents, a standard error over them is itself uncertain: of ten, a 95% interval is t = 2.3 errors wide on
# either side, of three 4.3
FEW_DOCUMENTS = 10
THRESHOLDS = (0.005, 0.01, 0.015, 0.02)  # of |J|
NOTEWORTHY = 0.01  # a |J| or a change below this is negligible; most are
NOTEWORTHY_SHARE = 0.01  # the same bound on a relative scale: as a share of the output latent's mean activation

# Where the Jacobian is evaluated: at the MLP's true input, or at the input SAE's reconstruction of it
EVALUATED_AT = ("input", "reconstruction")
AT_RECONSTRUCTION = "_at_reconstruction"  # suffix of a metric at the reconstruction, where a table has both

AS_PUBLISHED = "_as_published"  # suffix of a metric under the conventions of the reported numbers

# Norms of one token's Jacobian, by which histograms are divided
NORMS = {"l2t": "root mean square", "l4t": "fourth-power mean", "linft": "maximum"}

# How much of an input latent an intervention takes away
DOSES = {"unit": "one unit", "whole": "its whole activation", "double": "twice its activation"}
# How the change of an output latent after an intervention compares with the Jacobian's prediction: the classes used
# here, and those of the paper
AGREEMENTS = ("line", "off", "dropped", "negligible")
PUBLISHED_AGREEMENTS = ("line", "cluster", "other")

# Shapes of an output latent as a function of an input latent
FUNCTION_SHAPES = ("linear", "jumprelu", "other")
# A curve is straight if all residuals of its least-squares line are below this, and flat if its range is below this
STRAIGHT_WITHIN = 0.01
# The same on a relative scale: a curve is straight if no residual exceeds the first share of its range, and flat (a
# shape of its own) if its range is at most the second share of its largest value
RELATIVE_SHAPES = (*FUNCTION_SHAPES, "flat")
STRAIGHT_WITHIN_SHARE, FLAT_WITHIN_SHARE = 0.05, 0.01


def is_above(magnitude: Any, threshold: Any) -> Any:
    """Whether magnitudes (a number, an array or a tensor) are above a threshold, or each above its own threshold. A
    magnitude equal to its threshold counts as above, as in a histogram, whose bins are [edge, edge + width)."""
    return magnitude >= threshold
