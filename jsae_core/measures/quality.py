"""What a pair costs: what the language model loses when reconstructions are spliced in, and what the pair gives for it.

Here: `pair_quality`, everything about a pair in one row, means over tokens with standard errors. Not here: histograms
(`histogram.py`), how well each SAE reconstructs (`reconstruction.py`, which is called).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from jsae_core.activations import MLPInputs, packed
from jsae_core.jacobian import run_sandwich
from jsae_core.language_model import LanguageModel
from jsae_core.measures.histogram import token_norms
from jsae_core.measures.moments import NamedMoments
from jsae_core.measures.reconstruction import reconstruction_quality
from jsae_core.sae_pair import SAEPair, decode, top_latents

THRESHOLDS = (0.005, 0.01, 0.015, 0.02)


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
    splices = _splices(pair)
    cross_entropy, divergence, jacobian = NamedMoments(), NamedMoments(), NamedMoments()
    for batch in packed(documents, batch_tokens):
        tokens, measured = batch.tokens.to(language_model.device), batch.measured.to(language_model.device)
        mlp_input, mlp_output = (x[measured] for x in language_model.mlp_activations(tokens, layer))
        sandwich = run_sandwich(pair, mlp_input)
        # 10% of the output's norm: far above the rounding of bfloat16, far below another MLP's output
        if (sandwich.mlp_output - mlp_output).norm() > 0.1 * mlp_output.norm():
            raise ValueError(
                f"the pair's MLP does not give what {language_model.name}'s gives at layer {layer}: they do not belong "
                "together (another model, layer or revision, or weights that were folded or randomised)"
            )
        jacobian.add(_jacobian_measures(sandwich.jacobian.abs().double()))
        clean = _log_probabilities(language_model.spliced_logits(tokens, layer))
        losses, divergences = {"ce_clean": _cross_entropy(clean, tokens, measured)}, {}
        for name, replacements in splices.items():
            spliced = _log_probabilities(language_model.spliced_logits(tokens, layer, **replacements))
            losses[f"ce_{name}"] = _cross_entropy(spliced, tokens, measured)
            divergences[f"kl_{name}"] = F.kl_div(spliced, clean, log_target=True, reduction="none").sum(-1)[measured]
        cross_entropy.add(losses)
        divergence.add(divergences)
    stream = MLPInputs(language_model, documents, layer, batch_tokens)
    results = (
        cross_entropy.means()
        | divergence.means()
        | _scores(cross_entropy, divergence)
        | jacobian.means()
        | reconstruction_quality(pair, stream)
    )
    broken = [name for name, value in results.items() if not math.isfinite(value)]
    if broken:
        raise ValueError(f"NaN or infinite: {', '.join(broken)}; does {language_model.name} give finite logits?")
    return results


def _splices(pair: SAEPair) -> dict[str, dict]:
    """What stands in the place of the MLP's input or output in each spliced pass."""

    def reconstructed(sae):
        def replace(x: Tensor) -> Tensor:
            activations, latents = top_latents(sae, x.flatten(0, 1))
            return decode(sae.W_dec, sae.b_dec, activations, latents).view_as(x)

        return replace

    input_side, output_side = reconstructed(pair.input_sae), reconstructed(pair.output_sae)
    return {
        "input": {"mlp_input": input_side},
        "output": {"mlp_output": output_side},
        "pair": {"mlp_input": input_side, "mlp_output": output_side},
        "zero_input": {"mlp_input": torch.zeros_like},
        "zero_output": {"mlp_output": torch.zeros_like},
    }


def _log_probabilities(logits: Tensor) -> Tensor:
    """At least float32: bfloat16 has too few digits for the difference of two predictions."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _cross_entropy(log_probabilities: Tensor, tokens: Tensor, measured: Tensor) -> Tensor:
    """-log p of each token that a measured position predicts."""
    predicts = measured[:, :-1] & measured[:, 1:]
    successors = log_probabilities[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return -successors[predicts]


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
    scores = {}
    for side, zero in (("input", "zero_input"), ("output", "zero_output"), ("pair", "zero_output")):
        ce_zero, kl_zero = {f"ce_{zero}": 1.0}, {f"kl_{zero}": 1.0}
        ratios = {
            f"ce_score_{side}": cross_entropy.ratio(ce_zero | {f"ce_{side}": -1.0}, ce_zero | {"ce_clean": -1.0}),
            f"kl_score_{side}": divergence.ratio(kl_zero | {f"kl_{side}": -1.0}, kl_zero),
        }
        for name, (score, standard_error) in ratios.items():
            scores |= {name: score, f"{name}_se": standard_error}
    return scores
