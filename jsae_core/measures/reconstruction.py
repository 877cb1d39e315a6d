"""How well the two SAEs reconstruct what they are fed. Not here: what a reconstruction does to the language model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from sae_lens import TopKSAE
from torch import Tensor

from jsae_core.activations import with_documents
from jsae_core.measures.moments import Moments, NamedMoments
from jsae_core.sae import active_latents, decode
from jsae_core.sae_pair import SAEPair


@torch.no_grad()
def reconstruction_quality(pair: SAEPair, stream: Iterable[Tensor]) -> dict[str, float]:
    """For side in (input, output), over all tokens of the stream (each item [n_tokens, d_model]):

    `explained_variance_{side}`: 1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2, or 0 where x does not vary;
    `mse_{side}`: mean squared error over tokens and features; `cosine_{side}`: mean cosine of x and x_hat;
    `l0_{side}`: mean number of latents above zero; `dead_{side}`: share of latents that were never above zero;
    and `n_tokens`. The output SAE is fed the MLP's true output. All but `dead` have their standard error over documents
    (over tokens, where the stream names none) under the same name with `_se`; that of the explained variance is to
    first order (the delta method).

    Raises:
        ValueError: the stream is empty.
    """
    sums = ReconstructionSums(pair)
    for mlp_input, documents in with_documents(stream):
        mlp_output = pair.mlp(mlp_input)
        sums.add("input", mlp_input, *reconstruct(pair.input_sae, mlp_input), documents)
        sums.add("output", mlp_output, *reconstruct(pair.output_sae, mlp_output), documents)
    return sums.results()


def reconstruct(sae: TopKSAE, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x [n, d_in] -> its activations and latents, two [n, k], and the reconstruction [n, d_in]."""
    activations, latents = active_latents(sae, x)
    return activations, latents, decode(sae.W_dec, sae.b_dec, activations, latents)


class ReconstructionSums:
    """What `reconstruction_quality` is made of, for a caller that has encoded already."""

    def __init__(self, pair: SAEPair):
        self._sides = {"input": _Side(pair.input_sae), "output": _Side(pair.output_sae)}

    def add(self, side: str, x: Tensor, activations: Tensor, latents: Tensor, x_hat: Tensor, documents: Tensor) -> None:
        """x and its reconstruction [n, d_in]; activations and latents [n, k]; the document of each token [n]."""
        self._sides[side].add(x, activations, latents, x_hat, documents)

    def results(self) -> dict[str, float]:
        """As `reconstruction_quality` says. Raises ValueError if there was no token."""
        n_tokens = self._sides["input"].n_tokens
        if not n_tokens:
            raise ValueError("the stream of MLP inputs is empty: there is no token to measure")
        results = {"n_tokens": float(n_tokens)}
        for side, sums in self._sides.items():
            for name, value in sums.result().items():
                stem, suffix = (name.removesuffix("_se"), "_se") if name.endswith("_se") else (name, "")
                results[f"{stem}_{side}{suffix}"] = value
        return results


class _Side:
    def __init__(self, sae):
        self.sae = sae
        self.n_tokens = 0
        self.means = NamedMoments()
        self.errors_and_inputs = Moments()  # |x - x_hat|^2, |x|^2, x
        self.times_active = torch.zeros(sae.cfg.d_sae, dtype=torch.int64, device=sae.W_enc.device)

    def add(self, x: Tensor, activations: Tensor, latents: Tensor, x_hat: Tensor, documents: Tensor) -> None:
        wide = x.double()
        error = (wide - x_hat).square().sum(dim=1)
        self.n_tokens += len(x)
        self.means.add(
            {
                "mse": error / self.sae.cfg.d_in,
                "cosine": F.cosine_similarity(x, x_hat, dim=-1),
                "l0": (activations > 0).sum(dim=1),
            },
            documents,
        )
        squares = wide.square().sum(dim=1)
        self.errors_and_inputs.add(torch.cat([error[:, None], squares[:, None], wide], dim=1), documents)
        self.times_active.scatter_add_(0, latents.reshape(-1), (activations > 0).reshape(-1).long())

    def result(self) -> dict[str, float]:
        return (
            self._explained_variance() | self.means.means() | {"dead": (self.times_active == 0).float().mean().item()}
        )

    def _explained_variance(self) -> dict[str, float]:
        """1 - E / V with E = mean |x - x_hat|^2 and V = mean |x - m|^2 = mean |x|^2 - |m|^2. To first order its
        standard error is that of the mean of |x - x_hat|^2 - E/V |x - m|^2, over V; up to a constant this is
        |x - x_hat|^2 - E/V (|x|^2 - 2 m x)."""
        error, squares, *_ = self.errors_and_inputs.mean.tolist()
        m = self.errors_and_inputs.mean[2:]
        variance = squares - m.square().sum().item()
        if variance <= 1e-9 * squares:
            return {"explained_variance": 0.0, "explained_variance_se": 0.0}
        unexplained = error / variance
        weights = torch.cat([torch.tensor([1.0, -unexplained], dtype=torch.float64), 2 * unexplained * m])
        return {
            "explained_variance": 1 - unexplained,
            "explained_variance_se": self.errors_and_inputs.standard_error(weights) / variance,
        }
