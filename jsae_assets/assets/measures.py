"""What is measured on a pair: a declaration for each measure.

To add a measure, write its function in `jsae_core.measures` and a declaration in MEASURES, at the end; a setting of its
own is a field of the catalog's models. Not here: measuring (`jsae_core.measures`), the assets that are made of the
declarations (`measure_assets.py`), what a measure is given (`subject.py`), figures (`figures.py`).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from jsae_assets.assets.cell import Cell
from jsae_assets.assets.subject import Subject
from jsae_assets.assets.summary import Headline
from jsae_assets.files.estimates import estimate_columns, estimate_tensors
from jsae_assets.files.stored import WHOLE_DOCUMENTS
from jsae_core.terms import (
    AS_PUBLISHED,
    AT_RECONSTRUCTION,
    DOSES,
    FUNCTION_SHAPES,
    NORMS,
    NOTEWORTHY,
    RELATIVE_SHAPES,
    is_above,
)

if TYPE_CHECKING:
    import pandas
    from torch import Tensor

    from jsae_core.checkpoints import Checkpoint
    from jsae_core.measures import Estimate
    from jsae_core.measures.accounting import Accounting
    from jsae_core.measures.histogram import JacobianSizes
    from jsae_core.measures.quality import Quality

SAME_FOR_ALL = {"count_jac", "n_tokens"}  # the same for every norm, so stored once
OF_JACOBIAN = ("above_", "norm_", "kurtosis", "l1_over_l2")  # prefixes of a quality row's numbers on the Jacobian
KEPT_CURVES = 300  # for the figures; all other curves are only classified
CURVES_OF_A_LATENT = 5  # for its strongest connections


@dataclass(frozen=True)
class Measured:
    """The result of a measure: the value to store, the numbers of tokens and of whole documents that it was measured on
    (a document that is cut into pieces is one; None if there are no errors over them), and the metadata."""

    value: Any
    n_tokens: int
    n_documents: int | None
    said: Mapping[str, Any]

    @classmethod
    def on_all(cls, subject: Subject, value: Any, said: Mapping[str, Any]) -> "Measured":
        """A result on all of the subject's tokens."""
        return cls(value, subject.mlp_inputs.n_tokens, len(set(subject.sources)), said)


Pass = Callable[["Checkpoint"], Any]


@dataclass(frozen=True)
class Measure:
    """One thing that is measured on every pair.

    Attributes:
        name, description: of its asset.
        passes: the functions that read the tokens, by name, each given a checkpoint of its own. None needs another's
            result. If the catalog asks for shards, each pass is measured shard by shard.
        body: turns the results of the passes, given in their order, into what is stored.
        code_version: a new one makes this measure out of date, and with it the figures that show it.
        stored_as: "tensors" in a safetensors file, or "tables": a table in a parquet file.
        reads_tokens: whether it reads the model's tokens besides the pair.
        headlines: the numbers that a reader wants first, at most five.
        settings: the model's settings in the catalog that concern it; changing one makes it out of date.
        of_jacobians: whether its result depends on Jacobians, and so on the dtype of the tables they are made of.
        further: how many computations of the body have a checkpoint, which is a part of the subject's.
    """

    name: str
    description: str
    passes: Callable[[Subject], Mapping[str, Pass]]
    body: Callable[..., Measured]
    code_version: str
    stored_as: Literal["tensors", "tables"]
    headlines: Sequence[Headline]
    reads_tokens: bool = True
    settings: Sequence[str] = ()
    of_jacobians: bool = False
    further: int = 0

    def of_shard(self, subject: Subject, number: int) -> None:
        """Measure one shard of the tokens. Raises as `jsae_core.measures.measure_shard` does."""
        from jsae_core.measures import measure_shard

        _, passes = self._with_checkpoints(subject)
        for one, checkpoint in passes:
            measure_shard(one, checkpoint, number, subject.cell.model.shards)

    def of_all(self, subject: Subject) -> Measured:
        """The result, merged from measured shards if there are several. Raises as `jsae_core.measures.merge_shards`
        does."""
        from jsae_core.measures import merge_shards

        subject, passes = self._with_checkpoints(subject)
        shards = subject.cell.model.shards
        results = [
            one(checkpoint) if shards == 1 else merge_shards(one, checkpoint, shards) for one, checkpoint in passes
        ]
        return self.body(subject, *results)

    def _with_checkpoints(self, subject: Subject) -> "tuple[Subject, list[tuple[Pass, Checkpoint]]]":
        """Return the subject and its passes, each with its checkpoint. Together, the computations of a measure lose no
        more than the time between two checkpoints."""
        assert subject.checkpoint is not None
        passes = self.passes(subject)
        first = subject.checkpoint.for_one_of(max(1, len(passes) + self.further))
        checkpoints = [first.part(name) if number else first for number, name in enumerate(passes)]
        return replace(subject, checkpoint=first), list(zip(passes.values(), checkpoints, strict=True))


def _histogram_passes(subject: Subject) -> dict[str, Pass]:
    from jsae_core.measures import jacobian_measures, jacobian_sizes

    pair, stream, memory_bytes = subject.pair, subject.mlp_inputs, subject.compute.memory_bytes
    passes: dict[str, Pass] = {
        "sizes": lambda checkpoint: jacobian_sizes(pair, stream, memory_bytes=memory_bytes, checkpoint=checkpoint),
        # as the paper's training runs logged it; this is another quantity than the one at the true input
        "at_reconstruction": lambda checkpoint: jacobian_measures(
            pair, stream, at="reconstruction", checkpoint=checkpoint
        ),
    }
    if subject.as_published:
        passes["as_published"] = lambda checkpoint: jacobian_measures(
            pair, stream, convention="published", checkpoint=checkpoint
        )
    return passes


def _jacobian_histogram(
    subject: Subject,
    sizes: "JacobianSizes",
    at_reconstruction: Mapping[str, "Estimate"],
    as_published: Mapping[str, "Estimate"] | None = None,
) -> Measured:
    estimates = sizes.estimates | {f"{name}{AT_RECONSTRUCTION}": of for name, of in at_reconstruction.items()}
    estimates |= {f"{name}{AS_PUBLISHED}": of for name, of in (as_published or {}).items()}
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
        "tokens": subject.mlp_inputs.n_tokens,
        "elements_above_range": int(plain["overflow"]),
        "latents_often_active": int(sizes.logarithmic["n_often"]),
    }
    return Measured.on_all(subject, plain | normed | sizes.logarithmic | estimate_tensors(estimates), said)


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
    return Measured(tensors, len(document) - 1, None, said)


def _ablation_passes(subject: Subject) -> dict[str, Pass]:
    from jsae_core.measures import ablation_samples

    pair, stream, cell = subject.pair, subject.mlp_inputs, subject.cell

    def samples(checkpoint: "Checkpoint") -> "pandas.DataFrame":
        with _explained(cell, "ablation_samples"):
            return ablation_samples(
                pair, stream, cell.model.ablation_samples, doses=tuple(DOSES), checkpoint=checkpoint
            )

    return {"samples": samples}


def _ablation_samples(subject: Subject, samples: "pandas.DataFrame") -> Measured:
    from jsae_core.measures import ablation_summary

    return Measured.on_all(subject, samples, _without_errors(ablation_summary(samples)))


def _shapes_passes(subject: Subject) -> dict[str, Pass]:
    from jsae_core.measures import function_shapes
    from jsae_core.measures.conventions import under

    pair, stream, cell = subject.pair, subject.mlp_inputs, subject.cell
    n_samples = cell.model.function_shapes

    def shapes(checkpoint: "Checkpoint") -> "pandas.DataFrame":
        with _explained(cell, "function_shapes"):
            return function_shapes(
                pair,
                stream,
                n_samples,
                n_curves=KEPT_CURVES,
                rules=("published", "relative"),
                checkpoint=checkpoint,
            )

    passes: dict[str, Pass] = {"shapes": shapes}
    if subject.as_published:
        passes["as_published"] = lambda checkpoint: function_shapes(
            *under("published", pair, stream), n_samples, checkpoint=checkpoint
        )
    return passes


def _function_shapes(
    subject: Subject, shapes: "pandas.DataFrame", as_published: "pandas.DataFrame | None" = None
) -> Measured:
    likewise = {}
    if as_published is not None:
        found = as_published["shape"]
        likewise = {f"share_{shape}{AS_PUBLISHED}": float((found == shape).mean()) for shape in FUNCTION_SHAPES}
    said = likewise | {
        **{f"share_{shape}": float((shapes["shape"] == shape).mean()) for shape in FUNCTION_SHAPES},
        "share_flat": float(shapes["flat"].mean()),
        **{f"share_relative_{shape}": float((shapes["relative_shape"] == shape).mean()) for shape in RELATIVE_SHAPES},
        "median_curvature": float(shapes["curvature"].median()),
        "samples": len(shapes),
    }
    return Measured.on_all(subject, shapes, said)


def _of_quality(subject: Subject) -> "tuple[list[Tensor], list[int]]":
    """The documents that quality is measured on, and their sources."""
    from jsae_core.text import first_tokens

    documents = first_tokens(subject.documents, subject.cell.model.quality_tokens)
    return documents, subject.sources[: len(documents)]


def _quality_passes(subject: Subject) -> dict[str, Pass]:
    from jsae_core.measures import measured_quality

    documents, sources = _of_quality(subject)
    pair, language_model, at_once = subject.pair, subject.language_model, subject.compute.tokens_at_once
    return {
        "quality": lambda checkpoint: measured_quality(pair, language_model, documents, at_once, checkpoint, sources)
    }


def _pair_quality(subject: Subject, quality: "Quality") -> Measured:
    """Without the numbers on the Jacobian, which the histogram has for more tokens."""
    import pandas as pd

    estimates = {name: of for name, of in quality.estimates.items() if not name.startswith(OF_JACOBIAN)}
    n_documents = len(set(_of_quality(subject)[1]))
    documents = {WHOLE_DOCUMENTS: n_documents}
    row = pd.DataFrame([subject.labels | documents | estimate_columns(estimates) | quality.numbers])
    said = {name: estimate.value for name, estimate in estimates.items()} | quality.numbers
    return Measured(row, int(quality.numbers["n_tokens"]), n_documents, said)


def _accounting_passes(subject: Subject) -> dict[str, Pass]:
    from jsae_core.measures import latent_accountings

    pair, stream = subject.pair, subject.mlp_inputs
    return {"accounting": lambda checkpoint: latent_accountings(pair, stream, checkpoint=checkpoint)}


def _latent_accounting(subject: Subject, accounting: "Accounting") -> Measured:
    table = accounting.table()
    of_single_latents = [None] * (len(table) - 1)
    further = {name: [of_all, *of_single_latents] for name, of_all in estimate_columns(accounting.estimates).items()}
    table = table.assign(**{name: column for name, column in further.items() if name not in table})
    return Measured.on_all(subject, table, _without_errors(accounting.overall))


def _without_errors(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if not name.endswith("_se")}


def _activity_passes(subject: Subject) -> dict[str, Pass]:
    from jsae_core.measures import latent_activity

    pair, stream = subject.pair, subject.mlp_inputs
    return {"activity": lambda checkpoint: latent_activity(pair, stream, checkpoint)}


def _latent_activity(subject: Subject, activity: "pandas.DataFrame") -> Measured:
    last = activity.groupby("side").last()
    said = {f"{name}_{side}": float(last.loc[side, name]) for name in ("dead", "unseen") for side in last.index}
    return Measured.on_all(subject, activity, said)


def _contexts_passes(subject: Subject) -> dict[str, Pass]:
    from jsae_core.measures import stream_contexts

    pair, stream = subject.pair, subject.mlp_inputs
    return {"contexts": lambda checkpoint: stream_contexts(pair, stream, checkpoint=checkpoint)}


def _latent_contexts(subject: Subject, contexts: "pandas.DataFrame") -> Measured:
    density = contexts[contexts["kind"] == "latent"].groupby("side")["density"]
    said = {
        **{f"dead_{side}": float((shares == 0).mean()) for side, shares in density},
        **{f"density_median_{side}": float(shares.median()) for side, shares in density},
    }
    return Measured.on_all(subject, contexts, said)


def _connections_passes(subject: Subject) -> dict[str, Pass]:
    from jsae_core.measures import strongest_connections

    pair, stream, least_active = subject.pair, subject.mlp_inputs, subject.cell.model.least_active
    return {
        "connections": lambda checkpoint: strongest_connections(
            pair, stream, least_active=least_active, checkpoint=checkpoint
        )
    }


def _latent_connections(subject: Subject, connections: "pandas.DataFrame") -> Measured:
    from jsae_core.measures import connection_curves

    stream = subject.mlp_inputs
    assert subject.checkpoint is not None
    checkpoint = subject.checkpoint.part("curves")
    curves = connection_curves(subject.pair, stream, connections, CURVES_OF_A_LATENT, checkpoint)
    connections = connections.join(curves)
    strongest = connections.drop_duplicates("output_latent")["share"]
    said = {
        "connections": len(connections),
        "output_latents": len(strongest),
        "share_strongest_median": float(strongest.median()) if len(strongest) else 0.0,
    }
    return Measured.on_all(subject, connections, said)


@contextlib.contextmanager
def _explained(cell: Cell, setting: str) -> Iterator[None]:
    """Name the setting to change if the tokens have fewer elements than samples were asked for."""
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
        _histogram_passes,
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
        lambda subject: {},
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
        _ablation_passes,
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
        _shapes_passes,
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
        _quality_passes,
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
        _accounting_passes,
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
        _activity_passes,
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
        _contexts_passes,
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
        _connections_passes,
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
        further=1,
    ),
)
