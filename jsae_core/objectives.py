"""Training objectives: scalar functions of the Jacobian that training minimises along with the reconstruction errors.

Here: the objectives of the original's training code, under its names and with its constants. Not here: the Jacobian and
its gradient (`jacobian.py`), the training loss in which lambda weighs them (`training.py`).

J [n, k, k] holds the Jacobians of a batch; means are over all elements unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TINY = 1e-20  # keeps roots and logarithms finite where J is 0


def l1(J: Tensor) -> Tensor:
    """mean |J|."""
    return J.abs().mean()


def l1nb(J: Tensor) -> Tensor:
    """l1 divided by the root mean square of the batch: scaling the Jacobian down does not make it smaller."""
    return J.abs().mean() / (J.square().mean() + TINY).sqrt()


def l1nt(J: Tensor) -> Tensor:
    """Each token's l1 divided by its own root mean square; mean over tokens."""
    root = (J.square().mean(dim=(1, 2)) + TINY).sqrt()
    return (J.abs().mean(dim=(1, 2)) / root).mean()


def cl1(J: Tensor) -> Tensor:
    """1.8 l1 of J clipped to +-0.5."""
    return 1.8 * l1(_clipped(J))


def cl1nb(J: Tensor) -> Tensor:
    """0.9 l1nb of J clipped to +-0.5."""
    return 0.9 * l1nb(_clipped(J))


def cl1nt(J: Tensor) -> Tensor:
    """0.9 l1nt of J clipped to +-0.5."""
    return 0.9 * l1nt(_clipped(J))


def tanh(J: Tensor) -> Tensor:
    """0.8 mean tanh((10 J)^2): nearly a count of the elements above 0.1."""
    return 0.8 * (10 * J).square().tanh().mean()


def scad(J: Tensor) -> Tensor:
    """2.2 times the mean smoothly clipped absolute deviation (Fan and Li, 2001) with lambda 0.5 and gamma 4.3: |J| / 2
    up to 0.5, a parabola up to 2.15, constant above."""
    bend, gamma = 0.5, 4.3
    a = J.abs()
    parabola = -(a.square() - 2 * gamma * bend * a + bend**2) / (2 * (gamma - 1))
    above = torch.full_like(a, 0.5 * (gamma + 1) * bend**2)
    return 2.2 * torch.where(a <= bend, bend * a, torch.where(a <= gamma * bend, parabola, above)).mean()


def exp(J: Tensor) -> Tensor:
    """mean (1 - exp(-2.5 |J|))."""
    return (1 - (-2.5 * J.abs()).exp()).mean()


def log2(J: Tensor) -> Tensor:
    """mean max(0, 2.2 ln J^2 + 0.7)."""
    return (2.2 * (J.square() + TINY).log() + 0.7).clamp(min=0).mean()


def loge(J: Tensor) -> Tensor:
    """1.3 mean ln(1 + |J|^0.4)."""
    return 1.3 * (J.abs() + TINY).pow(0.4).log1p().mean()


def lp(J: Tensor) -> Tensor:
    """1.3 (mean |J|^0.4)^2.5."""
    return 1.3 * (J.abs() + TINY).pow(0.4).mean().pow(2.5)


def _clipped(J: Tensor) -> Tensor:
    return J.clamp(-0.5, 0.5)


OBJECTIVES: dict[str, Callable[[Tensor], Tensor]] = {
    objective.__name__: objective for objective in (l1, l1nb, l1nt, cl1, cl1nb, cl1nt, tanh, scad, exp, log2, loge, lp)
}
