"""Asset checks: is a stored pair fit to be measured?

Here: which pairs are refused, and with what message. Not here: the numbers that this rests on (`jsae_core.measures`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import dagster as dg

from jsae_assets.assets.cell import Cell, cell_at, step_priority, turn
from jsae_assets.assets.subject import Subject
from jsae_assets.assets.text import TOKENS
from jsae_assets.catalog import Catalog
from jsae_assets.devices import on_a_device_of_its_own
from jsae_assets.files.stored import StoredTensors
from jsae_assets.io_managers import StoringIOManager
from jsae_assets.partitions import cells
from jsae_assets.refusals import CHECK
from jsae_assets.resources import POOL, Compute
from jsae_assets.sources import ExplainedVariance, TrainedPair

if TYPE_CHECKING:
    from torch import Tensor

    from jsae_core import LanguageModel, MLPInputs, SAEPair
    from jsae_core.measures import InputConventions

PROBE_DOCUMENTS = 32
MARGIN = 0.02  # of explained variance, by which the true input must lead
MANY_DEAD = 0.1  # a larger share of dead latents is remarked on
CONVENTIONS = {
    "true": "the MLP's true input",
    "folded": "folded input (normalised without gain and bias)",
    "unnormalised": "un-normalised input (what enters the normalisation)",
}


def faithful_check(catalog: Catalog, variant: str) -> dg.AssetChecksDefinition:
    """The check that blocks everything downstream of a pair that was trained on other activations than the model gives
    it, has another MLP than the model, or was trained badly."""

    @dg.asset_check(
        name=CHECK,
        asset=[variant, "sae_pair"],
        partitions_def=cells(catalog, [variant]),
        blocking=True,
        pool=POOL,
        op_tags=step_priority(turn(catalog, variant)),
        description="On held-out tokens both SAEs explain the variance they should, the input SAE of a pair from "
        "elsewhere more of that of the MLP's true input than of folded or un-normalised input; the MLP computes what "
        "the model's does; weights are finite; shapes agree with the model.",
    )
    @on_a_device_of_its_own
    def faithful(
        context: dg.AssetCheckExecutionContext,
        compute: Compute,
        tensors: dg.ResourceParam[StoringIOManager],
        sae_pair: StoredTensors,
    ) -> Iterator[dg.AssetCheckResult]:
        cell = cell_at(context, catalog, variant)
        # loaded by hand, since a check has no partition mapping: as an input they would be looked up by the cell's key
        tokens = tensors.stored(TOKENS, cell.model_key)
        result = _looked_at(cell, compute, tokens, sae_pair, context.log.warning)
        yield result
        if not result.passed:
            # otherwise the run would say that a check failed, but not why
            raise dg.Failure(result.description, metadata=result.metadata, allow_retries=False)

    return faithful


def _looked_at(
    cell: Cell, compute: Compute, tokens: StoredTensors, sae_pair: StoredTensors, say: Callable[[str], None]
) -> dg.AssetCheckResult:
    try:
        pair = compute.pair(sae_pair, cell.model.jacobian_tables)  # raises if weights are not finite
    except ValueError as error:
        return dg.AssetCheckResult(passed=False, description=str(error))
    subject = Subject(cell, compute, pair, tokens)
    d_model = subject.language_model.d_model
    if pair.config.d_in != d_model:
        return dg.AssetCheckResult(
            passed=False, description=f"the pair's d_in is {pair.config.d_in}, the model's d_model {d_model}"
        )
    least = cell.pair.least_explained_variance
    found = examined(
        pair,
        subject.language_model,
        subject.documents,
        lambda: subject.mlp_inputs,
        least,
        isinstance(cell.pair, TrainedPair),
        compute,
        say,
    )
    remark = _remark_on_context(pair, max(map(len, subject.documents)))
    return dg.AssetCheckResult(
        passed=not found.faults,
        description=(_blame(found.faults, pair, cell) or _praise(found.quality, found.conventions)) + remark,
        metadata=found.quality
        | {
            f"explained_variance_input_{name}": value
            for name, value in found.conventions.explained_variance.items()
            if name != "true"
        }
        | {"mlp_difference": found.conventions.mlp_difference["true"]},
    )


class Examined(NamedTuple):
    """The findings on a pair, and a sentence for each fault."""

    quality: dict[str, float]
    conventions: "InputConventions"
    faults: list[str]


def examined(
    pair: "SAEPair",
    language_model: "LanguageModel",
    documents: Sequence["Tensor"],
    mlp_inputs: Callable[[], "MLPInputs"],
    least: ExplainedVariance,
    trained_here: bool,
    compute: Compute,
    say: Callable[[str], None],
) -> Examined:
    """Examine a pair on the first held-out documents.

    Args:
        documents: 1-d token tensors, of which the first are used.
        mlp_inputs: the MLP inputs of the same documents.
        least: the variance that its SAEs must explain.
        trained_here: whether this installation trained the pair. Then it is known to be trained on the MLP's true
            input, even if another convention fits a little better, as can happen if the conventions hardly differ.
        say: receives a message if memory runs out.
    """
    from jsae_core.activations import FirstDocuments
    from jsae_core.measures import input_conventions, reconstruction_quality

    quality = compute.fitting(lambda: reconstruction_quality(pair, FirstDocuments(mlp_inputs(), PROBE_DOCUMENTS)), say)
    probed = documents[:PROBE_DOCUMENTS]
    conventions = compute.fitting(lambda: input_conventions(pair, language_model, probed, compute.tokens_at_once), say)
    return Examined(quality, conventions, list(_faults(pair, quality, conventions, least, trained_here)))


def _faults(
    pair: "SAEPair",
    quality: Mapping[str, float],
    conventions: "InputConventions",
    least: ExplainedVariance,
    trained_here: bool,
) -> Iterator[str]:
    """A sentence for each fault of a pair."""
    off, bound = conventions.mlp_difference, _most_mlp_difference(pair)
    if not off["true"] <= bound:
        agreeing = [CONVENTIONS[name] for name in off if off[name] <= bound]
        yield (
            f"on the same inputs the pair's MLP gives other outputs than the model's, by {off['true']:.1%} of their "
            f"norm, expected at most {bound:.0%}" + (f"; it gives the model's on {agreeing[0]}" if agreeing else "")
        )
    explained, rival = conventions.explained_variance, None if trained_here else conventions.rival(MARGIN)
    # a pair that explains too little under every convention does not show which one it was trained on
    most = max(explained.values())
    has_rival = rival is not None and most > 0 and most >= least.input
    if has_rival:
        yield (
            f"the input SAE explains {explained['true']:.1%} of the variance of {CONVENTIONS['true']} and "
            f"{explained[rival]:.1%} of that of {CONVENTIONS[rival]}, expected at least {MARGIN:.0%} more of the true "
            "one: "
            + (
                "the other convention fits it better, so it was trained on other activations than the model gives it"
                if explained[rival] > explained["true"]
                else "which of them it was trained on cannot be told"
            )
        )
    for side, at_least in {"input": least.input, "output": least.output}.items():
        share = quality[f"explained_variance_{side}"]
        if not share >= at_least and not (has_rival and side == "input"):
            signs = ", ".join(_signs_of_bad_training(pair, quality, side))
            others = [f"{value:.1%} of {CONVENTIONS[name]}" for name, value in explained.items() if name != "true"]
            yield (
                f"the {side} SAE explains {share:.1%} of the variance, expected at least {at_least:.0%}"
                + (f" ({', '.join(others)})" if side == "input" and others else "")
                + f": it was trained badly ({signs})"
            )


def _signs_of_bad_training(pair: "SAEPair", quality: Mapping[str, float], side: str) -> Iterator[str]:
    if pair.config.jacobian_coefficient:
        yield f"the Jacobian coefficient is {pair.config.jacobian_coefficient:g}"
    else:
        yield "without a Jacobian penalty: it may need more steps, or another learning rate"
    if (dead := quality[f"dead_{side}"]) > MANY_DEAD:
        yield f"{dead:.0%} of its latents are dead on these {quality['n_tokens']:,.0f} tokens"


def _blame(faults: Sequence[str], pair: "SAEPair", cell: Cell) -> str:
    """The faults of a pair, and what to do about them if its penalty may be too strong; "" if it has none."""
    may_be_too_strong = faults and isinstance(cell.pair, TrainedPair) and pair.config.jacobian_coefficient
    advice = f". `jsae suggest-lambda {cell.model_key} {cell.layer}` looks for a better λ" if may_be_too_strong else ""
    return "; ".join(faults) + advice


def _praise(quality: Mapping[str, float], conventions: "InputConventions") -> str:
    others = [
        f"{value:.1%} of that of {CONVENTIONS[name]}"
        for name, value in conventions.explained_variance.items()
        if name != "true"
    ]
    aside = ", ".join(others) or (
        "the model does not normalise the MLP's input, so there was no other convention to compare"
    )
    return (
        f"the input SAE explains {quality['explained_variance_input']:.1%} of the variance ({aside}); "
        f"the output SAE explains {quality['explained_variance_output']:.1%}"
    )


def _remark_on_context(pair: "SAEPair", longest: int) -> str:
    """A remark on a pair that was trained on shorter documents than it is measured on."""
    trained_on = pair.config.context_size
    if trained_on is None or longest <= trained_on:
        return ""
    return (
        f". It was trained on documents of at most {trained_on:,} tokens and is measured on some of up to {longest:,}, "
        f"on positions that it has never seen; context_size: {trained_on} in the model's entry would leave those out"
    )


def _most_mlp_difference(pair: "SAEPair") -> float:
    """The largest difference that rounding explains, as a share of the outputs' norm. (A pair may be stored in
    bfloat16, and compute in it.)"""
    return 0.05 if pair.mlp.W_in.element_size() < 4 else 0.01
