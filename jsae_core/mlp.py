"""A frozen transformer MLP: its output, and the slopes of its hidden layer.

Here: plain `phi(x W_in + b_in) W_out + b_out` and gated `(phi(x W_gate + b_gate) * (x W_in + b_in)) W_out + b_out`,
with any activation a Hugging Face model can name. Not here: where the weights come from (`language_model.py`) and the
Jacobian that is computed from them (`jacobian.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jsae_core.names import advice


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

    W_in: Tensor
    W_out: Tensor
    b_in: Tensor
    b_out: Tensor
    W_gate: Tensor
    b_gate: Tensor

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

    def folded(self, gain: Tensor, bias: Tensor, centred: bool) -> MLP:
        """The MLP whose output at z is this one's output at gain * z + bias (gain and bias [d_model]).

        Args:
            centred: every z has mean 0 over its features, and the mean of the output does not matter. Then the parts of
                W_in, W_out and b_out that read from or write to this mean are taken out.
        """
        W_in, W_out, b_out = gain[:, None] * self.W_in, self.W_out, self.b_out
        if centred:
            W_in, W_out = W_in - W_in.mean(dim=0), W_out - W_out.mean(dim=1, keepdim=True)
            b_out = b_out - b_out.mean()
        return MLP(
            W_in,
            W_out,
            self.activation,
            self.b_in + bias @ self.W_in,
            b_out,
            gain[:, None] * self.W_gate if self.gated else None,
            self.b_gate + bias @ self.W_gate if self.gated else None,
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_model] -> the MLP's output [..., d_model]."""
        return self.project(self.hidden(self.branch_values(x)))

    def branch_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [..., d_model] -> the values [..., d_mlp] of the branches, biases included, in the order of `branches`."""
        biases = (self.b_gate, self.b_in) if self.gated else (self.b_in,)
        return tuple(F.linear(x, W.T, b) for W, b in zip(self.branches, biases, strict=True))

    def hidden(self, branch_values: Sequence[Tensor]) -> Tensor:
        """The hidden layer [..., d_mlp] from the values of the branches."""
        return self.phi(branch_values[0]) * branch_values[1] if self.gated else self.phi(branch_values[0])

    def project(self, hidden: Tensor) -> Tensor:
        """The hidden layer [..., d_mlp] -> the output [..., d_model]."""
        return F.linear(hidden, self.W_out.T, self.b_out)

    @torch.no_grad()
    def respond(self, x: Tensor) -> Response:
        """x [..., d_model] -> the output and the slopes of the hidden layer, without an autograd graph."""
        z, *rest = self.branch_values(x)
        value, slope = self._value_and_slope(z)
        if self.gated:
            (u,) = rest
            return Response(self.project(value * u), (slope * u, value))
        return Response(self.project(value), (slope,))

    def _value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        # Autograd knows the slope of any activation; phi is elementwise, so the gradient of its sum is the slope.
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self.phi(z)
            (slope,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), slope


def activation_function(name: str) -> nn.Module:
    """The elementwise activation that Hugging Face has under this name.

    Raises:
        ValueError: there is no activation of this name, or it has learned parameters, whose values a name cannot give.
    """
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        raise ValueError(f"unknown MLP activation {name!r}; {advice(name, sorted(ACT2FN))}")
    activation = ACT2FN[name]
    if list(activation.parameters()):
        raise ValueError(f"the MLP activation {name!r} has learned parameters; only fixed ones are supported")
    return activation
