"""Reads from the instance why the check `faithful` refused a pair.

Not here: the check itself (`checks.py`).
"""

import dagster as dg

from jsae_assets.partitions import cell_key
from jsae_assets.runs.freshness import latest_check

CHECK = "faithful"


def refusal(instance: dg.DagsterInstance, variant: str, model: str, layer: int) -> str | None:
    """Return what the check found in a pair that it refused, with the numbers; None if it did not refuse the pair."""
    key = dg.AssetCheckKey(dg.AssetKey([variant, "sae_pair"]), CHECK)
    evaluation = latest_check(instance, key, cell_key(model, layer))
    if evaluation is None or evaluation.passed:
        return None
    reason = (evaluation.description or "its check has failed").rstrip(".")
    explained = [evaluation.metadata.get(f"explained_variance_{side}") for side in ("input", "output")]
    if all(explained):
        reason += ". Variance explained: {:.1%} by the input SAE, {:.1%} by the output SAE".format(
            *(share.value for share in explained)
        )
    return f"{reason}."
