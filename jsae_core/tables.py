"""The rows that the Jacobian is built from, and when they are built.

Here: the two tables of a pair and their cache, in the weights' dtype or a narrower one. Not here: why the Jacobian is a
product of their rows (`jacobian.py` derives it), which weights they are made of (`sae_pair.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jsae_core.memory import check_room
from jsae_core.mlp import MLP

ROWS_AT_ONCE = 4096  # rows that are built before they are rounded to a narrower dtype


class Tables(NamedTuple):
    """A row for each latent, so that gathering a token's latents copies whole rows."""

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
    """The tables of all latents of a pair: built at first use, and again after a weight was replaced, moved or changed.

    Each method is given the weights as they are now: W_dec_in [d_sae, d_model], W_enc_out [d_model, d_sae], the MLP.

    Args:
        dtype: the dtype that finished rows are rounded to. None: that of the weights.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype
        self._built: tuple[Any, Tables, tuple[Tensor, ...]] | None = None
        self._rows_built = 0

    def tables(self, W_dec_in: Tensor, W_enc_out: Tensor, mlp: MLP) -> Tables:
        """The tables of all latents. Raises MemoryError if the device has no room for them."""
        weights = (W_dec_in, W_enc_out, mlp.W_out, *mlp.branches)
        if not self._is_current(weights):
            self._built = None  # free the old ones first: they are the largest thing here
            needed = tables_bytes(len(W_dec_in), mlp, self._dtype)
            check_room("the tables that this pair's Jacobians are made of", needed, W_dec_in.device)
            with torch.no_grad():
                tables = self._rounded(W_dec_in, W_enc_out, mlp)
            # the weights are kept with them, so that no later weight can come to lie at the same address
            self._built = (_state(weights), tables, tuple(weight.detach() for weight in weights))
            self._rows_built = 0
        assert self._built is not None
        return self._built[1]

    @torch.no_grad()
    def rows(
        self, W_dec_in: Tensor, W_enc_out: Tensor, mlp: MLP, input_latents: Tensor, output_latents: Tensor
    ) -> tuple[Tables, Tensor, Tensor]:
        """Tables that hold the rows of these latents, and the number of each latent's row (shaped like the latents).

        As long as the whole tables are not built, only the rows asked for are, until they would add up to as many as
        the tables have: the Jacobians of a prompt need a few rows, and the largest pairs' tables take minutes."""
        asked = max(input_latents.numel(), output_latents.numel())
        is_current = self._is_current((W_dec_in, W_enc_out, mlp.W_out, *mlp.branches))
        if is_current or self._rows_built + asked > len(W_dec_in):
            return self.tables(W_dec_in, W_enc_out, mlp), input_latents, output_latents
        self._rows_built += asked
        (inputs, input_rows), (outputs, output_rows) = (
            latents.unique(return_inverse=True) for latents in (input_latents, output_latents)
        )
        return self._rounded(W_dec_in[inputs], W_enc_out[:, outputs], mlp), input_rows, output_rows

    def _rounded(self, W_dec_in: Tensor, W_enc_out: Tensor, mlp: MLP) -> Tables:
        """`build_tables` in the cache's dtype, without ever holding whole tables in a wider one."""
        if self._dtype in (None, W_dec_in.dtype):
            return build_tables(W_dec_in, W_enc_out, mlp)
        d_mlp = mlp.W_in.shape[1]
        tables = Tables(
            W_dec_in.new_empty(len(W_dec_in), len(mlp.branches) * d_mlp, dtype=self._dtype),
            W_dec_in.new_empty(W_enc_out.shape[1], d_mlp, dtype=self._dtype),
        )
        for first in range(0, max(map(len, tables)), ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            for table, built in zip(tables, build_tables(W_dec_in[part], W_enc_out[:, part], mlp), strict=True):
                table[part] = built
        return tables

    @property
    def n_bytes(self) -> int:
        """The bytes that the tables take; 0 if they are not built."""
        return 0 if self._built is None else sum(table.nbytes for table in self._built[1])

    def _is_current(self, weights: tuple[Tensor, ...]) -> bool:
        return self._built is not None and self._built[0] == _state(weights)


def tables_bytes(d_sae: int, mlp: MLP, dtype: torch.dtype | None = None) -> int:
    """The bytes that the tables of all latents take, built or not; in the weights' dtype unless another is given."""
    return d_sae * mlp.W_in.shape[1] * (len(mlp.branches) + 1) * (dtype or mlp.W_in.dtype).itemsize


def _state(weights: tuple[Tensor, ...]) -> tuple:
    """A value that changes when a weight is replaced, moved or written to."""
    return tuple((weight.data_ptr(), weight._version, weight.dtype, weight.device) for weight in weights)
