"""What a pair costs the language model when its reconstructions are spliced in, and how sparse its Jacobian is.

Here: `pair_quality`, everything about a pair in one row, means over tokens with standard errors over documents. Not
here: histograms (`histogram.py`), how well each SAE reconstructs (`reconstruction.py`, which is called).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jsae_core.activations import Batch, MLPInputs, packed
from jsae_core.checkpoints import Checkpoint, State
from jsae_core.jacobian import run_sandwich
from jsae_core.language_model import CleanPass, LanguageModel
from jsae_core.measures.moments import Estimate, NamedMoments, flat
from jsae_core.measures.reconstruction import ReconstructionSums, reconstruct
from jsae_core.measures.resuming import Computation, Resumable
from jsae_core.measures.token_jacobians import token_measures
from jsae_core.memory import moved, piece_factor, usual_batch
from jsae_core.sae import decode
from jsae_core.sae_pair import SAEPair
from jsae_core.text import document_numbers

LOGIT_BYTES = 64 * 2**20  # of all predictions at once


class Quality(NamedTuple):
    """The numbers of `pair_quality`: those that have an error, and those that have none."""

    estimates: dict[str, Estimate]
    numbers: dict[str, float]

    def flat(self) -> dict[str, float]:
        return flat(self.estimates) | self.numbers


def pair_quality(
    pair: SAEPair,
    language_model: LanguageModel,
    documents: Sequence[Tensor],
    batch_tokens: int | None = None,
    checkpoint: Checkpoint | None = None,
    sources: Sequence[int] | None = None,
) -> dict[str, float]:
    """Everything about a pair in one row. Logarithms are natural; BOS positions enter no mean.

    Args:
        documents: 1-d token tensors, BOS first, of at least two tokens; some of at least three.
        batch_tokens: the most tokens, padding included, that the model is given at once. None: 4096 on a CPU, and on a
            CUDA device up to four times as many, depending on its memory.
        checkpoint: as for `jacobian_histogram`.
        sources: as for `MLPInputs`.

    Returns:
        For side in (input, output, pair), where the MLP's input is replaced by the input SAE's reconstruction, the
        MLP's output by the output SAE's, or both: `ce_{side}` (cross-entropy) and `kl_{side}` (divergence of the
        spliced from the clean prediction); `ce_zero_{side}` and `kl_zero_{side}`, the same with zeros in that place
        (for the pair they equal the output's, and have no name of their own); `ce_score_{side}` = (zero - spliced) /
        (zero - clean), a ratio of means, and `kl_score_{side}` = (zero - spliced) / zero, both 0 if the denominator is
        0. `ce_clean`. `spliced_at_bos` is 1 if reconstructions and zeros are spliced in at BOS as well, which is so if
        the pair's configuration says that it was trained on BOS. Otherwise BOS keeps its own activations: the MLP's
        output at BOS has another size, and no SAE reconstructs what it never saw.
        For side in (input, output), what `reconstruction_quality` gives. For the Jacobian, means over tokens of what
        `token_measures` gives: `above_{t}` for t in .005, .01, .015, .02, `kurtosis`, `l1_over_l2`, `norm_l2t`,
        `norm_l4t`, `norm_linft`. Each mean over tokens, and each ratio of such means, has its standard error under the
        same name with `_se`. `n_tokens`, and `n_predictions`, the number of tokens that a cross-entropy is a mean over:
        those whose next token is known. Of merged shards (`merge_shards`) these are sums in float64 in another order:
        the same to 1e-12.

    Raises:
        ValueError: as `MLPInputs` does; or there is nothing to predict, pair and model do not belong together, or a
            result is not finite.
    """
    return measured_quality(pair, language_model, documents, batch_tokens, checkpoint, sources).flat()


@torch.no_grad()
def measured_quality(
    pair: SAEPair,
    language_model: LanguageModel,
    documents: Sequence[Tensor],
    batch_tokens: int | None = None,
    checkpoint: Checkpoint | None = None,
    sources: Sequence[int] | None = None,
) -> Quality:
    """`pair_quality`, with what each document adds to each number. Raises ValueError as it does."""
    if pair.config.d_in != language_model.d_model:
        raise ValueError(
            f"the pair's d_in is {pair.config.d_in}, but {language_model.name} has d_model {language_model.d_model}: "
            "they do not belong together"
        )
    layer = pair.config.layer
    if batch_tokens is None:
        batch_tokens = usual_batch(language_model.device)
    stream = MLPInputs(language_model, documents, layer, batch_tokens, sources=sources)
    if not any(len(document) > 2 for document in documents):
        raise ValueError("there is nothing to predict: no document has more than two tokens, BOS counted")
    mlp = language_model.mlp(layer)
    cross_entropy, divergence, jacobian = NamedMoments(), NamedMoments(), NamedMoments()
    reconstruction = ReconstructionSums(pair)
    check = _SameMLP(language_model.name, layer)
    numbers = torch.tensor(document_numbers(len(documents), sources))
    work = Computation(checkpoint, "pair_quality 1", pair, stream, shardable=True)
    sums: dict[str, Resumable] = {
        "cross_entropy": cross_entropy,
        "divergence": divergence,
        "jacobian": jacobian,
        "reconstruction": reconstruction,
        "check": check,
    }
    batches, n_tokens = _numbered(packed(documents, batch_tokens)), sum(len(document) - 1 for document in documents)
    for batch, n_documents in work.steps(batches, sums, "tokens", n_tokens, _n_measured, stream):
        there = _Places(batch, language_model.device, pair.config.trained_on_bos)
        # of all tokens, and of those whose next token is known
        document = numbers[n_documents + there.document]
        document_of_prediction = numbers[n_documents + there.document_of_prediction]
        clean = language_model.clean_pass(batch.tokens, layer)
        x, kept = _at(clean.mlp_input, there.spliced), there.measured_among_spliced
        sandwich = run_sandwich(pair, x)
        y = sandwich.mlp_output
        check.add(y[kept], _at(clean.mlp_output, there.measured))
        jacobian.add(token_measures(_magnitude(sandwich.jacobian[kept])), document)
        of_input = (sandwich.input_activations, sandwich.input_latents)
        of_output = (sandwich.output_activations, sandwich.output_latents)
        x_hat = decode(pair.input_sae.W_dec, pair.input_sae.b_dec, *of_input)
        y_hat = decode(pair.output_sae.W_dec, pair.output_sae.b_dec, *of_output)
        reconstruction.add("input", x[kept], of_input[0][kept], of_input[1][kept], x_hat[kept], document)
        reconstruction.add("output", y[kept], of_output[0][kept], of_output[1][kept], y_hat[kept], document)
        of_x_hat = mlp(x_hat)
        replacements = {
            "input": of_x_hat,
            "output": y_hat,
            "pair": reconstruct(pair.output_sae, of_x_hat)[2],
            "zero_input": mlp(torch.zeros_like(x[:1])).expand_as(y),
            "zero_output": torch.zeros_like(y),
        }
        leaving = {"clean": clean.blocks_output} | {
            name: _spliced(clean, there.spliced, value) for name, value in replacements.items()
        }
        leaving = {name: _at(value, there.measured) for name, value in leaving.items()}
        losses, divergences = _losses(language_model, leaving, there)
        cross_entropy.add(losses, document_of_prediction)
        divergence.add(divergences, document)
    check.finish()
    work.merge_shards()
    quality = Quality(
        cross_entropy.estimates()
        | divergence.estimates()
        | _scores(cross_entropy, divergence)
        | jacobian.estimates()
        | reconstruction.estimates(),
        reconstruction.numbers()
        | {"n_predictions": float(cross_entropy.n_tokens), "spliced_at_bos": float(pair.config.trained_on_bos)},
    )
    broken = [name for name, value in quality.flat().items() if not math.isfinite(value)]
    if broken:
        raise ValueError(f"NaN or infinite: {', '.join(broken)}; does {language_model.name} give finite logits?")
    return quality


def _numbered(batches: Iterable[Batch]) -> Iterator[tuple[Batch, int]]:
    """Each batch, with the number of documents before it."""
    n_documents = 0
    for batch in batches:
        yield batch, n_documents
        n_documents += len(batch.tokens)


class _Places:
    """The positions of a batch that are used, as numbers (row after row) and not as masks: to know how many a mask
    selects, the processor would wait for the device.

    Attributes, int64 on the device unless said:
        spliced: where something is put in the place of the MLP's input or output: at the measured positions, and where
            the pair was trained on BOS there, too, though nothing is measured there.
        measured, measured_among_spliced: measured positions, and their places among those.
        successor: the token after each measured position (any, where none is known).
        predicting: places, among the measured, of those that predict a measured one.
        document, document_of_prediction: the row of each measured position, and of those that predict; on the CPU.
    """

    def __init__(self, batch: Batch, device: torch.device, at_bos: bool):
        measured = batch.measured.clone()
        spliced = batch.measured.clone()
        spliced[:, 0] = at_bos
        predicts = torch.zeros_like(measured)
        predicts[:, :-1] = measured[:, :-1] & measured[:, 1:]
        self.document = measured.nonzero()[:, 0]
        self.document_of_prediction = predicts.nonzero()[:, 0]
        self.spliced = _numbers(spliced, device)
        self.measured = _numbers(measured, device)
        self.measured_among_spliced = _numbers(measured[spliced], device)
        self.predicting = _numbers(predicts[measured], device)
        self.successor = moved(batch.tokens.roll(-1, dims=1)[measured], device)


def _numbers(mask: Tensor, device: torch.device) -> Tensor:
    return moved(mask.flatten().nonzero()[:, 0], device)


def _at(values: Tensor, places: Tensor) -> Tensor:
    """[row, position, width] at some places of all rows: [n_places, width]."""
    return values.flatten(0, 1).index_select(0, places)


def _n_measured(numbered_batch: tuple[Batch, int]) -> int:
    batch, _ = numbered_batch
    return int(batch.measured.sum())


class _SameMLP:
    """Whether the pair's MLP gives what the language model's gives."""

    def __init__(self, name: str, layer: int):
        self._name, self._layer = name, layer
        self._apart: Tensor | None = None

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """Compare outputs [n, d_model]. Raises ValueError if the first ones differ; on an accelerator, later ones are
        only compared by `finish`."""
        # 10% of the output's norm: far above the rounding of bfloat16, far below another MLP's output
        apart = (ours - theirs).norm() > 0.1 * theirs.norm()
        is_first = self._apart is None
        self._apart = apart if is_first else self._apart | apart
        if is_first or apart.device.type == "cpu":
            self.finish()

    def state(self) -> State:
        self.finish()
        return State()

    def take_in(self, state: State) -> None:
        """Nothing to add: the outputs before this state agreed."""

    def finish(self) -> None:
        if self._apart:
            raise ValueError(
                f"the pair's MLP does not give what {self._name}'s gives at layer {self._layer}: they do not belong "
                "together (another model, layer or revision, or weights that were folded or randomised)"
            )


def _spliced(clean: CleanPass, places: Tensor, replacement: Tensor) -> Tensor:
    """What leaves the last block, [row, position, d_model], if the MLP's output at some places is replaced by
    [n_places, d_model]."""
    mlp_output = clean.mlp_output.flatten(0, 1).index_copy(0, places, replacement)
    return clean.resumed(mlp_output.view_as(clean.mlp_output))


def _losses(
    language_model: LanguageModel, leaving: Mapping[str, Tensor], there: _Places
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Cross-entropies of the tokens that measured positions predict, and the divergences of the predictions from the
    `clean` ones at all measured positions. Positions are taken a few at a time, since a prediction is as wide as the
    vocabulary.

    Args:
        leaving: what leaves the last block there, [n_measured, d_model] each.
    """
    clean, *spliced = leaving
    row_bytes = len(leaving) * language_model.n_vocabulary * 4
    device = there.measured.device
    budget = LOGIT_BYTES * (4 if device.type == "cuda" else 1) * piece_factor(device)
    at_once = max(1, budget // row_bytes)
    cross_entropies, divergences = [], []
    for part, successor in zip(
        zip(*(values.split(at_once) for values in leaving.values()), strict=True),
        there.successor.split(at_once),
        strict=True,
    ):
        logits = language_model.logits(torch.cat(part)).unflatten(0, (len(leaving), len(successor)))
        log_p, *log_qs = (_log_probabilities(one) for one in logits)
        p = log_p.exp()
        cross_entropies.append(torch.stack([-log.gather(1, successor[:, None])[:, 0] for log in (log_p, *log_qs)]))
        divergences.append(
            torch.stack([torch.linalg.vecdot(p, torch.sub(log_p, log_q, out=log_q)) for log_q in log_qs])
        )
    of_tokens = torch.cat(cross_entropies, dim=1).index_select(1, there.predicting)
    return (
        dict(zip((f"ce_{name}" for name in (clean, *spliced)), of_tokens, strict=True)),
        dict(zip((f"kl_{name}" for name in spliced), torch.cat(divergences, dim=1), strict=True)),
    )


def _log_probabilities(logits: Tensor) -> Tensor:
    """In float32 or wider, since bfloat16 has too few digits for the difference of two predictions."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _magnitude(jacobian: Tensor) -> Tensor:
    """In float32 or wider, as for probabilities."""
    return jacobian.abs().to(torch.promote_types(jacobian.dtype, torch.float32))


def _scores(cross_entropy: NamedMoments, divergence: NamedMoments) -> dict[str, Estimate]:
    scores: dict[str, Estimate] = {}
    for side, zero in (("input", "zero_input"), ("output", "zero_output"), ("pair", "zero_output")):
        ce_zero, kl_zero = {f"ce_{zero}": 1.0}, {f"kl_{zero}": 1.0}
        scores |= {
            f"ce_score_{side}": cross_entropy.ratio(ce_zero | {f"ce_{side}": -1.0}, ce_zero | {"ce_clean": -1.0}),
            f"kl_score_{side}": divergence.ratio(kl_zero | {f"kl_{side}": -1.0}, kl_zero),
        }
    return scores
