"""Conventions of the MLP's input: which one a pair was trained on, and measuring a pair under another one.

Nothing crashes if a pair is fed folded or un-normalised activations, and it may still explain most of their variance.
So the explained variance is compared between conventions: a pair explains best what it was trained on.

The original's scripts mix conventions: its pairs were trained on the model as it is, but histograms and functions of
pairs on pretrained models were measured on the model as TransformerLens loads it, with folded weights (those of pairs
on randomised models, on the model as it is). `under` does the same, so that reported numbers can be compared.

Here: comparing conventions, and a pair under another convention. Not here: the conventions themselves
(`language_model.py`), which pairs are refused (the caller decides).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jsae_core.activations import MLPInputs, packed
from jsae_core.language_model import LanguageModel
from jsae_core.measures.reconstruction import reconstruct
from jsae_core.sae_pair import SAEPair

CONVENTIONS = ("true", "published")


@dataclass(frozen=True)
class InputConventions:
    """Numbers for each convention, `true` first. A model that does not normalise its MLP's input has that one alone.

    Attributes:
        explained_variance: of the input SAE, as `reconstruction_quality` defines it.
        mlp_difference: |y' - y| / |y| over all tokens, with y' the output of the pair's MLP for this input, and y that
            of the model's own MLP for the true input.
        distance: |x' - x|^2 / sum |x - mean(x)|^2, with x' this input and x the true one; 0 if they are equal.
    """

    explained_variance: Mapping[str, float]
    mlp_difference: Mapping[str, float]
    distance: Mapping[str, float]

    def rival(self, margin: float) -> str | None:
        """The other convention under which the input SAE explains most, unless the true one is better by this margin.
        Inputs that are closer than the margin to the true one do not count: no SAE could tell them apart."""
        others = {name: ev for name, ev in self.explained_variance.items() if self.distance[name] > margin}
        best = max(others, key=others.__getitem__, default=None)
        return best if best and not self.explained_variance["true"] >= others[best] + margin else None


def under(convention: str, pair: SAEPair, stream: Iterable[Tensor]) -> tuple[SAEPair, Iterable[Tensor]]:
    """A pair and its stream of MLP inputs under a convention: "true", unchanged; or "published", as the original's
    histograms have them, which is the pair's SAEs around the folded MLP, on folded inputs. A pair on a randomised
    language model is unchanged under both.

    Raises:
        ValueError: the convention is unknown, or it is the published one and the stream is not an `MLPInputs`, which
            alone has the documents to compute other inputs from.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; expected one of {', '.join(CONVENTIONS)}")
    if convention == "true" or pair.config.randomize_llm_weights:
        return pair, stream
    if not isinstance(stream, MLPInputs):
        raise ValueError(
            f"the published convention needs the documents, not their MLP inputs: expected MLPInputs, not a "
            f"{type(stream).__name__}"
        )
    mlp = stream.language_model.folded_mlp(pair.config.layer)
    folded = SAEPair(pair.config, pair.input_sae, pair.output_sae, mlp, pair.table_dtype)
    return folded, replace(stream, convention="folded")


@torch.no_grad()
def input_conventions(
    pair: SAEPair, language_model: LanguageModel, documents: Sequence[Tensor], batch_tokens: int = 8192
) -> InputConventions:
    """Measure a pair under each convention, at the pair's layer.

    Args:
        documents: 1-d token tensors, BOS first; BOS is left out.
        batch_tokens: the most tokens, padding counted, that the model is given at once.

    Raises:
        ValueError: there is no token but BOS, or the layer has no MLP that can be used.
    """
    layer = pair.config.layer
    mlp = language_model.mlp(layer)
    sums: dict[str, _Sums] = {}
    y_squares = 0.0
    for batch in packed(documents, batch_tokens):
        inputs = language_model.mlp_input_conventions(batch.tokens, layer)
        inputs = {name: x[batch.measured.to(x.device)] for name, x in inputs.items()}
        y = mlp(inputs["true"])
        y_squares += _squares(y)
        for name, x in inputs.items():
            *_, x_hat = reconstruct(pair.input_sae, x)
            sums.setdefault(name, _Sums()).add(x, x_hat, inputs["true"], pair.mlp(x) - y)
    if not sums or not sums["true"].n_tokens:
        raise ValueError("the documents hold no token but BOS: there is nothing to compare conventions on")
    variance = sums["true"].variance
    return InputConventions(
        explained_variance={name: 1 - of.error / of.variance if of.variance else 0.0 for name, of in sums.items()},
        mlp_difference={name: _ratio(of.mlp_error, y_squares) ** 0.5 for name, of in sums.items()},
        distance={name: _ratio(of.distance, variance) for name, of in sums.items()},
    )


class _Sums:
    """Sums over tokens for one convention: squared distances, and what the variance is computed from."""

    def __init__(self) -> None:
        self.n_tokens = 0
        self.error = self.distance = self.mlp_error = self.squares = 0.0
        self.sum: Tensor | float = 0.0  # [d_model]

    def add(self, x: Tensor, x_hat: Tensor, true: Tensor, mlp_error: Tensor) -> None:
        self.n_tokens += len(x)
        self.error += _squares(x - x_hat)
        self.distance += _squares(x - true)
        self.mlp_error += _squares(mlp_error)
        self.squares += _squares(x)
        self.sum = self.sum + x.double().sum(dim=0)

    @property
    def variance(self) -> float:
        """sum |x - mean(x)|^2; 0 if x varies only by rounding."""
        variance = self.squares - _squares(torch.as_tensor(self.sum)) / max(self.n_tokens, 1)
        return variance if variance > 1e-9 * self.squares else 0.0


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float(part > 0)


def _squares(x: Tensor) -> float:
    return x.double().square().sum().item()
