"""The rows that the Jacobian is built from, and when they are built.

Here: the two tables of a pair and their cache. Not here: why the Jacobian is a product of their rows (`jacobian.py`
derives it), which weights they are made of (`sae_pair.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jsae_core.memory import available_bytes
from jsae_core.mlp import MLP


class Tables(NamedTuple):
    """One row a latent, so that a token's rows are gathered contiguously."""

    inputs: Tensor  # [d_sae, branches * d_mlp]: W_dec_in W_b, the MLP's branches side by side
    outputs: Tensor  # [d_sae, d_mlp]: (W_out W_enc_out)^T


def build_tables(W_dec_in: Tensor, W_enc_out: Tensor, mlp: MLP) -> Tables:
    """The tables of some latents: 2 * n_latents * d_model * d_mlp multiply-adds (3 for a gated MLP).

    Args:
        W_dec_in: decoder rows of input latents [n_inputs, d_model].
        W_enc_out: encoder columns of output latents [d_model, n_outputs].
    """
    return Tables(inputs=W_dec_in @ torch.cat(mlp.branches, dim=1), outputs=W_enc_out.T @ mlp.W_out.T)


class TableCache:
    """The tables of all latents of a pair: built at first use, and again when a weight was replaced, moved or changed.

    Each method is given the weights as they are now: W_dec_in [d_sae, d_model], W_enc_out [d_model, d_sae], the MLP.
    """

    def __init__(self) -> None:
        self._built: tuple[Any, Tables, tuple[Tensor, ...]] | None = None
        self._rows_built = 0

    def tables(self, W_dec_in: Tensor, W_enc_out: Tensor, mlp: MLP) -> Tables:
        """Tables of all latents. Raises MemoryError: the device has no room for them."""
        weights = (W_dec_in, W_enc_out, mlp.W_out, *mlp.branches)
        if not self._is_current(weights):
            self._built = None  # free the old ones first: they are the largest thing here
            needed, available = tables_bytes(len(W_dec_in), mlp), available_bytes(W_dec_in.device)
            if available is not None and needed > available:
                raise MemoryError(
                    f"the tables that this pair's Jacobians are made of take {needed / 1e9:.1f} GB, but "
                    f"{W_dec_in.device} has {available / 1e9:.1f} GB left; compute on another device, with fewer "
                    "digits (bfloat16), or with nothing else beside it"
                )
            with torch.no_grad():
                tables = build_tables(W_dec_in, W_enc_out, mlp)
            # the weights are kept with them, so that no later weight can come to lie at the same address
            self._built = (_state(weights), tables, tuple(weight.detach() for weight in weights))
            self._rows_built = 0
        assert self._built is not None
        return self._built[1]

    @torch.no_grad()
    def rows(
        self, W_dec_in: Tensor, W_enc_out: Tensor, mlp: MLP, input_latents: Tensor, output_latents: Tensor
    ) -> tuple[Tables, Tensor, Tensor]:
        """Tables that hold the rows of these latents, and the rows they are in (shaped like the latents).

        Where the tables are not built, only the rows asked for are, until these have been as many as the tables have:
        a prompt's Jacobians need a few of them, and the tables take minutes for the largest pairs."""
        asked = max(input_latents.numel(), output_latents.numel())
        is_current = self._is_current((W_dec_in, W_enc_out, mlp.W_out, *mlp.branches))
        if is_current or self._rows_built + asked > len(W_dec_in):
            return self.tables(W_dec_in, W_enc_out, mlp), input_latents, output_latents
        self._rows_built += asked
        (inputs, input_rows), (outputs, output_rows) = (
            latents.unique(return_inverse=True) for latents in (input_latents, output_latents)
        )
        return build_tables(W_dec_in[inputs], W_enc_out[:, outputs], mlp), input_rows, output_rows

    def _is_current(self, weights: tuple[Tensor, ...]) -> bool:
        return self._built is not None and self._built[0] == _state(weights)


def tables_bytes(d_sae: int, mlp: MLP) -> int:
    """What the tables of all latents take, built or not."""
    return d_sae * mlp.W_in.shape[1] * (len(mlp.branches) + 1) * mlp.W_in.element_size()


def _state(weights: tuple[Tensor, ...]) -> tuple:
    """What changes when a weight is replaced, moved or written to."""
    return tuple((weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in weights)
