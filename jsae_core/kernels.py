"""Triton kernels: one launch on a CUDA device in place of many launches with copies in between.

Here: the Jacobian of many tokens, the gradients of the rows it is made of, and sums over the tokens in which a latent
is active. Not here: the derivations (of the Jacobian in `jacobian.py`, of the gradients in `training.py`), whether a
device can run the kernels (`fused.py`; this module is imported only if it can).

Every sum is taken in the same order in every run, so results are the same in every run. A product of float32 numbers is
computed as three products of TF32 ("tf32x3"), with a smaller error than plain float32 sums have; bfloat16 and float16
are multiplied as they are and summed in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from jsae_core.tables import Tables

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_LATENTS = 128  # of a token: a program keeps k x k sums in registers
GRADIENT_ROWS_BYTES = 2**29  # of all tokens' gradient rows at once, before they are summed


def jacobian(tables: Tables, input_rows: Tensor, output_rows: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    """J [n, k_out, k_in] from rows of the tables [n, k] and slopes, each [n, d_mlp], in the slopes' dtype.

    Tables in a narrower dtype are multiplied in it: input rows are rounded to it again after they are scaled."""
    n, k_in = input_rows.shape
    k_out, d_mlp = output_rows.shape[1], tables.outputs.shape[1]
    J = slopes[0].new_empty(n, k_out, k_in)
    sizes = _sizes(max(k_in, k_out))
    if n:
        _jacobian[(n,)](
            J,
            *_arguments(tables, input_rows, output_rows, slopes),
            k_in,
            k_out,
            d_mlp,
            BRANCHES=len(slopes),
            **sizes._asdict(),
        )
    return J


def table_gradients(
    tables: Tables, input_rows: Tensor, output_rows: Tensor, slopes: Sequence[Tensor], d_jacobian: Tensor
) -> Tables:
    """The gradients of both tables from that of J [n, k_out, k_in]: for each row the sum over all tokens.

    A token's own gradient rows are written for some columns of all tokens at once, then summed table row by table row.
    """
    n, k_in = input_rows.shape
    k_out, d_mlp, branches = output_rows.shape[1], tables.outputs.shape[1], len(slopes)
    gradients = Tables(*map(torch.zeros_like if not n else torch.empty_like, tables))
    if not n:
        return gradients
    by_input, by_output = (
        occurrences(rows, len(table)) for rows, table in zip((input_rows, output_rows), tables, strict=True)
    )
    sizes = _sizes(max(k_in, k_out))
    column_bytes = n * (k_in * branches + k_out) * tables.outputs.element_size()
    at_once = min(max(1, GRADIENT_ROWS_BYTES // (column_bytes * sizes.BLOCK)) * sizes.BLOCK, d_mlp)
    of_inputs = tables.inputs.new_empty(branches, n * k_in, at_once)
    of_outputs = tables.outputs.new_empty(n * k_out, at_once)
    d_jacobian = d_jacobian.contiguous()
    for first in range(0, d_mlp, at_once):
        columns = min(at_once, d_mlp - first)
        _gradient_rows[(n, triton.cdiv(columns, sizes.BLOCK))](
            of_inputs,
            of_outputs,
            d_jacobian,
            *_arguments(tables, input_rows, output_rows, slopes),
            k_in,
            k_out,
            d_mlp,
            first,
            columns,
            at_once,
            of_inputs.stride(0),
            BRANCHES=branches,
            **sizes._asdict(),
        )
        _sum_rows(of_outputs[:, :columns], by_output, gradients.outputs[:, first : first + columns])
        for b, rows in enumerate(of_inputs):
            start = b * d_mlp + first
            _sum_rows(rows[:, :columns], by_input, gradients.inputs[:, start : start + columns])
    return gradients


class Occurrences(NamedTuple):
    """The places of each latent l among latents [n, k], numbered row by row: places[starts[l] : starts[l + 1]], in
    ascending order."""

    places: Tensor  # [n k] int64
    starts: Tensor  # [n_latents + 1] int64


def occurrences(latents: Tensor, n_latents: int) -> Occurrences:
    """The occurrences of latents [n, k], each in [0, n_latents)."""
    ordered, places = latents.reshape(-1).int().sort(stable=True)
    edges = torch.arange(n_latents + 1, dtype=torch.int32, device=latents.device)
    return Occurrences(places, torch.searchsorted(ordered, edges))


def weighted_sums(rows: Tensor, weights: Tensor, where: Occurrences) -> Tensor:
    """For each latent, the sum over the tokens in which it is active of the token's row [n, width] times the latent's
    weight [n, k] there: [n_latents, width]."""
    sums = rows.new_empty(len(where.starts) - 1, rows.shape[1])
    return _sum_rows(rows.contiguous(), where, sums, weights.contiguous())


def row_products(table: Tensor, latents: Tensor, vectors: Tensor) -> Tensor:
    """The products of each token's vector [n, width] with its latents' [n, k] rows of a table [n_latents, width]:
    [n, k]."""
    n, k = latents.shape
    products = vectors.new_empty(n, k)
    if n:
        _row_products[(n,)](
            products,
            table,
            latents.contiguous(),
            vectors.contiguous(),
            k,
            table.shape[1],
            table.stride(0),
            K=triton.next_power_of_2(k),
            BLOCK=64,
            num_warps=4,
        )
    return products


class _Sizes(NamedTuple):
    K: int  # a power of two, at least k
    BLOCK: int  # columns at a time
    num_warps: int
    num_stages: int


def _sizes(k: int) -> _Sizes:
    if k > MOST_LATENTS:
        raise ValueError(f"a token has {k} latents; these kernels take at most {MOST_LATENTS}")
    K = max(16, triton.next_power_of_2(k))
    if K <= 32:
        return _Sizes(K, 64, 2, 3)
    return _Sizes(K, 32, 4, 2) if K == 64 else _Sizes(K, 32, 8, 2)


def _arguments(tables: Tables, input_rows: Tensor, output_rows: Tensor, slopes: Sequence[Tensor]) -> tuple:
    """The arguments that both kernels of the Jacobian share. The only slope of a plain MLP is given twice."""
    return (
        tables.inputs,
        tables.outputs,
        input_rows.contiguous(),
        output_rows.contiguous(),
        slopes[0].contiguous(),
        slopes[-1].contiguous(),
        tables.inputs.stride(0),
        tables.outputs.stride(0),
    )


def _sum_rows(rows: Tensor, where: Occurrences, sums: Tensor, weights: Tensor | None = None) -> Tensor:
    """Write into `sums` [n_latents, width] the sums of the rows [n k, width] at each latent's places; or, with weights
    [n, k], the weighted sums of its tokens' rows [n, width]."""
    n_latents, width = sums.shape
    BLOCK = min(128, triton.next_power_of_2(width))
    _sums_by_latent[(n_latents, triton.cdiv(width, BLOCK))](
        sums,
        rows,
        rows if weights is None else weights,
        where.places,
        where.starts,
        width,
        rows.stride(0),
        sums.stride(0),
        1 if weights is None else weights.shape[1],
        WEIGHTED=weights is not None,
        AT_ONCE=8,
        BLOCK=BLOCK,
        num_warps=2,
    )
    return sums


@triton.jit
def _gathered(
    inputs, outputs, in_rows, out_rows, slope_a, slope_b, token, columns, inside, d_mlp, in_stride, out_stride,
    BRANCHES: tl.constexpr,
):  # fmt: skip
    """Some columns of one token's E [K, BLOCK], of sum_b c_b D_b [K, BLOCK] in float32, and of the slopes [BLOCK]."""
    E = tl.load(outputs + out_rows[:, None] * out_stride + columns[None, :], mask=inside[None, :], other=0.0)
    D = tl.load(inputs + in_rows[:, None] * in_stride + columns[None, :], mask=inside[None, :], other=0.0)
    a = tl.load(slope_a + token * d_mlp + columns, mask=inside, other=0.0).to(tl.float32)
    b = a
    D = D.to(tl.float32) * a[None, :]
    if BRANCHES == 2:
        b = tl.load(slope_b + token * d_mlp + columns, mask=inside, other=0.0).to(tl.float32)
        other = tl.load(
            inputs + in_rows[:, None] * in_stride + d_mlp + columns[None, :], mask=inside[None, :], other=0.0
        )
        D += other.to(tl.float32) * b[None, :]
    return E, D, a, b


@triton.jit
def _jacobian(
    J, inputs, outputs, input_rows, output_rows, slope_a, slope_b, in_stride, out_stride, k_in, k_out, d_mlp,
    BRANCHES: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    ranks = tl.arange(0, K)
    in_rows = tl.load(input_rows + token * k_in + ranks, mask=ranks < k_in, other=0)
    out_rows = tl.load(output_rows + token * k_out + ranks, mask=ranks < k_out, other=0)
    total = tl.zeros((K, K), tl.float32)
    for first in range(0, d_mlp, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        E, D, a, b = _gathered(
            inputs, outputs, in_rows, out_rows, slope_a, slope_b, token, columns, columns < d_mlp, d_mlp, in_stride,
            out_stride, BRANCHES,
        )  # fmt: skip
        total = tl.dot(E, tl.trans(D.to(E.dtype)), total, input_precision="tf32x3")
    places = (token * k_out + ranks[:, None]) * k_in + ranks[None, :]
    tl.store(J + places, total.to(J.dtype.element_ty), mask=(ranks < k_out)[:, None] & (ranks < k_in)[None, :])


@triton.jit
def _gradient_rows(
    of_inputs, of_outputs, d_jacobian, inputs, outputs, input_rows, output_rows, slope_a, slope_b, in_stride,
    out_stride, k_in, k_out, d_mlp, first, n_columns, width, branch_stride,
    BRANCHES: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one token, some columns of dL/dE [k_out, BLOCK] = dL/dJ (sum_b c_b D_b) and dL/dD_b = c_b (dL/dJ)^T E."""
    token = tl.program_id(0).to(tl.int64)
    ranks = tl.arange(0, K)
    is_in, is_out = ranks < k_in, ranks < k_out
    in_rows = tl.load(input_rows + token * k_in + ranks, mask=is_in, other=0)
    out_rows = tl.load(output_rows + token * k_out + ranks, mask=is_out, other=0)
    written = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = written < n_columns
    E, D, a, b = _gathered(
        inputs, outputs, in_rows, out_rows, slope_a, slope_b, token, first + written, inside, d_mlp, in_stride,
        out_stride, BRANCHES,
    )  # fmt: skip
    places = (token * k_out + ranks[:, None]) * k_in + ranks[None, :]
    d_J = tl.load(d_jacobian + places, mask=is_out[:, None] & is_in[None, :], other=0.0)
    d_E = tl.dot(d_J, D.to(d_J.dtype), input_precision="tf32x3")
    rows = (token * k_out + ranks[:, None]) * width + written[None, :]
    tl.store(of_outputs + rows, d_E.to(of_outputs.dtype.element_ty), mask=is_out[:, None] & inside[None, :])
    d_D = tl.dot(tl.trans(d_J), E.to(d_J.dtype), input_precision="tf32x3")
    rows = (token * k_in + ranks[:, None]) * width + written[None, :]
    kept = is_in[:, None] & inside[None, :]
    tl.store(of_inputs + rows, (d_D * a[None, :]).to(of_inputs.dtype.element_ty), mask=kept)
    if BRANCHES == 2:
        tl.store(of_inputs + branch_stride + rows, (d_D * b[None, :]).to(of_inputs.dtype.element_ty), mask=kept)


@triton.jit
def _sums_by_latent(
    sums, rows, weights, places, starts, width, row_stride, sum_stride, k,
    WEIGHTED: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    start, stop = tl.load(starts + latent), tl.load(starts + latent + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(start, stop, AT_ONCE):
        numbers = first + tl.arange(0, AT_ONCE)
        there = numbers < stop
        place = tl.load(places + numbers, mask=there, other=0)
        kept = there[:, None] & inside[None, :]
        if WEIGHTED:
            weight = tl.load(weights + place, mask=there, other=0.0).to(tl.float32)
            row = tl.load(rows + (place // k)[:, None] * row_stride + columns[None, :], mask=kept, other=0.0)
            total += tl.sum(row.to(tl.float32) * weight[:, None], 0)
        else:
            row = tl.load(rows + place[:, None] * row_stride + columns[None, :], mask=kept, other=0.0)
            total += tl.sum(row.to(tl.float32), 0)
    tl.store(sums + latent * sum_stride + columns, total.to(sums.dtype.element_ty), mask=inside)


@triton.jit
def _row_products(
    products, table, latents, vectors, k, width, stride, K: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    ranks = tl.arange(0, K)
    there = ranks < k
    latent = tl.load(latents + token * k + ranks, mask=there, other=0)
    total = tl.zeros((K,), tl.float32)
    for first in range(0, width, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        inside = columns < width
        rows = tl.load(table + latent[:, None] * stride + columns[None, :], mask=inside[None, :], other=0.0)
        vector = tl.load(vectors + token * width + columns, mask=inside, other=0.0)
        total += tl.sum(rows.to(tl.float32) * vector.to(tl.float32)[None, :], 1)
    tl.store(products + token * k + ranks, total.to(products.dtype.element_ty), mask=there)
