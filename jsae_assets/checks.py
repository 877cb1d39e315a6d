"""Asset checks: is a stored pair fit to be measured?"""

import dagster as dg

from jsae_assets.assets.cell import cell_at, step_priority, turn
from jsae_assets.assets.measures import Subject
from jsae_assets.assets.text import TOKENS
from jsae_assets.catalog import Catalog
from jsae_assets.io_managers import StoringIOManager
from jsae_assets.partitions import cells
from jsae_assets.resources import POOL, Compute
from jsae_assets.stored import StoredTensors

PROBE_DOCUMENTS = 32


def faithful_check(catalog: Catalog, variant: str) -> dg.AssetChecksDefinition:
    """Blocks what is downstream of a pair that was trained on other activations than the model gives it.

    Nothing crashes when an SAE is fed folded or un-normalised activations; only the variance it explains falls.
    """

    @dg.asset_check(
        name="faithful",
        asset=[variant, "sae_pair"],
        partitions_def=cells(catalog, [variant]),
        blocking=True,
        pool=POOL,
        op_tags=step_priority(turn(catalog, variant)),
        description="On held-out tokens both SAEs explain the variance they should; weights are finite; shapes agree "
        "with the model.",
    )
    def faithful(
        context: dg.AssetCheckExecutionContext,
        compute: Compute,
        tensors: dg.ResourceParam[StoringIOManager],
        sae_pair: StoredTensors,
    ) -> dg.AssetCheckResult:
        from jsae_core.activations import FirstDocuments
        from jsae_core.measures import reconstruction_quality

        cell = cell_at(context, catalog, variant)
        # read like this since a check has no partition mapping: as an input they would be those of this cell's name
        tokens = tensors.stored(TOKENS, cell.model_key)
        try:
            pair = compute.pair(sae_pair)  # refuses weights that are not finite
        except ValueError as error:
            return dg.AssetCheckResult(passed=False, description=str(error))
        subject = Subject(cell, compute, pair, tokens)
        d_model = subject.language_model.d_model
        if pair.config.d_in != d_model:
            return dg.AssetCheckResult(
                passed=False, description=f"the pair's d_in is {pair.config.d_in}, the model's d_model {d_model}"
            )
        quality = reconstruction_quality(pair, FirstDocuments(subject.mlp_inputs, PROBE_DOCUMENTS))
        least = cell.pair.least_explained_variance
        wanted = {"input": least.input, "output": least.output}
        failing = [side for side in wanted if not quality[f"explained_variance_{side}"] >= wanted[side]]
        return dg.AssetCheckResult(
            passed=not failing,
            description="; ".join(
                f"the {side} SAE explains {quality[f'explained_variance_{side}']:.1%} of the variance, expected at "
                f"least {wanted[side]:.0%}" + (": was it trained on other activations?" if side in failing else "")
                for side in wanted
            ),
            metadata=quality,
        )

    return faithful
