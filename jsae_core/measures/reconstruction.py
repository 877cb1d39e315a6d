"""How well the two SAEs reconstruct what they are fed. Not here: what a reconstruction does to the language model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from jsae_core.sae_pair import SAEPair, decode, top_latents


@torch.no_grad()
def reconstruction_quality(pair: SAEPair, stream: Iterable[Tensor]) -> dict[str, float]:
    """For side in (input, output), over all tokens of the stream (each item [n_tokens, d_model]):

    `explained_variance_{side}`: 1 - sum |x - x_hat|^2 / sum |x - mean(x)|^2, or 0 where x does not vary;
    `mse_{side}`: mean squared error over tokens and features; `cosine_{side}`: mean cosine of x and x_hat;
    `l0_{side}`: mean number of latents above zero; `dead_{side}`: share of latents that were never above zero;
    and `n_tokens`. The output SAE is fed the MLP's true output.

    Raises:
        ValueError: the stream is empty.
    """
    sides = {"input": _Side(pair.input_sae), "output": _Side(pair.output_sae)}
    for mlp_input in stream:
        sides["input"].add(mlp_input)
        sides["output"].add(pair.mlp(mlp_input))
    if not sides["input"].n_tokens:
        raise ValueError("the stream of MLP inputs is empty: there is no token to measure")
    return {f"{name}_{side}": value for side, sums in sides.items() for name, value in sums.result().items()} | {
        "n_tokens": float(sides["input"].n_tokens)
    }


class _Side:
    def __init__(self, sae):
        self.sae = sae
        self.n_tokens = 0
        self.squared_error = self.cosine = self.active = 0.0
        self.x_sum = torch.zeros(sae.cfg.d_in, dtype=torch.float64)
        self.x_squares = 0.0
        self.alive = torch.zeros(sae.cfg.d_sae, dtype=torch.bool, device=sae.W_enc.device)

    def add(self, x: Tensor) -> None:
        activations, latents = top_latents(self.sae, x)
        x_hat = decode(self.sae.W_dec, self.sae.b_dec, activations, latents)
        self.n_tokens += len(x)
        self.squared_error += (x - x_hat).square().sum(dtype=torch.float64).item()
        self.cosine += F.cosine_similarity(x, x_hat, dim=-1).sum(dtype=torch.float64).item()
        self.active += (activations > 0).sum().item()
        self.x_sum += x.sum(dim=0, dtype=torch.float64).cpu()
        self.x_squares += x.square().sum(dtype=torch.float64).item()
        self.alive[latents[activations > 0]] = True

    def result(self) -> dict[str, float]:
        variance = self.x_squares - self.x_sum.square().sum().item() / self.n_tokens
        varies = variance > 1e-9 * self.x_squares
        return {
            "explained_variance": 1 - self.squared_error / variance if varies else 0.0,
            "mse": self.squared_error / (self.n_tokens * self.sae.cfg.d_in),
            "cosine": self.cosine / self.n_tokens,
            "l0": self.active / self.n_tokens,
            "dead": 1 - self.alive.float().mean().item(),
        }
