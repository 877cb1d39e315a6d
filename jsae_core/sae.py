"""One sparse autoencoder: how it is made from its weights, its pre-activations, active latents and reconstruction.

Here: everything that depends on the activation function of an SAE (TopK). Another kind of autoencoder would be added
here and nowhere else. Not here: two SAEs and the MLP between them (`sae_pair.py`), the files they come from
(`pair_format.py`).

SAELens encodes and decodes, but its TopK neither sorts the latents nor returns their indices, so that is done here.
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
GROUP = 32  # values in a group; on a GPU, TopK of a long row looks at the maxima of its groups first


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
        apply_b_dec_to_input: whether b_dec is subtracted from an input before it is encoded.
        model_name, hook_name, prepend_bos: metadata that SAELens keeps about the model that the SAE belongs to.
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
    """x [n, d_in] -> the k largest pre-activations after ReLU, and their latents, in descending order; [n, k] each."""
    values, latents = largest_pre_activations(sae, x, sae.cfg.k)
    return values.relu_(), latents


@torch.no_grad()
def largest_pre_activations(sae: TopKSAE, x: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """x [n, d_in] -> the largest pre-activations and their latents, in descending order; [n, n_latents] each.

    Rows are encoded in parts that reuse the same memory. Memory for all rows at once would be newly allocated, and
    touching new pages takes a third as long as the product that fills them."""
    rows = inputs_at_once(sae)
    memory = x.new_empty(min(len(x), rows), sae.cfg.d_sae)
    parts = [top_k(pre_activations(sae, part, memory), n_latents) for part in x.split(rows)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([values for values, _ in parts]), torch.cat([latents for _, latents in parts])


def top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row [n, d] and their indices, in descending order; [n, k] each. As in `torch.topk`,
    NaN is larger than any number, and the choice and order among equal values are undefined."""
    # on a CPU, groups do not make the search faster
    if values.device.type == "cuda" and values.shape[1] % GROUP == 0 and values.shape[1] >= 8 * GROUP * k:
        return grouped_top_k(values, k)
    return torch.topk(values, k, dim=-1)


def grouped_top_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`top_k` in two stages: find the k groups with the largest maxima, then search among their members. d must be a
    multiple of GROUP, with at least k groups.

    No value is lost: a value in a group that was not chosen is at most its group's maximum, which is at most each of
    the k chosen maxima, so at least k members are no smaller. Therefore the k largest values are the same to the last
    bit. Their indices are the same too, except among equal values, where every index returned holds such a value and no
    index is returned twice. NaN is the largest of its group, as it is the largest of all.
    """
    n, d = values.shape
    n_groups = d // GROUP
    # group g holds the indices g, g + n_groups, ...: neighbours are in different groups, so maxima are taken over rows
    groups = torch.topk(values.view(n, GROUP, n_groups).amax(dim=1), k, dim=-1, sorted=False).indices
    members = torch.arange(0, d, n_groups, device=values.device)[:, None] + groups[:, None]
    members = members.flatten(1)
    largest, where = torch.topk(values.gather(1, members), k, dim=-1)
    return largest, members.gather(1, where)


@torch.no_grad()
def pre_activations(sae: TopKSAE, x: Tensor, memory: Tensor | None = None) -> Tensor:
    """x [n, d_in] -> all pre-activations [n, d_sae], written to the first rows of `memory` if it is given."""
    out = x.new_empty(len(x), sae.cfg.d_sae) if memory is None else memory[: len(x)]
    return torch.addmm(sae.b_enc, sae.process_sae_in(x), sae.W_enc, out=out)


def inputs_at_once(sae: TopKSAE) -> int:
    """How many inputs to encode at once, so that their pre-activations (d_sae for each) stay within a fixed size."""
    at_once = piece_factor(sae.W_enc.device) * PRE_ACTIVATION_BYTES
    return max(1, at_once // (sae.cfg.d_sae * sae.W_enc.element_size()))


def decode(W_dec: Tensor, b_dec: Tensor, activations: Tensor, latents: Tensor) -> Tensor:
    """The reconstruction [n, d_in] from the active latents alone; activations and latents are [n, k]."""
    return F.embedding_bag(latents, W_dec, per_sample_weights=activations, mode="sum") + b_dec
