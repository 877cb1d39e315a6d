"""What the numbers of a pair say, in sentences, beside those of the pair that it is compared with.

Here: choosing the numbers and wording the sentences. Not here: which numbers there are (`results.py`), which page
shows the sentences (`pages.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jsae_assets.number import Number
from jsae_assets.site.results import L1_OVER_L2

NEARLY_ALL, NEARLY_NONE = 0.95, 0.01  # shares of elements; where both pairs' lie beyond, a threshold tells little


def sentences(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on a pair beside the one that it is compared with at the same cell; none if there is none.

    Args:
        row: the pair, a row of the table over all pairs.
        rows: all rows.
    """
    other = next((r for r in rows if r["cell"] == row["cell"] and r["variant"] == row["other"]), None)
    if other is None:
        return []
    said, model, layer = [], row["model"], row["layer"]

    def both(title: str) -> tuple[Number, Number] | None:
        pair = row["numbers"].get(title), other["numbers"].get(title)
        return pair if all(pair) else None

    if found := both("|J| ≥ 0.01"):
        said.append(
            f"At layer {layer} of {model}, "
            + said_of_sizes((row["label"], other["label"]), found, both(L1_OVER_L2.title))
        )
    if found := both("accounted for"):
        said.append(
            f"Its input latents account for {found[0]} of what its output latents compute, against {found[1]}. "
            "At 100% nothing comes from elsewhere, that is from biases and from what the input SAE leaves out; above "
            "100% these lower the output latents."
        )
    if found := both("KL score"):
        said.append(
            f"With both SAEs spliced in, the model's predictions keep {found[0]} of what the MLP gives them, "
            f"against {found[1]} (KL score)."
        )
    ours, theirs = row["agreement"], other["agreement"]
    if ours and theirs:
        said.append(
            f"When an input latent's activation is lowered by one, {ours['agreement_negligible']:.0%} of the samples "
            f"are negligible (|J| and the change are below 0.01), against {theirs['agreement_negligible']:.0%}. Of the "
            f"others {ours['noteworthy_line']:.0%} change as the Jacobian says, within a tenth, against "
            f"{theirs['noteworthy_line']:.0%}. If negligible means less than 1% of what the output latent usually is, "
            f"whatever the model's scale, these are {ours['relative_noteworthy_line']:.0%} and "
            f"{theirs['relative_noteworthy_line']:.0%}."
        )
    return said


def said_of_sizes(labels: tuple[str, str], shares: tuple[Number, Number], ratios: tuple[Number, Number] | None) -> str:
    """Return how large the elements of two pairs' Jacobians are, in words: the shares that are 0.01 or more; or, if
    these are nearly all or nearly none in both pairs and so say little, L1/L2."""
    telling = any(share.value <= NEARLY_ALL for share in shares) and any(share.value >= NEARLY_NONE for share in shares)
    if telling or ratios is None:
        return (
            f"{shares[0]} of the Jacobian's elements are 0.01 or more in the pair “{labels[0]}”, {shares[1]} in "
            f"“{labels[1]}”."
        )
    return (
        f"L1/L2 of the Jacobian (lower is sparser, on any scale) is {ratios[0]} in the pair “{labels[0]}”, {ratios[1]} "
        f"in “{labels[1]}”. A threshold of 0.01 does not fit this model's scale: {shares[0]} and {shares[1]} of the "
        "elements are 0.01 or more."
    )
