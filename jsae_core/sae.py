"""One sparse autoencoder: how it is made of its weights, its pre-activations, its active latents, its reconstruction.

Here: everything that depends on which activation function an SAE has (TopK). Another kind of autoencoder is added here
and nowhere else. Not here: two SAEs and the MLP between them (`sae_pair.py`), the files they come from
(`pair_format.py`).

SAELens encodes and decodes, but its TopK neither sorts nor says which latents it took, so that is done here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from sae_lens import TopKSAE, TopKSAEConfig
from torch import Tensor

from jsae_core.memory import piece_factor

SAE_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
PRE_ACTIVATION_BYTES = 128 * 2**20  # fewer rows at once make the product with the encoder slower
GROUP = 32  # of values, whose maximum is looked at first where a device searches long rows


def sae_shapes(d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    """The shape of each weight of an SAE, by its name."""
    return {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}


def make_sae(
    weights: Mapping[str, Tensor],
    k: int,
    apply_b_dec_to_input: bool,
    model_name: str = "",
    hook_name: str = "",
    prepend_bos: bool = True,
) -> TopKSAE:
    """A SAELens SAE that keeps the k largest pre-activations of an input, with these weights (not copied).

    Args:
        weights: `W_enc` [d_in, d_sae], `b_enc` [d_sae], `W_dec` [d_sae, d_in], `b_dec` [d_in]; all of one dtype, on one
            device.
        apply_b_dec_to_input: whether b_dec is taken from an input before it is encoded.
        model_name, hook_name, prepend_bos: what SAELens notes of where the SAE belongs.
    """
    W_enc = weights["W_enc"]
    # on the meta device: SAELens would initialise weights that are thrown away at once
    sae = TopKSAE(
        TopKSAEConfig(
            d_in=W_enc.shape[0],
            d_sae=W_enc.shape[1],
            k=k,
            dtype=str(W_enc.dtype).removeprefix("torch."),
            device="meta",
            apply_b_dec_to_input=apply_b_dec_to_input,
            normalize_activations="none",
        )
    )
    sae.load_state_dict(dict(weights), assign=True)
    sae.cfg.device = str(W_enc.device)
    sae.device = W_enc.device
    sae.cfg.metadata.model_name = model_name
    sae.cfg.metadata.hook_name = hook_name
    sae.cfg.metadata.prepend_bos = prepend_bos
    return sae


def active_latents(sae: TopKSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """x [n, d_in] -> the k largest pre-activations after ReLU, and their latents, in descending order: two [n, k]."""
    values, latents = largest_pre_activations(sae, x, sae.cfg.k)
    return values.relu_(), latents


@torch.no_grad()
def largest_pre_activations(sae: TopKSAE, x: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """x [n, d_in] -> the largest pre-activations and their latents, in descending order: two [n, n_latents].

    Rows are encoded some at a time, into memory that the next ones use again: for all rows at once it would have to be
    new, and new pages take a third as long as the product that fills them."""
    rows = inputs_at_once(sae)
    memory = x.new_empty(min(len(x), rows), sae.cfg.d_sae)
    parts = [top_k(pre_activations(sae, part, memory), n_latents) for part in x.split(rows)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([values for values, _ in parts]), torch.cat([latents for _, latents in parts])


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row [n, d] and their places, in descending order: two [n, k]. As `torch.topk`: NaN is
    larger than any number, and which of equal values come first, or come at all, is not said."""
    # on a CPU the search is as fast without
    if values.device.type == "cuda" and values.shape[1] % GROUP == 0 and values.shape[1] >= 8 * GROUP * k:
        return grouped_top_k(values, k)
    return torch.topk(values, k, dim=-1)


def grouped_top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`top_k` in two stages: among the members of the k groups whose maxima are largest. d is a multiple of GROUP, and
    there are at least k groups.

    No value is lost. One in a group that was not taken is at most its group's maximum, which is at most each of the k
    maxima that were taken: k values that are no smaller are among the members. So the k largest are the same numbers,
    to the last bit, and where they differ from all others of their row their places are the same too; of equal ones
    each place that is given holds such a value, and no place is given twice. NaN is the largest of its group, as it is
    the largest of all.
    """
    n, d = values.shape
    n_groups = d // GROUP
    # group g is g, g + n_groups, ...: neighbours belong to different groups, so a maximum is taken of whole rows
    groups = torch.topk(values.view(n, GROUP, n_groups).amax(dim=1), k, dim=-1, sorted=False).indices
    members = torch.arange(0, d, n_groups, device=values.device)[:, None] + groups[:, None]
    members = members.flatten(1)
    largest, where = torch.topk(values.gather(1, members), k, dim=-1)
    return largest, members.gather(1, where)


@torch.no_grad()
def pre_activations(sae: TopKSAE, x: Tensor, memory: Tensor | None = None) -> Tensor:
    """x [n, d_in] -> all pre-activations [n, d_sae], in the first rows of `memory` where it is given."""
    out = x.new_empty(len(x), sae.cfg.d_sae) if memory is None else memory[: len(x)]
    return torch.addmm(sae.b_enc, sae.process_sae_in(x), sae.W_enc, out=out)


def inputs_at_once(sae: TopKSAE) -> int:
    """How many inputs to encode at once: their pre-activations, d_sae each, are the largest thing then."""
    at_once = piece_factor(sae.W_enc.device) * PRE_ACTIVATION_BYTES
    return max(1, at_once // (sae.cfg.d_sae * sae.W_enc.element_size()))


def decode(W_dec: Tensor, b_dec: Tensor, activations: Tensor, latents: Tensor) -> Tensor:
    """Reconstruction [n, d_in] from the k active latents alone: activations and latents [n, k]."""
    return F.embedding_bag(latents, W_dec, per_sample_weights=activations, mode="sum") + b_dec
