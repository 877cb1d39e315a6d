"""A frozen transformer MLP: its output, and how its activation responds.

Here: plain `phi(x W_in + b_in) W_out + b_out` and gated `(phi(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out`,
with any activation a Hugging Face model can name. Not here: where the weights come from (`language_model.py`) and the
Jacobian that is built on them (`jacobian.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Response(NamedTuple):
    """An MLP's output and the derivative of its hidden layer, at the same input.

    The hidden layer h is a function of one (plain) or two (gated) linear maps of x, its *branches*.
    `slopes[b]` is dh/d(branch b), elementwise: phi'(z) for a plain MLP; phi'(z_gate) * u and phi(z_gate) for a gated
    one, u being the ungated branch.
    """

    output: Tensor  # [..., d_model]
    slopes: tuple[Tensor, ...]  # each [..., d_mlp], in the order of MLP.branches


class MLP(nn.Module):
    """A frozen MLP in the row-vector convention: W_in, W_gate [d_model, d_mlp], W_out [d_mlp, d_model].

    Args:
        activation: the name a Hugging Face config gives it ("gelu", "gelu_new", "silu", ...).
        b_in, b_out, b_gate: biases; zeros where the model has none.
        W_gate: present for a gated MLP only.

    Raises:
        ValueError: the activation is unknown, or shapes disagree.
    """

    def __init__(
        self,
        W_in: Tensor,
        W_out: Tensor,
        activation: str,
        b_in: Tensor | None = None,
        b_out: Tensor | None = None,
        W_gate: Tensor | None = None,
        b_gate: Tensor | None = None,
    ):
        super().__init__()
        d_model, d_mlp = W_in.shape
        biases = {"b_in": (b_in, d_mlp), "b_out": (b_out, d_model)}
        matrices = {"W_in": (W_in, (d_model, d_mlp)), "W_out": (W_out, (d_mlp, d_model))}
        if W_gate is not None:
            matrices["W_gate"] = (W_gate, (d_model, d_mlp))
            biases["b_gate"] = (b_gate, d_mlp)
        tensors = matrices | {
            name: (W_in.new_zeros(size) if bias is None else bias, (size,)) for name, (bias, size) in biases.items()
        }
        for name, (tensor, shape) in tensors.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"mlp.{name} has shape {tuple(tensor.shape)}, expected {shape}")
            self.register_buffer(name, tensor.detach().contiguous())
        self.activation = activation
        self.phi = activation_function(activation)

    @property
    def gated(self) -> bool:
        return hasattr(self, "W_gate")

    @property
    def branches(self) -> tuple[Tensor, ...]:
        """The input matrices whose slopes `respond` gives, each [d_model, d_mlp]."""
        return (self.W_gate, self.W_in) if self.gated else (self.W_in,)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_model] -> the MLP's output [..., d_model]."""
        z = x @ self.W_in + self.b_in
        hidden = self.phi(x @ self.W_gate + self.b_gate) * z if self.gated else self.phi(z)
        return hidden @ self.W_out + self.b_out

    @torch.no_grad()
    def respond(self, x: Tensor) -> Response:
        """x [..., d_model] -> the output and the hidden layer's slopes, without a graph."""
        z = x @ self.W_in + self.b_in
        if self.gated:
            value, slope = self._value_and_slope(x @ self.W_gate + self.b_gate)
            hidden, slopes = value * z, (slope * z, value)
        else:
            hidden, slope = self._value_and_slope(z)
            slopes = (slope,)
        return Response(hidden @ self.W_out + self.b_out, slopes)

    def _value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # Autograd knows the slope of any activation; phi is elementwise, so the gradient of its sum is the slope.
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self.phi(z)
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), slope


def activation_function(name: str) -> nn.Module:
    """The elementwise activation that Hugging Face knows under this name.

    Raises:
        ValueError: it knows none, or one with learned parameters, which its name does not tell.
    """
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise ValueError(f"unknown MLP activation {name!r}; expected one of {', '.join(sorted(ACT2FN))}")
    activation = ACT2FN[name]
    if list(activation.parameters()):
        raise ValueError(f"the MLP activation {name!r} has learned parameters; only fixed ones are supported")
    return activation
