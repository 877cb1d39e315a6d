"""How well the two SAEs reconstruct what they are fed. Not here: what a reconstruction does to the language model."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from sae_lens import TopKSAE
from torch import Tensor

from jsae_core.activations import with_documents
from jsae_core.checkpoints import State
from jsae_core.measures.moments import Estimate, Moments, NamedMoments, flat
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
    return flat(sums.estimates()) | sums.numbers()


def reconstruct(sae: TopKSAE, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The activations and latents of x [n, d_in], both [n, k], and its reconstruction [n, d_in]."""
    activations, latents = active_latents(sae, x)
    return activations, latents, decode(sae.W_dec, sae.b_dec, activations, latents)


class ReconstructionSums:
    """The sums behind `reconstruction_quality`, for a caller that has encoded already."""

    def __init__(self, pair: SAEPair):
        self._sides = {"input": _Side(pair.input_sae), "output": _Side(pair.output_sae)}

    def add(
        self, side: str, x: Tensor, activations: Tensor, latents: Tensor, x_hat: Tensor, documents: Tensor | None
    ) -> None:
        """x and its reconstruction [n, d_in]; activations and latents [n, k]; the document of each token [n]."""
        self._sides[side].add(x, activations, latents, x_hat, documents)

    def state(self) -> State:
        return State.joined({name: side.state() for name, side in self._sides.items()})

    def take_in(self, state: State) -> None:
        for name, side in self._sides.items():
            side.take_in(state.part(name))

    def estimates(self) -> dict[str, Estimate]:
        """What `reconstruction_quality` gives with an error. Raises ValueError if there was no token."""
        if not self._sides["input"].n_tokens:
            raise ValueError("the stream of MLP inputs is empty: there is no token to measure")
        return {f"{name}_{side}": of for side, sums in self._sides.items() for name, of in sums.estimates().items()}

    def numbers(self) -> dict[str, float]:
        """What `reconstruction_quality` gives without an error."""
        dead = {f"dead_{side}": sums.dead for side, sums in self._sides.items()}
        return dead | {"n_tokens": float(self._sides["input"].n_tokens)}


class _Side:
    def __init__(self, sae):
        self.sae = sae
        self.n_tokens = 0
        self.means = NamedMoments()
        self.errors_and_inputs = Moments()  # |x - x_hat|^2, |x|^2, x
        self.times_active = torch.zeros(sae.cfg.d_sae, dtype=torch.int64, device=sae.W_enc.device)

    def add(self, x: Tensor, activations: Tensor, latents: Tensor, x_hat: Tensor, documents: Tensor | None) -> None:
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

    def state(self) -> State:
        of_moments = {"means": self.means.state(), "errors_and_inputs": self.errors_and_inputs.state()}
        return State.joined({**of_moments, "side": State({"active": self.times_active}, {"n_tokens": self.n_tokens})})

    def take_in(self, state: State) -> None:
        self.means.take_in(state.part("means"))
        self.errors_and_inputs.take_in(state.part("errors_and_inputs"))
        own = state.part("side")
        self.times_active += own.tensors["active"]
        self.n_tokens += own.values["n_tokens"]

    @property
    def dead(self) -> float:
        return (self.times_active == 0).float().mean().item()

    def estimates(self) -> dict[str, Estimate]:
        return {"explained_variance": self._explained_variance()} | self.means.estimates()

    def _explained_variance(self) -> Estimate:
        """1 - E / V with E = mean |x - x_hat|^2 and V = mean |x - m|^2 = mean |x|^2 - |m|^2. To first order its
        standard error is that of the mean of |x - x_hat|^2 - E/V |x - m|^2, over V; up to a constant this is
        |x - x_hat|^2 - E/V (|x|^2 - 2 m x)."""
        mean = self.errors_and_inputs.mean
        error, squares, m = mean[0].item(), mean[1].item(), mean[2:]
        variance = squares - m.square().sum().item()
        if variance <= 1e-9 * squares:
            return self.errors_and_inputs.estimate(0.0, torch.zeros_like(mean))
        unexplained = error / variance
        weights = torch.cat([torch.tensor([-1.0, unexplained], dtype=torch.float64), -2 * unexplained * m])
        return self.errors_and_inputs.estimate(1 - unexplained, weights / variance)
