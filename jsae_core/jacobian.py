"""The sandwich (input SAE -> MLP -> output SAE) and its Jacobian, for many tokens at once.

Here: `run_sandwich`, and the batched kernel with its derivation, without and with a gradient.
Not here: the same kernel in one launch on a GPU (`kernels.py`), what is measured on Jacobians (`measures/`), training
on them (`training.py`).

Derivation. With row vectors and the k active latents of each SAE held fixed, an input latent i moves the MLP's input
along its decoder row W_dec_in[i], and an output latent o reads the MLP's output along its encoder column
W_enc_out[:, o]. The chain rule through the hidden layer h of width d_mlp, whose derivative with respect to each
linear branch b of the MLP is the elementwise slope c_b (see `mlp.Response`), gives

    J[o, i] = sum_m E[o, m] * sum_b c_b[m] * D_b[i, m]      E = (W_out W_enc_out)^T,  D_b = W_dec_in W_b

E and D depend on the pair alone: they are `SAEPair.tables`. A token needs k rows of each and one k x d_mlp x k product.
It is evaluated at the MLP's true input, and a latent whose pre-activation is negative stays in the k x k block
(Farnik et al., 2025, section 3). The numbers that the paper's training runs logged (`jacobian_sparsity/...`) are
evaluated at the input SAE's reconstruction instead: with the slopes of the MLP and the output latents there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from jsae_core.fused import fused_kernels
from jsae_core.memory import cached_piece
from jsae_core.mlp import MLP
from jsae_core.objectives import l1
from jsae_core.sae import active_latents, decode, inputs_at_once
from jsae_core.sae_pair import SAEPair
from jsae_core.tables import Tables, build_tables
from jsae_core.terms import EVALUATED_AT

GATHER_BYTES = 2**20  # of each of the two buffers for gathered rows, so that both stay in a core's cache
# if the latents of a batch are active so often, on average over all d_sae, the rows of all are built at once
MEAN_USES_ON_CPU, MEAN_USES_ON_ACCELERATOR = 16, 4


@dataclass(frozen=True)
class Sandwich:
    """The results of one pass through a pair. Latents are in descending order of pre-activation; activations are those
    after the ReLU."""

    jacobian: Tensor  # [..., k_out, k_in]
    input_latents: Tensor  # [..., k] int64
    output_latents: Tensor  # [..., k] int64
    input_activations: Tensor  # [..., k]
    output_activations: Tensor  # [..., k]
    mlp_output: Tensor  # [..., d_model]


def run_sandwich(pair: SAEPair, mlp_input: Tensor, at: str = "input") -> Sandwich:
    """Latents of both SAEs and the Jacobian between them, at the MLP's true input.

    Args:
        mlp_input: [..., d_model], on the pair's device and in its dtype.
        at: "input", or "reconstruction": then the MLP is given the input SAE's reconstruction of `mlp_input` instead,
            and the output SAE the MLP's output for that.

    Raises:
        ValueError: the last dimension is not the pair's d_in, or device or dtype differ from the pair's, or `at` is
            unknown.
        MemoryError: the device has no room for the pair's tables.
    """
    if at not in EVALUATED_AT:
        raise ValueError(f"at is {at!r}; expected one of {', '.join(EVALUATED_AT)}")
    check_input(pair, mlp_input)
    batch_shape, x = mlp_input.shape[:-1], mlp_input.reshape(-1, mlp_input.shape[-1])
    # in parts, so that intermediate results are small and the next part uses their memory again
    parts = [_sandwich(pair, part, at) for part in x.split(inputs_at_once(pair.input_sae))]

    def joined(tensors: tuple[Tensor, ...]) -> Tensor:
        tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        return tensor.reshape(*batch_shape, *tensor.shape[1:])

    return Sandwich(*map(joined, zip(*parts, strict=True)))


@torch.no_grad()
def _sandwich(pair: SAEPair, x: Tensor, at: str) -> tuple[Tensor, ...]:
    """The fields of a Sandwich, for x [n, d_model]."""
    input_activations, input_latents = active_latents(pair.input_sae, x)
    if at == "reconstruction":
        x = decode(pair.input_sae.W_dec, pair.input_sae.b_dec, input_activations, input_latents)
    response = pair.mlp.respond(x)
    output_activations, output_latents = active_latents(pair.output_sae, response.output)
    jacobian = gather_jacobian(*pair.table_rows(input_latents, output_latents), response.slopes)
    return jacobian, input_latents, output_latents, input_activations, output_activations, response.output


def gather_jacobian(tables: Tables, input_latents: Tensor, output_latents: Tensor, slopes: Sequence[Tensor]) -> Tensor:
    """The kernel without a gradient: J [n, k_out, k_in] from latents [n, k] and slopes, each [n, d_mlp]."""
    if kernels := _fused(tables, input_latents, output_latents):
        return kernels.jacobian(tables, input_latents, output_latents, slopes)
    jacobian = slopes[0].new_empty(len(input_latents), output_latents.shape[1], input_latents.shape[1])
    for part, E, D in _gathered(tables, input_latents, output_latents, slopes):
        torch.bmm(E, D.transpose(1, 2), out=jacobian[part])
    return jacobian


def jacobian_penalty(
    W_dec_in: Tensor,
    W_enc_out: Tensor,
    mlp: MLP,
    input_latents: Tensor,
    output_latents: Tensor,
    slopes: Sequence[Tensor],
    objective: Callable[[Tensor], Tensor] = l1,
) -> Tensor:
    """A scalar function of the Jacobians of a batch, with a gradient: the Jacobian term of the training loss.

    The MLP's weights and the slopes are constants (Farnik et al., 2025).

    Args:
        W_dec_in, W_enc_out: [d_sae, d_model] and [d_model, d_sae].
        input_latents, output_latents: [n, k].
        slopes: of the MLP's branches at the n tokens, each [n, d_mlp].
        objective: a function of J [n, k_out, k_in], such as those of `objectives.py`; mean |J| unless given.
    """
    return _Penalty.apply(W_dec_in, W_enc_out, mlp, input_latents, output_latents, slopes, objective)


class _Penalty(torch.autograd.Function):
    """Only the rows of active latents are built, and their gradients are turned at once into those of the weights,
    which are smaller."""

    @staticmethod
    def forward(ctx, W_dec_in, W_enc_out, mlp, input_latents, output_latents, slopes, objective):
        d_sae = len(W_dec_in)
        (inputs, input_rows), (outputs, output_rows) = (
            _in_use(latents, d_sae) for latents in (input_latents, output_latents)
        )
        tables = build_tables(W_dec_in[inputs], W_enc_out[:, outputs], mlp)
        value, gradients = _penalty_of_rows(tables, input_rows, output_rows, slopes, objective)
        d_W_dec_rows = gradients.inputs @ torch.cat(mlp.branches, dim=1).T
        ctx.save_for_backward(d_W_dec_rows, gradients.outputs @ mlp.W_out)
        ctx.in_use, ctx.d_sae = (inputs, outputs), d_sae
        return value

    @staticmethod
    def backward(ctx, d_value):
        d_W_dec_in, d_W_enc_out = (
            _of_all(d_value * rows, latents, ctx.d_sae)
            for latents, rows in zip(ctx.in_use, ctx.saved_tensors, strict=True)
        )
        return d_W_dec_in, d_W_enc_out.T, None, None, None, None, None


def _in_use(latents: Tensor, d_sae: int) -> tuple[Tensor | slice, Tensor]:
    """The rows to build for latents [n, k] of a table of d_sae rows, and the number of each latent's row among them:
    the rows of active latents or, if there are so many tokens that nearly all are active, every row. (To find the
    active ones an accelerator sorts the latents, and the processor waits to know how many there are.)"""
    mean_uses = latents.numel() / d_sae
    if mean_uses >= (MEAN_USES_ON_CPU if latents.device.type == "cpu" else MEAN_USES_ON_ACCELERATOR):
        return slice(None), latents
    return latents.unique(return_inverse=True)


def _of_all(rows: Tensor, latents: Tensor | slice, d_sae: int) -> Tensor:
    """Rows of some latents as rows of all latents, with zeros for the others."""
    if isinstance(latents, slice):
        return rows
    return rows.new_zeros(d_sae, rows.shape[1]).index_copy_(0, latents, rows)


def _penalty_of_rows(
    tables: Tables,
    input_rows: Tensor,
    output_rows: Tensor,
    slopes: Sequence[Tensor],
    objective: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tables]:
    """The objective and its gradients with respect to the tables."""
    kernels = _fused(tables, input_rows, output_rows)
    if objective is l1 and kernels is None:
        return _mean_abs_of_rows(tables, input_rows, output_rows, slopes)
    jacobian = gather_jacobian(tables, input_rows, output_rows, slopes).requires_grad_()
    with torch.enable_grad():
        value = objective(jacobian)
        (d_jacobian,) = torch.autograd.grad(value, jacobian)
    if kernels is not None:
        return value.detach(), kernels.table_gradients(tables, input_rows, output_rows, slopes, d_jacobian)
    gradients = Tables(*map(torch.zeros_like, tables))
    for part, E, D in _gathered(tables, input_rows, output_rows, slopes):
        _add_gradients(
            gradients, d_jacobian[part], E, D, input_rows[part], output_rows[part], [c[part] for c in slopes]
        )
    return value.detach(), gradients


def _mean_abs_of_rows(
    tables: Tables, input_rows: Tensor, output_rows: Tensor, slopes: Sequence[Tensor]
) -> tuple[Tensor, Tables]:
    """mean(|J|) and its gradients with respect to the tables, in one pass: the gradient with respect to J is
    sign(J) / size, known as soon as J is. So each chunk of tokens adds its share while its rows are still in the cache,
    and no gathered row is kept."""
    gradients = Tables(*map(torch.zeros_like, tables))
    size = input_rows.numel() * output_rows.shape[1]
    total = tables.outputs.new_zeros(())
    for part, E, D in _gathered(tables, input_rows, output_rows, slopes):
        jacobian = torch.bmm(E, D.transpose(1, 2))
        total += jacobian.abs().sum()
        sign = jacobian.sign_().div_(size)
        _add_gradients(gradients, sign, E, D, input_rows[part], output_rows[part], [c[part] for c in slopes])
    return total / size, gradients


def _add_gradients(
    gradients: Tables,
    d_jacobian: Tensor,
    E: Tensor,
    D: Tensor,
    input_rows: Tensor,
    output_rows: Tensor,
    slopes: Sequence[Tensor],
) -> None:
    """Add a chunk of tokens' share to the tables' gradients. With J = E D^T, where D is the sum of the branches' rows
    times their slopes: dE = dJ D, and the gradient of branch b's rows is dJ^T E times its slope."""
    gradients.outputs.index_add_(0, output_rows.reshape(-1), torch.bmm(d_jacobian, D).flatten(0, 1))
    d_weighted = torch.bmm(d_jacobian.transpose(1, 2), E)
    for b, slope in enumerate(slopes):
        branch = slice(b * slope.shape[1], (b + 1) * slope.shape[1])
        gradients.inputs[:, branch].index_add_(0, input_rows.reshape(-1), (d_weighted * slope[:, None]).flatten(0, 1))


def _fused(tables: Tables, input_latents: Tensor, output_latents: Tensor) -> ModuleType | None:
    return fused_kernels(tables.outputs, max(input_latents.shape[1], output_latents.shape[1]))


def _gathered(
    tables: Tables, input_latents: Tensor, output_latents: Tensor, slopes: Sequence[Tensor]
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Tokens in chunks, with E [chunk, k_out, d_mlp] and sum_b c_b D_b [chunk, k_in, d_mlp], in the slopes' dtype. Both
    are in buffers that the next chunk overwrites, because new memory would cost more than the copying itself."""
    n, k_in = input_latents.shape
    k_out, d_mlp = output_latents.shape[1], tables.outputs.shape[1]
    row_bytes = slopes[0].element_size() * max(k_in * tables.inputs.shape[1], k_out * d_mlp)
    chunk = max(1, min(n, cached_piece(GATHER_BYTES, tables.outputs.device) // row_bytes))
    input_rows = slopes[0].new_empty(chunk * k_in, tables.inputs.shape[1])
    output_rows = slopes[0].new_empty(chunk * k_out, d_mlp)
    for start in range(0, n, chunk):
        part = slice(start, min(n, start + chunk))
        size = part.stop - part.start
        D, E = input_rows[: size * k_in], output_rows[: size * k_out]
        _gather(tables.inputs, input_latents[part].reshape(-1), D)
        _gather(tables.outputs, output_latents[part].reshape(-1), E)
        first, *others = D.view(size, k_in, len(slopes), d_mlp).unbind(2)
        first.mul_(slopes[0][part, None])
        for branch, slope in zip(others, slopes[1:], strict=True):
            first.addcmul_(branch, slope[part, None])
        yield part, E.view(size, k_out, d_mlp), first


def _gather(table: Tensor, rows: Tensor, out: Tensor) -> None:
    """Gather rows of a table, which may be in a narrower dtype than `out`."""
    if table.dtype == out.dtype:
        torch.index_select(table, 0, rows, out=out)
    else:
        out.copy_(table.index_select(0, rows))


def check_input(pair: SAEPair, mlp_input: Tensor) -> None:
    """Raise ValueError if the last dimension is not the pair's d_in, or the device or dtype differ from the pair's."""
    weight = pair.input_sae.W_enc
    if mlp_input.shape[-1:] != weight.shape[:1]:
        raise ValueError(
            f"the MLP input has shape {tuple(mlp_input.shape)}; the last dimension must be this pair's d_in, "
            f"{weight.shape[0]}"
        )
    if mlp_input.device != weight.device or mlp_input.dtype != weight.dtype:
        raise ValueError(
            f"the MLP input is {mlp_input.dtype} on {mlp_input.device}, the pair {weight.dtype} on {weight.device}; "
            "move one of them with .to(...)"
        )
