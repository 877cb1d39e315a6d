"""What a pair costs: what the language model loses when reconstructions are spliced in, and what the pair gives for it.

Here: `pair_quality`, everything about a pair in one row, means over tokens with standard errors over documents. Not
here: histograms (`histogram.py`), how well each SAE reconstructs (`reconstruction.py`, which is called).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from jsae_core.activations import packed
from jsae_core.jacobian import run_sandwich
from jsae_core.language_model import CleanPass, LanguageModel
from jsae_core.measures.histogram import token_norms
from jsae_core.measures.moments import NamedMoments
from jsae_core.measures.reconstruction import ReconstructionSums, reconstruct
from jsae_core.memory import piece_factor
from jsae_core.sae import decode
from jsae_core.sae_pair import SAEPair

THRESHOLDS = (0.005, 0.01, 0.015, 0.02)
LOGIT_BYTES = 64 * 2**20  # of one prediction at once


@torch.no_grad()
def pair_quality(
    pair: SAEPair, language_model: LanguageModel, documents: Sequence[Tensor], batch_tokens: int = 4096
) -> dict[str, float]:
    """Everything about a pair in one row. Logarithms are natural; BOS positions enter no mean.

    Args:
        documents: 1-d token tensors, BOS first, of at least two tokens; some of at least three.
        batch_tokens: the most tokens, padding counted, that the model is given at once.

    Returns:
        For side in (input, output, pair) - the input SAE's reconstruction in the place of the MLP's input, the output
        SAE's in that of its output, or both at once:
        `ce_{side}`, `kl_{side}` (cross-entropy; divergence of the spliced from the clean prediction), and with zeros in
        that place instead `ce_zero_{side}`, `kl_zero_{side}` (the pair's are the output's, and have no name of their
        own); `ce_score_{side}` = (zero - spliced) / (zero - clean) of the means, `kl_score_{side}` = (zero - spliced) /
        zero; 0 where the denominator is. `ce_clean`.
        For side in (input, output) what `reconstruction_quality` gives. Of the Jacobian, means over tokens:
        `above_{t}` for t in .005, .01, .015, .02, `kurtosis` (E[J^4] / E[J^2]^2, uncentred), `norm_l2t`, `norm_l4t`,
        `norm_linft`, `l1_over_l2` (mean |J| over root mean square), 0 where J is. Each mean over tokens, and each
        ratio of such means, has its standard error under the same name with `_se`. `n_tokens`.

    Raises:
        ValueError: there is nothing to predict, or pair and model do not belong together, or a result is not finite.
    """
    if pair.config.d_in != language_model.d_model:
        raise ValueError(
            f"the pair's d_in is {pair.config.d_in}, but {language_model.name} has d_model {language_model.d_model}: "
            "they do not belong together"
        )
    if not any(len(document) > 2 for document in documents):
        raise ValueError("there is nothing to predict: no document has more than two tokens, BOS counted")
    layer = pair.config.layer
    mlp = language_model.mlp(layer)
    cross_entropy, divergence, jacobian = NamedMoments(), NamedMoments(), NamedMoments()
    reconstruction = ReconstructionSums(pair)
    n_documents = 0
    for batch in packed(documents, batch_tokens):
        # of tokens, and of those whose successor is known
        document, document_of_prediction = (
            n_documents + where.nonzero()[:, 0] for where in (batch.measured, _predicting(batch.measured))
        )
        n_documents += len(batch.tokens)
        tokens, measured = batch.tokens.to(language_model.device), batch.measured.to(language_model.device)
        clean = language_model.clean_pass(tokens, layer)
        present = measured.clone()
        present[:, 0] = True  # BOS is spliced like the rest, though nothing is measured there
        kept = measured[present]
        x = clean.mlp_input[present]
        sandwich = run_sandwich(pair, x)
        y = sandwich.mlp_output
        # 10% of the output's norm: far above the rounding of bfloat16, far below another MLP's output
        if (y[kept] - clean.mlp_output[measured]).norm() > 0.1 * clean.mlp_output[measured].norm():
            raise ValueError(
                f"the pair's MLP does not give what {language_model.name}'s gives at layer {layer}: they do not belong "
                "together (another model, layer or revision, or weights that were folded or randomised)"
            )
        jacobian.add(_jacobian_measures(sandwich.jacobian[kept].abs().double()), document)
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
        spliced = {name: _spliced(clean, present, value)[measured] for name, value in replacements.items()}
        losses, divergences = _losses(language_model, tokens, measured, clean.blocks_output[measured], spliced)
        cross_entropy.add(losses, document_of_prediction)
        divergence.add(divergences, document)
    results = (
        cross_entropy.means()
        | divergence.means()
        | _scores(cross_entropy, divergence)
        | jacobian.means()
        | reconstruction.results()
    )
    broken = [name for name, value in results.items() if not math.isfinite(value)]
    if broken:
        raise ValueError(f"NaN or infinite: {', '.join(broken)}; does {language_model.name} give finite logits?")
    return results


def _predicting(measured: Tensor) -> Tensor:
    """Which measured positions predict a measured one, [row, position] bool like `measured`."""
    predicts = torch.zeros_like(measured)
    predicts[:, :-1] = measured[:, :-1] & measured[:, 1:]
    return predicts


def _spliced(clean: CleanPass, present: Tensor, replacement: Tensor) -> Tensor:
    """What leaves the last block, [row, position, d_model], with another MLP output, [n_present, d_model], where
    `present` [row, position] is true."""
    mlp_output = clean.mlp_output.clone()
    mlp_output[present] = replacement
    return clean.resumed(mlp_output)


def _losses(
    language_model: LanguageModel, tokens: Tensor, measured: Tensor, clean: Tensor, spliced: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Cross-entropies of the tokens that measured positions predict, and divergences at all of them. The vocabulary is
    by far the widest thing here: positions are taken some at a time, and their clean prediction is made once.

    Args:
        tokens, measured: [row, position]; clean, spliced: what leaves the last block there, [n_measured, d_model] each.
    """
    successor, predicts = tokens.roll(-1, dims=1)[measured], _predicting(measured)[measured]
    at_once = max(1, piece_factor(clean.device) * LOGIT_BYTES // (language_model.n_vocabulary * 4))
    losses: dict[str, list[Tensor]] = {f"ce_{name}": [] for name in ("clean", *spliced)}
    divergences: dict[str, list[Tensor]] = {f"kl_{name}": [] for name in spliced}
    for part in torch.arange(len(clean), device=clean.device).split(at_once):
        next_token, predicting = successor[part, None], predicts[part]
        log_p = _log_probabilities(language_model.logits(clean[part]))
        p = log_p.exp()
        losses["ce_clean"].append(-log_p.gather(1, next_token)[predicting, 0])
        for name, blocks_output in spliced.items():
            log_q = _log_probabilities(language_model.logits(blocks_output[part]))
            losses[f"ce_{name}"].append(-log_q.gather(1, next_token)[predicting, 0])
            divergences[f"kl_{name}"].append(torch.linalg.vecdot(p, torch.sub(log_p, log_q, out=log_q)))
    return (
        {name: torch.cat(parts) for name, parts in losses.items()},
        {name: torch.cat(parts) for name, parts in divergences.items()},
    )


def _log_probabilities(logits: Tensor) -> Tensor:
    """At least float32: bfloat16 has too few digits for the difference of two predictions."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _jacobian_measures(magnitude: Tensor) -> dict[str, Tensor]:
    """Per token of |J| [n, k, k]; each [n]."""
    norms = token_norms(magnitude)
    root = norms["l2t"].clamp(min=torch.finfo(magnitude.dtype).tiny)
    above = {f"above_{threshold}": (magnitude > threshold).double().mean(dim=(1, 2)) for threshold in THRESHOLDS}
    return (
        above
        | {f"norm_{name}": values for name, values in norms.items()}
        | {
            "kurtosis": (norms["l4t"] / root) ** 4,
            "l1_over_l2": magnitude.mean(dim=(1, 2)) / root,
        }
    )


def _scores(cross_entropy: NamedMoments, divergence: NamedMoments) -> dict[str, float]:
    scores: dict[str, float] = {}
    for side, zero in (("input", "zero_input"), ("output", "zero_output"), ("pair", "zero_output")):
        ce_zero, kl_zero = {f"ce_{zero}": 1.0}, {f"kl_{zero}": 1.0}
        ratios = {
            f"ce_score_{side}": cross_entropy.ratio(ce_zero | {f"ce_{side}": -1.0}, ce_zero | {"ce_clean": -1.0}),
            f"kl_score_{side}": divergence.ratio(kl_zero | {f"kl_{side}": -1.0}, kl_zero),
        }
        for name, (score, standard_error) in ratios.items():
            scores |= {name: score, f"{name}_se": standard_error}
    return scores
