"""Whether a device can run the fused kernels. Not here: the kernels (`kernels.py`)."""

from __future__ import annotations

import functools
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

LEAST_CAPABILITY = (8, 0)  # the first GPUs whose matrix units take float32 as TF32


def fused_kernels(like: Tensor, k: int) -> ModuleType | None:
    """The module `kernels` if it can compute on this tensor's device, in its dtype, for k latents a token. None without
    Triton (Windows, a build of torch for CPUs) or an NVIDIA GPU that is new enough, in float64, or if k is too
    large."""
    if like.device.type != "cuda" or not _can_run(like.device):
        return None
    from jsae_core import kernels

    return kernels if like.dtype in kernels.DTYPES and k <= kernels.MOST_LATENTS else None


@functools.cache
def _can_run(device: torch.device) -> bool:
    has_triton = torch.version.cuda is not None and importlib.util.find_spec("triton") is not None
    return has_triton and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
