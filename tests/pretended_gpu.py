"""A pretended NVIDIA GPU: an accelerator (`accelerator.py`) of the type "cuda", on which this project does what it does
on that type alone, and whose launches are counted.

Here: what `torch.cuda` says of it, stand-ins for the fused kernels, and what counts as a launch. Not here: Triton's
interpreter, in which the kernels themselves are tested (`jsae_core/test_kernels.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from jsae_core import fused, jacobian, kernels
from jsae_core.tables import Tables
from tests.accelerator import Accelerator, _is_there, _put_there, _tensors

H100_BYTES = 80 * 10**9
NO_LAUNCH = ("aten::empty", "aten::new_empty", "aten::detach", "aten::_local_scalar_dense", "aten::_unsafe_view")


class PretendedGPU(Accelerator):
    """While it is entered, `device` can be used like an NVIDIA GPU.

    Args:
        memory: bytes that it has, all of them free.

    Attributes:
        launches: how often something was computed on it, by operator: at least as many kernels are launched there.
    """

    device = torch.device("cuda", 0)

    def __init__(self, memory: int = H100_BYTES):
        super().__init__()
        self._memory = memory
        self.launches: Counter[str] = Counter()
        self._entered = ExitStack()

    def __enter__(self) -> PretendedGPU:
        said = {
            "get_device_properties": SimpleNamespace(total_memory=self._memory),
            "mem_get_info": (self._memory, self._memory),
            "memory_reserved": 0,
            "memory_allocated": 0,
        }
        patches = [mock.patch.object(torch.cuda, name, lambda device=None, v=value: v) for name, value in said.items()]
        patches += [mock.patch.object(torch.cuda, "Event", _Event), mock.patch.object(fused, "_can_run", bool)]
        for kernel in (_jacobian, _gradient_rows, _sums_by_latent, _row_products):
            launched = _Launched(kernel, self.launches)
            patches.append(mock.patch.object(kernels, kernel.__name__, launched))
        for patch in patches:
            self._entered.enter_context(patch)
        self._entered.enter_context(_Operators(self.launches))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._entered.close()


class _Operators(TorchDispatchMode):
    """Counts the operators that compute on the device, those of autograd too, whose results are there as well."""

    def __init__(self, launches: Counter[str]):
        super().__init__()
        self._launches = launches

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        there = any(map(_is_there, _tensors((args, kwargs))))
        if operator is torch.ops.aten.histc.default and not args[0].is_floating_point():
            result = operator(args[0].double(), *args[1:]).to(args[0].dtype)  # only CUDA counts whole numbers
        else:
            result = operator(*args, **kwargs or {})
        if there and torch._C._current_graph_task_id() != -1:
            tree_map(_put_there, result)
        name = operator.name().split(".")[0]
        if there and not operator.is_view and name not in NO_LAUNCH:
            self._launches[name] += 1
        return result


class _Launched:
    """A Triton kernel's stand-in: `kernel[grid](...)` counts one launch and computes in the plain way."""

    def __init__(self, compute: Callable[..., None], launches: Counter[str]):
        self._compute, self._launches = compute, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            with _uncounted(self._launches):
                self._compute(*args, **kwargs)
            self._launches[self._compute.__name__] += 1

        return launch


@contextmanager
def _uncounted(launches: Counter[str]) -> Iterator[None]:
    before = launches.copy()
    yield
    launches.clear()
    launches.update(before)


class _Event:
    """Nothing is computed later than it is asked for; `all_done`: whether it says so."""

    all_done = True

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return self.all_done

    def synchronize(self) -> None:
        pass


# --- The kernels' stand-ins: the arguments are those of the kernels of these names in `jsae_core.kernels`


def _jacobian(J, inputs, outputs, input_rows, output_rows, slope_a, slope_b, *strides_and_sizes, BRANCHES, **_):
    slopes = (slope_a, slope_b)[:BRANCHES]
    for part, E, D in jacobian._gathered(Tables(inputs, outputs), input_rows, output_rows, slopes):
        torch.bmm(E, D.transpose(1, 2), out=J[part])


def _gradient_rows(
    of_inputs, of_outputs, d_jacobian, inputs, outputs, input_rows, output_rows, slope_a, slope_b, in_stride,
    out_stride, k_in, k_out, d_mlp, first, n_columns, width, branch_stride, BRANCHES, **_,
):  # fmt: skip
    columns = slice(first, first + n_columns)
    slopes = [slope[:, columns] for slope in (slope_a, slope_b)[:BRANCHES]]
    of_branches = inputs.unflatten(1, (BRANCHES, d_mlp))[:, :, columns]
    tables = Tables(of_branches.flatten(1), outputs[:, columns])
    for part, E, D in jacobian._gathered(tables, input_rows, output_rows, slopes):
        of_outputs.unflatten(0, (-1, k_out))[part, :, :n_columns] = torch.bmm(d_jacobian[part], D)
        d_D = torch.bmm(d_jacobian[part].transpose(1, 2), E)
        for rows, slope in zip(of_inputs, slopes, strict=True):
            rows.unflatten(0, (-1, k_in))[part, :, :n_columns] = d_D * slope[part, None]


def _sums_by_latent(sums, rows, weights, places, starts, width, row_stride, sum_stride, k, WEIGHTED, **_):
    latents = torch.arange(len(sums), device=sums.device).repeat_interleave(starts.diff(), output_size=len(places))
    terms = rows[places // k] * weights.flatten()[places, None] if WEIGHTED else rows[places]
    sums.zero_().index_add_(0, latents, terms)


def _row_products(products: Tensor, table: Tensor, latents: Tensor, vectors: Tensor, *sizes: int, **_: int):
    for token, part in enumerate(latents):
        products[token] = table[part] @ vectors[token]
