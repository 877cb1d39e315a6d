"""What is measured on a pair: a declaration each, of which a factory makes an asset for every variant.

To add a measure, write its function in `jsae_core.measures` and a declaration in MEASURES, at the end; a setting of its
own is a field of the catalog's models. Not here: measuring (`jsae_core.measures`), figures (`figures.py`).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg

from jsae_assets.assets.cell import (
    Cell,
    Stopwatch,
    cell_asset,
    context_size,
    find_cell,
    tokens_of,
    turn,
)
from jsae_assets.assets.summary import Headline, headlines
from jsae_assets.catalog import C4_IN_WORDS, TABLES, Catalog
from jsae_assets.estimates import estimate_columns, estimate_tensors
from jsae_assets.io_managers import StoringIOManager
from jsae_assets.partitions import cell_key
from jsae_assets.resources import Compute
from jsae_assets.stored import StoredTensors
from jsae_core.terms import (
    AS_PUBLISHED,
    AT_RECONSTRUCTION,
    DOSES,
    EVALUATED_AT,
    FUNCTION_SHAPES,
    NORMS,
    NOTEWORTHY,
    RELATIVE_SHAPES,
    is_above,
)

if TYPE_CHECKING:
    from torch import Tensor

    from jsae_core import LanguageModel, MLPInputs, SAEPair
    from jsae_core.checkpoints import Checkpoint

SAME_FOR_ALL = {"count_jac", "n_tokens"}  # whatever the norm: stored once
OF_JACOBIAN = ("above_", "norm_", "kurtosis", "l1_over_l2")  # how the names of what quality says of it begin
KEPT_CURVES = 300  # drawn in figures; the rest of the curves is classified only
CURVES_OF_A_LATENT = 5  # of its strongest connections


@dataclass(frozen=True)
class Subject:
    """What a measure is given: a pair, where it belongs, and what it is measured on.

    Attributes:
        tokens: the stored tokens of the model; None for a measure that reads none.
        checkpoint: what measuring goes on from; removed once the result is stored. None where nothing is measured for
            long.
    """

    cell: Cell
    compute: Compute
    pair: "SAEPair"
    tokens: StoredTensors | None = None
    checkpoint: "Checkpoint | None" = None

    @property
    def language_model(self) -> "LanguageModel":
        return self.cell.language_model(self.compute, self.pair)

    @property
    def documents(self) -> "list[Tensor]":
        """The model's tokens, a 1-d tensor a document, BOS first."""
        from jsae_core.text import split_documents

        return split_documents(self.tokens)

    @property
    def mlp_inputs(self) -> "MLPInputs":
        """The MLP's inputs over all of these documents; what reads them in a run shares what the model computes."""
        key = self.tokens.version
        return self.compute.mlp_inputs(self.language_model, self.cell.layer, key, lambda: self.documents)

    @property
    def prompt(self) -> "Tensor":
        """The tokens of the model's prompt, BOS first."""
        from jsae_core.text import tokenise

        language_model, model = self.language_model, self.cell.model
        size = context_size(model, language_model)
        (document,) = tokenise([model.prompt], language_model.tokenizer, size, long_documents="truncate")
        return document

    @property
    def as_published(self) -> bool:
        """Whether something was reported of the pair that was taken on folded weights: then that is measured likewise,
        beside what is measured of every pair."""
        reported = self.cell.reported(self.cell.pair.variant, self.pair.config.jacobian_coefficient)
        return any(result.weights == "folded" for result in reported.values())

    @property
    def labels(self) -> dict[str, Any]:
        """What is said of a result wherever it goes, in its file and in figures: which pair it was measured on, on
        which text, and with which weights of the language model."""
        config = self.pair.config
        return {
            "model": self.cell.model_key,
            "layer": self.cell.layer,
            "variant": self.cell.pair.variant,
            "d_sae": config.d_sae,
            "k": config.k,
            "jacobian_coefficient": config.jacobian_coefficient,
            "text": self.cell.model.text or C4_IN_WORDS,
            "weights": "randomised" if config.randomize_llm_weights else "unprocessed",
        }


@dataclass(frozen=True)
class Measured:
    """What a measure gives: what is stored, on how many tokens it was measured, and what the materialisation says."""

    value: Any
    n_tokens: int
    said: Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """One thing that is measured on every pair.

    Attributes:
        name, description: of its asset.
        body: measures.
        code_version: another one asks for this measure again, and for the figures that show it.
        stored_as: tensors in a safetensors file, or a table in a parquet file.
        reads_tokens: whether it reads the model's tokens besides the pair.
        headlines: the five numbers at most of what it says that a reader wants first.
        settings: of a model in the catalog, those that concern it; where one is changed it is asked for again.
        of_jacobians: whether Jacobians are part of what it gives: then the rows that they are made of concern it.
    """

    name: str
    description: str
    body: Callable[[Subject], Measured]
    code_version: str
    stored_as: Literal["tensors", "tables"]
    headlines: Sequence[Headline]
    reads_tokens: bool = True
    settings: Sequence[str] = ()
    of_jacobians: bool = False


def measure_assets(catalog: Catalog, variant: str) -> list[dg.AssetsDefinition]:
    """Everything that is measured on the pairs of a variant."""
    return [_measure_asset(catalog, variant, measure) for measure in MEASURES]


def _measure_asset(catalog: Catalog, variant: str, measure: Measure) -> dg.AssetsDefinition:
    @cell_asset(
        catalog,
        [variant],
        variant,
        measure.name,
        measure.description,
        code_version=measure.code_version,
        kinds={"pytorch", {"tensors": "safetensors", "tables": "parquet"}[measure.stored_as]},
        ins={"sae_pair": dg.AssetIn([variant, "sae_pair"])}
        | ({"tokens": tokens_of(catalog, variant)} if measure.reads_tokens else {}),
        io_manager_key=measure.stored_as,
        priority=turn(catalog, variant),
        also=_table_entries(catalog, variant) if measure.of_jacobians else {},
    )
    def measured(
        context: dg.AssetExecutionContext,
        compute: Compute,
        tensors: dg.ResourceParam[StoringIOManager],
        sae_pair: StoredTensors,
        **others: StoredTensors,
    ) -> Iterator[dg.Output]:
        from jsae_assets.checkpoints import checkpoint_of

        cell = find_cell(context, catalog, variant)
        watch = Stopwatch()
        context.log.info(f"{measure.name.replace('_', ' ')}, {variant}, {cell}")
        # all else that a result depends on, the core knows
        checkpoint = checkpoint_of(
            tensors, context.asset_key, context.partition_key, measure.code_version, compute, context.log.info
        )
        pair = compute.pair(sae_pair, cell.model.jacobian_tables)
        subject = Subject(cell, compute, pair, checkpoint=checkpoint, **others)
        result = compute.fitting(lambda: measure.body(subject), context.log.warning)
        yield dg.Output(
            result.value,
            metadata={
                **headlines(f"On {result.n_tokens:,} tokens", measure.headlines, result.said),
                **result.said,
                "settings": {
                    **subject.labels,
                    "n_tokens": result.n_tokens,
                    "jacobian_at": EVALUATED_AT[0],
                    **({TABLES: cell.model.jacobian_tables} if measure.of_jacobians and pair.table_dtype else {}),
                },
                "source": f"{variant}/sae_pair and " + ("tokens" if measure.reads_tokens else "the model's prompt"),
                "device": compute.describe(),
                "seconds": watch.seconds,
            },
        )
        checkpoint.remove()  # the result is stored

    return measured


def _table_entries(catalog: Catalog, variant: str) -> dict[str, list[str]]:
    """By cell, the entry of the rows that its Jacobians are made of, where these are not in the pair's own dtype."""
    return {
        cell_key(model, layer): [entry]
        for model, entry in catalog.table_entries().items()
        for layer in catalog.layers(model, variant)
    }


def _jacobian_histogram(subject: Subject) -> Measured:
    from jsae_core.measures import jacobian_measures, jacobian_sizes

    stream = subject.mlp_inputs
    memory_bytes = subject.compute.memory_bytes
    checkpoint = subject.checkpoint.for_one_of(3 if subject.as_published else 2)
    sizes = jacobian_sizes(subject.pair, stream, memory_bytes=memory_bytes, checkpoint=checkpoint)
    # as the paper's training runs logged it: never the same quantity as the one at the true input
    at_reconstruction = jacobian_measures(
        subject.pair, stream, at="reconstruction", checkpoint=checkpoint.part("at_reconstruction")
    )
    estimates = sizes.estimates | {f"{name}{AT_RECONSTRUCTION}": of for name, of in at_reconstruction.items()}
    if subject.as_published:
        likewise = jacobian_measures(
            subject.pair, stream, convention="published", checkpoint=checkpoint.part("as_published")
        )
        estimates |= {f"{name}{AS_PUBLISHED}": of for name, of in likewise.items()}
    plain = sizes.histograms[None]
    normed = {
        f"{norm}.{name}": tensor
        for norm in NORMS
        for name, tensor in sizes.histograms[norm].items()
        if name not in SAME_FOR_ALL
    }
    said = {
        **{f"share_{name}": estimate.value for name, estimate in estimates.items() if name.startswith("above_")},
        **{name: estimates[name].value for name in ("kurtosis", "l1_over_l2")},
        "tokens": stream.n_tokens,
        "elements_above_range": int(plain["overflow"]),
        "latents_often_active": int(sizes.logarithmic["n_often"]),
    }
    return Measured(plain | normed | sizes.logarithmic | estimate_tensors(estimates), stream.n_tokens, said)


def _jacobian_examples(subject: Subject) -> Measured:
    from jsae_core import run_sandwich
    from jsae_core.tensor_files import text_tensor

    language_model, document = subject.language_model, subject.prompt
    key = tuple(document.tolist())
    (mlp_input,) = subject.compute.mlp_inputs(language_model, subject.cell.layer, key, lambda: [document])
    sandwich = run_sandwich(subject.pair, mlp_input)
    tensors = {
        "jacobian": sandwich.jacobian,
        "input_latents": sandwich.input_latents,
        "output_latents": sandwich.output_latents,
        "input_activations": sandwich.input_activations,
        "output_activations": sandwich.output_activations,
        "token_ids": document[1:],
        "token_text": text_tensor([str(language_model.tokenizer.decode([token])) for token in document[1:]]),
    }
    said = {
        "tokens": len(document) - 1,
        "prompt": subject.cell.model.prompt,
        "share_above_0.01": is_above(sandwich.jacobian.abs(), NOTEWORTHY).float().mean().item(),
    }
    return Measured(tensors, len(document) - 1, said)


def _ablation_samples(subject: Subject) -> Measured:
    from jsae_core.measures import ablation_samples, ablation_summary

    stream = subject.mlp_inputs
    with _explained(subject.cell, "ablation_samples"):
        samples = ablation_samples(
            subject.pair,
            stream,
            subject.cell.model.ablation_samples,
            doses=tuple(DOSES),
            checkpoint=subject.checkpoint,
        )
    return Measured(samples, stream.n_tokens, _without_errors(ablation_summary(samples)))


def _function_shapes(subject: Subject) -> Measured:
    from jsae_core.measures import function_shapes
    from jsae_core.measures.conventions import under

    stream, n_samples = subject.mlp_inputs, subject.cell.model.function_shapes
    with _explained(subject.cell, "function_shapes"):
        shapes = function_shapes(
            subject.pair,
            stream,
            n_samples,
            n_curves=KEPT_CURVES,
            rules=("published", "relative"),
            checkpoint=subject.checkpoint,
        )
    likewise = {}
    if subject.as_published:
        found = function_shapes(*under("published", subject.pair, stream), n_samples)["shape"]
        likewise = {f"share_{shape}{AS_PUBLISHED}": float((found == shape).mean()) for shape in FUNCTION_SHAPES}
    said = likewise | {
        **{f"share_{shape}": float((shapes["shape"] == shape).mean()) for shape in FUNCTION_SHAPES},
        "share_flat": float(shapes["flat"].mean()),
        **{f"share_relative_{shape}": float((shapes["relative_shape"] == shape).mean()) for shape in RELATIVE_SHAPES},
        "median_curvature": float(shapes["curvature"].median()),
        "samples": len(shapes),
    }
    return Measured(shapes, stream.n_tokens, said)


def _pair_quality(subject: Subject) -> Measured:
    """Without what it says of the Jacobian: the histogram says that, of more tokens."""
    import pandas as pd

    from jsae_core.measures import measured_quality
    from jsae_core.text import first_tokens

    documents = first_tokens(subject.documents, subject.cell.model.quality_tokens)
    at_once, checkpoint = subject.compute.tokens_at_once, subject.checkpoint
    quality = measured_quality(subject.pair, subject.language_model, documents, at_once, checkpoint)
    estimates = {name: of for name, of in quality.estimates.items() if not name.startswith(OF_JACOBIAN)}
    row = pd.DataFrame([subject.labels | estimate_columns(estimates) | quality.numbers])
    said = {name: estimate.value for name, estimate in estimates.items()} | quality.numbers
    return Measured(row, int(quality.numbers["n_tokens"]), said)


def _latent_accounting(subject: Subject) -> Measured:
    from jsae_core.measures import latent_accountings

    stream = subject.mlp_inputs
    accounting = latent_accountings(subject.pair, stream, checkpoint=subject.checkpoint)
    table = accounting.table()
    of_single_latents = [None] * (len(table) - 1)
    further = {name: [of_all, *of_single_latents] for name, of_all in estimate_columns(accounting.estimates).items()}
    table = table.assign(**{name: column for name, column in further.items() if name not in table})
    return Measured(table, stream.n_tokens, _without_errors(accounting.overall))


def _without_errors(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if not name.endswith("_se")}


def _latent_activity(subject: Subject) -> Measured:
    from jsae_core.measures import latent_activity

    stream = subject.mlp_inputs
    activity = latent_activity(subject.pair, stream, subject.checkpoint)
    last = activity.groupby("side").last()
    said = {f"{name}_{side}": float(last.loc[side, name]) for name in ("dead", "unseen") for side in last.index}
    return Measured(activity, stream.n_tokens, said)


def _latent_contexts(subject: Subject) -> Measured:
    from jsae_core.measures import stream_contexts

    stream = subject.mlp_inputs
    contexts = stream_contexts(subject.pair, stream, checkpoint=subject.checkpoint)
    density = contexts[contexts["kind"] == "latent"].groupby("side")["density"]
    said = {
        **{f"dead_{side}": float((shares == 0).mean()) for side, shares in density},
        **{f"density_median_{side}": float(shares.median()) for side, shares in density},
    }
    return Measured(contexts, stream.n_tokens, said)


def _latent_connections(subject: Subject) -> Measured:
    from jsae_core.measures import connection_curves, strongest_connections

    stream, least_active = subject.mlp_inputs, subject.cell.model.least_active
    pair, checkpoint = subject.pair, subject.checkpoint.for_one_of(2)
    connections = strongest_connections(pair, stream, least_active=least_active, checkpoint=checkpoint)
    curves = connection_curves(pair, stream, connections, CURVES_OF_A_LATENT, checkpoint.part("curves"))
    connections = connections.join(curves)
    strongest = connections.drop_duplicates("output_latent")["share"]
    said = {
        "connections": len(connections),
        "output_latents": len(strongest),
        "share_strongest_median": float(strongest.median()) if len(strongest) else 0.0,
    }
    return Measured(connections, stream.n_tokens, said)


@contextlib.contextmanager
def _explained(cell: Cell, setting: str) -> Iterator[None]:
    """Says where to change the number of samples if the tokens do not hold as many."""
    from jsae_core.measures.samples import TooFewElements

    try:
        yield
    except TooFewElements as error:
        raise ValueError(
            f"models.{cell.model_key}.{setting} in the catalog is too large for {cell}: {error}"
        ) from error


MEASURES = (
    Measure(
        "jacobian_histogram",
        "How large and how sparse the Jacobian is: histograms of |J| over all tokens, plain, logarithmic and divided "
        "by three norms, and of the mean |J| of each pair of latents; shares above thresholds, norms and kurtosis with "
        "their standard errors.",
        _jacobian_histogram,
        code_version="4",
        stored_as="tensors",
        headlines=(
            Headline("share_above_0.01", "elements with |J| of 0.01 or more"),
            Headline("share_above_0.02", "elements with |J| of 0.02 or more"),
            Headline("kurtosis", "kurtosis of J (higher: sparser, on any scale)", "{:.2f}"),
            Headline("l1_over_l2", "L1/L2 of J (lower: sparser, on any scale)", "{:.3f}"),
            Headline("latents_often_active", "output latents active often enough for a mean |J|", "{:,}"),
        ),
        of_jacobians=True,
    ),
    Measure(
        "jacobian_examples",
        "The Jacobian of every token of the model's prompt, with the latents it runs between.",
        _jacobian_examples,
        code_version="2",
        stored_as="tensors",
        headlines=(
            Headline("tokens", "tokens of the prompt", "{:,}"),
            Headline("share_above_0.01", "elements with |J| of 0.01 or more"),
        ),
        reads_tokens=False,
        settings=("prompt",),
        of_jacobians=True,
    ),
    Measure(
        "ablation_samples",
        "What happens to an output latent when one unit of an input latent, its whole activation or twice that is "
        "taken away, beside what the Jacobian predicts: a row a sample.",
        _ablation_samples,
        code_version="4",
        stored_as="tables",
        headlines=(
            Headline("noteworthy_line", "of the samples not negligible, those that change as the Jacobian says"),
            Headline("noteworthy_dropped", "of the same, those whose output latent left the TopK"),
            Headline("agreement_negligible", "samples with |J| and change below 0.01"),
            Headline("slope", "slope of the change against −J, the dropped left out", "{:.2f}"),
            Headline("correlation", "correlation of both", "{:.2f}"),
        ),
        settings=("ablation_samples",),
        of_jacobians=True,
    ),
    Measure(
        "function_shapes",
        "Output latents as functions of single input latents: linear, jumprelu or other, by the paper's rule and by "
        "one that has no scale of its own, a row a sample, and the "
        f"curves of the {KEPT_CURVES} samples drawn first.",
        _function_shapes,
        code_version="4",
        stored_as="tables",
        headlines=(
            Headline("share_linear", "linear by the paper's rule, within 0.01 of a line"),
            Headline("share_jumprelu", "jumprelu by the paper's rule"),
            Headline("share_flat", "range below 0.01"),
            Headline("share_relative_linear", "linear by the relative rule, within 5% of the range"),
            Headline("samples", "functions that were sampled", "{:,}"),
        ),
        settings=("function_shapes",),
    ),
    Measure(
        "pair_quality",
        "What the language model loses when reconstructions are spliced in, and how well both SAEs reconstruct: one "
        "row, means over tokens with their standard errors.",
        _pair_quality,
        code_version="3",
        stored_as="tables",
        headlines=(
            Headline("kl_score_pair", "KL score with both reconstructions (100%: no loss)"),
            Headline("ce_score_pair", "cross-entropy score with both reconstructions"),
            Headline("explained_variance_input", "variance that the input SAE explains"),
            Headline("explained_variance_output", "variance that the output SAE explains"),
            Headline("dead_output", "output latents never active in these tokens"),
        ),
        settings=("quality_tokens",),
    ),
    Measure(
        "latent_accounting",
        "How much of the output latents' pre-activations the input latents account for, and how many of them it takes: "
        "a row for all output latents together, with standard errors, and one for each.",
        _latent_accounting,
        code_version="2",
        stored_as="tables",
        headlines=(
            Headline("accounted_share", "share of the output latents that comes from input latents"),
            Headline("r2_attribution_4", "R² of an output latent's four strongest input latents", "{:.2f}"),
            Headline("r2_random_4", "R² of four random ones", "{:.2f}"),
            Headline("n90", "input latents that have 90% of the attribution", "{:.1f}"),
            Headline("participation_ratio", "input latents in effect (participation ratio)", "{:.1f}"),
        ),
        of_jacobians=True,
    ),
    Measure(
        "latent_activity",
        "How many latents of each SAE were not active in so many tokens, and how many of those are alive, estimated.",
        _latent_activity,
        code_version="1",
        stored_as="tables",
        headlines=tuple(
            Headline(f"{name}_{side}", f"{side} latents {words}")
            for name, words in (("dead", "never active in these tokens"), ("unseen", "of these alive, estimated"))
            for side in ("input", "output")
        ),
    ),
    Measure(
        "latent_contexts",
        "On what every latent of both SAEs fires: how often, in which contexts, on which tokens; for output latents "
        "the tokens that their decoder rows raise and lower in the logits.",
        _latent_contexts,
        code_version="1",
        stored_as="tables",
        headlines=tuple(
            Headline(f"{name}_{side}", words.format(side), form)
            for name, words, form in (
                ("dead", "{} latents never active in these tokens", "{:.1%}"),
                ("density_median", "tokens that the median {} latent is active on", "{:.2%}"),
            )
            for side in ("input", "output")
        ),
    ),
    Measure(
        "latent_connections",
        "The strongest input latents of each output latent by |J s|: how large, how steady, in which tokens most, and "
        f"the function curves of the {CURVES_OF_A_LATENT} strongest.",
        _latent_connections,
        code_version="1",
        stored_as="tables",
        headlines=(
            Headline("output_latents", "output latents with connections", "{:,}"),
            Headline("connections", "connections", "{:,}"),
            Headline("share_strongest_median", "attribution from the strongest input latent, median"),
        ),
        settings=("least_active",),
        of_jacobians=True,
    ),
)
