"""Why a pair was refused: what its check said, read from the instance.

Not here: the check itself (`checks.py`).
"""

import dagster as dg

from jsae_assets.freshness import latest_check
from jsae_assets.partitions import cell_key

CHECK = "faithful"


def refusal(instance: dg.DagsterInstance, variant: str, model: str, layer: int) -> str | None:
    """What the check found of a pair that it refused, with the numbers; None where it did not refuse it."""
    key = dg.AssetCheckKey(dg.AssetKey([variant, "sae_pair"]), CHECK)
    found = latest_check(instance, key, cell_key(model, layer))
    if found is None or found.passed:
        return None
    said = (found.description or "its check has failed").rstrip(".")
    explained = [found.metadata.get(f"explained_variance_{side}") for side in ("input", "output")]
    if all(explained):
        said += ". Variance explained: {:.1%} by the input SAE, {:.1%} by the output SAE".format(
            *(share.value for share in explained)
        )
    return f"{said}."
