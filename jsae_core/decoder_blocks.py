"""The blocks of a Hugging Face decoder and the MLP of each, found by the tensors that flow through them, not by name.

Here: which module is a block, which of its linear maps belong to its MLP, the name of its activation, and which parts
of the block are finished when the MLP begins. Modules count as an MLP only if their linear maps and activation together
reproduce the tensors that were observed.
Not here: loading (`model_files.py`), reading and replacing activations (`language_model.py`), the frozen MLP
(`mlp.py`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from jsae_core.mlp import MLP, activation_function
from jsae_core.model_files import LAYER_COUNT_NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ACTIVATION_RANGE = torch.linspace(-20, 20, 8001, dtype=torch.float64)  # wide enough for clipped activations
SAME_UP_TO_ROUNDING = 0.01  # as a share of the norm; in bfloat16 equal tensors differ by about 0.003
EPS_NAMES = ("eps", "variance_epsilon")
SAME_ACTIVATION = 1e-6  # gelu and its tanh approximation differ by 5e-4, two ways to write the latter by 1e-8


@dataclass(frozen=True)
class Norm:
    """A LayerNorm (`centred`) or RMSNorm of any class, whatever form its gain and bias have there."""

    module: nn.Module
    centred: bool

    def standardised(self, x: Tensor) -> Tensor:
        """x [..., d_model], normalised without gain and bias."""
        return _standardised(x, self.centred, self.module)

    def gain_and_bias(self, standardised: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The gain and the bias [d_model] of each feature, as the line fitted to standardised inputs and the outputs x
        of the norm for them (both [n, d_model]), which works for any class. An RMSNorm has no bias."""
        z, y = standardised.double(), x.double()
        if not self.centred:
            gain = (z * y).sum(dim=0) / z.square().sum(dim=0)
            return gain.to(x.dtype), torch.zeros_like(x[0])
        deviations = z - z.mean(dim=0)
        gain = (deviations * (y - y.mean(dim=0))).sum(dim=0) / deviations.square().sum(dim=0)
        return gain.to(x.dtype), (y.mean(dim=0) - gain * z.mean(dim=0)).to(x.dtype)


@dataclass(frozen=True)
class BlockMLP:
    """The MLP of one block, with views of its weights as [out, in]; None for a bias or gate that it does not have.

    Attributes:
        into, widths: the linear maps that receive the MLP's input, and the width of each one's output. There is one
            map, or two if the MLP is gated and keeps its two matrices apart.
        down: the linear map whose output is the MLP's, before anything is added to it or normalises it.
        activation: Hugging Face's name of the activation.
        norm: the norm that makes the MLP's input; None if there is none (a model that only normalises outputs).
        before: the parts of the block with weight matrices that are finished when the MLP begins: attention.
        example: the MLP's input and output, [n, d_model] each, in the pass in which it was found.
    """

    into: tuple[nn.Module, ...]
    widths: tuple[int, ...]
    down: nn.Module
    activation: str
    norm: Norm | None
    before: tuple[nn.Module, ...]
    example: tuple[Tensor, Tensor]
    W_in: Tensor
    b_in: Tensor | None
    W_gate: Tensor | None
    b_gate: Tensor | None

    def frozen(self) -> MLP:
        """A frozen copy of this MLP. Raises ValueError if its activation cannot be used."""
        W_out, b_out = _weight_and_bias(self.down)
        W_in, W_out, W_gate = (None if W is None else _row_major(W) for W in (self.W_in, W_out, self.W_gate))
        b_in, b_out, b_gate = (None if b is None else b.clone() for b in (self.b_in, b_out, self.b_gate))
        return MLP(W_in, W_out, self.activation, b_in, b_out, W_gate, b_gate)


@torch.no_grad()
def find_mlps(
    model: PreTrainedModel, blocks: Sequence[nn.Module], tokens: Tensor
) -> tuple[list[BlockMLP | str], Tensor | Sequence, Tensor]:
    """Run the model once, and find the MLP of each block by the inputs and outputs of the block's parts.

    Args:
        tokens: a few tokens, [row, position].

    Returns:
        For each block its MLP, or a text that says why it has none that can be used ("is a mixture of experts"); the
        last block's output, in the block's own form (see `alone`); and the logits, [row, position, vocabulary].
    """
    last_outputs: list = []
    traces: list[list[_Call]] = [[] for _ in blocks]

    def keep(trace: list[_Call], module: nn.Module) -> RemovableHandle:
        def hook(module, args, kwargs, output):
            first_input = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            first_output = hidden_state(output)
            if first_input is not None and isinstance(first_output, Tensor):
                # cloned, because Falcon adds in place to its MLP's output
                trace.append(_Call(module, first_input.clone(), first_output.clone()))

        return module.register_forward_hook(hook, with_kwargs=True)

    def keep_last(module, args, output) -> None:
        last_outputs.append(alone(output))

    handles = [keep(trace, module) for block, trace in zip(blocks, traces, strict=True) for module in block.modules()]
    with hooked([*handles, blocks[-1].register_forward_hook(keep_last)]):
        logits = model(tokens, use_cache=False).logits
    names = _ActivationNames(model)
    mlps = [_find_mlp(block, trace, names) for block, trace in zip(blocks, traces, strict=True)]
    return mlps, last_outputs[0], logits


def decoder_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's blocks, in order. Raises ValueError if they are not found."""
    config = model.config.get_text_config(decoder=True)
    n_layers = next((count for name in LAYER_COUNT_NAMES if (count := getattr(config, name, None)) is not None), None)
    lists = [module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    for blocks in lists:  # outer modules come first
        if len(blocks) == n_layers and all(map(_holds_matrices, blocks)):
            return list(blocks)
    raise ValueError(
        f"{type(model).__name__}: its blocks were not found; expected a list of {n_layers}, as many as its config.json "
        f"says, but its decoder has lists of {', '.join(str(len(blocks)) for blocks in lists) or 'none'}. This "
        "architecture cannot be measured here"
    )


def hidden_state(output: Tensor | Sequence) -> Tensor:
    """The hidden state in a module's output. Some modules return a sequence that begins with it."""
    return output[0] if isinstance(output, (tuple, list)) else output


def alone(output: Tensor | Sequence, hidden: Tensor | None = None) -> Tensor | Sequence:
    """A module's output in its own form, but with nothing except its hidden state, or with `hidden` in its place. If
    the output is a sequence, its other entries (such as attention weights) become None."""
    hidden = hidden_state(output) if hidden is None else hidden
    return type(output)([hidden, *(None for _ in output[1:])]) if isinstance(output, (tuple, list)) else hidden


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks for the duration of the block and remove them at its end."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class _Call:
    """A finished call of a module, with the first tensor of its input and of its output."""

    module: nn.Module
    input: Tensor
    output: Tensor


@dataclass(frozen=True, eq=False)
class _Branch:
    """A linear map from the MLP's input to the width of its hidden layer."""

    W: Tensor  # [d_mlp, d_model]
    b: Tensor | None
    value: Tensor  # [..., d_mlp]


def _find_mlp(block: nn.Module, trace: Sequence[_Call], names: _ActivationNames) -> BlockMLP | str:
    if _holds_experts(block):
        return "is a mixture of experts"
    mlps = [mlp for parent in block.modules() if (mlp := _mlp_in(parent, block, trace, names)) is not None]
    if not mlps:
        return (
            "has no MLP of one or two linear maps, an activation that Hugging Face has a name for and a linear map back"
        )
    if len(mlps) > 1:
        return f"has {len(mlps)} MLPs"
    return mlps[0]


def _mlp_in(parent: nn.Module, block: nn.Module, trace: Sequence[_Call], names: _ActivationNames) -> BlockMLP | None:
    """The MLP that consists of direct children of the module `parent`; None if they are not an MLP."""
    children = list(parent.children())
    linear = [child for child in children if _is_linear(child)]
    calls = [call for call in trace if call.module in linear]
    if len(linear) not in (2, 3) or len(calls) != len(linear):
        return None
    *into, down = calls
    x, width = into[0].input, down.input.shape[-1]
    if not all(_same(call.input, x) for call in into):
        return None
    branches = [branch for call in into for branch in _branches(call, width)]
    for call in trace:
        gates = [branch for branch in branches if call.module in children and _same(branch.value, call.input)]
        if len(gates) != 1 or len(branches) > 2:
            continue
        others = [branch for branch in branches if branch is not gates[0]]
        hidden = call.output * others[0].value if others else call.output
        name = names[call.module]
        if name is not None and torch.allclose(hidden, down.input, rtol=1e-2):
            plain, gate = (others[0], gates[0]) if others else (gates[0], None)
            return BlockMLP(
                into=tuple(call.module for call in into),
                widths=tuple(call.output.shape[-1] for call in into),
                down=down.module,
                activation=name,
                norm=_find_norm(trace[: trace.index(into[0])], x),
                before=tuple(_finished(block, trace, trace.index(into[0]))),
                example=(x.flatten(0, -2), down.output.flatten(0, -2)),
                W_in=plain.W,
                b_in=plain.b,
                W_gate=gate and gate.W,
                b_gate=gate and gate.b,
            )
    return None


def _branches(call: _Call, width: int) -> list[_Branch]:
    """The branches that a linear map computes: one, or two if it holds the gate's and the input matrix (Phi-3)."""
    W, b = _weight_and_bias(call.module)
    pieces = len(W) // width
    biases = [None] * pieces if b is None else b.chunk(pieces)
    return [_Branch(*parts) for parts in zip(W.chunk(pieces), biases, call.output.chunk(pieces, dim=-1), strict=True)]


def _find_norm(trace: Sequence[_Call], x: Tensor) -> Norm | None:
    """The norm that made x: the last call with output x for which x is the standardised input times a gain plus a bias,
    one gain and one bias for each feature."""
    x = x.flatten(0, -2)
    for call in reversed(trace):
        output, before = call.output.flatten(0, -2), call.input.flatten(0, -2)
        if _holds_matrices(call.module) or not _same(output, x) or before.shape != x.shape or _same(before, x):
            continue
        errors = {centred: _affine_error(_standardised(before, centred, call.module), x) for centred in (True, False)}
        centred = min(errors, key=errors.__getitem__)
        if errors[centred] < SAME_UP_TO_ROUNDING:
            return Norm(call.module, centred)
    return None


def _standardised(x: Tensor, centred: bool, norm: nn.Module) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide - wide.mean(dim=-1, keepdim=True) if centred else wide
    eps = next((value for name in EPS_NAMES if isinstance(value := getattr(norm, name, None), float)), 0.0)
    return (wide * (wide.square().mean(dim=-1, keepdim=True) + eps).rsqrt()).to(x.dtype)


def _affine_error(z: Tensor, x: Tensor) -> float:
    """The distance of x [n, d] from the best fit gain * z + bias (gain and bias [d]), as a share of x's norm."""
    z, x = z.double(), x.double()
    dz, dx = z - z.mean(dim=0), x - x.mean(dim=0)
    gain = (dz * dx).sum(dim=0) / dz.square().sum(dim=0).clamp(min=1e-30)
    return float((dx - gain * dz).norm() / x.norm().clamp(min=1e-30))


def _finished(block: nn.Module, trace: Sequence[_Call], start: int) -> Iterator[nn.Module]:
    """The block's parts with weight matrices that ran exactly once and ended before the call number `start`."""
    for part in block.children():
        ended = [number for number, call in enumerate(trace) if call.module is part]
        if _holds_matrices(part) and len(ended) == 1 and ended[0] < start:
            yield part


class _ActivationNames:
    """Hugging Face's name for an activation module. If the function that it computes has several names, this is the one
    in the model's config, otherwise the first; if it has none, None."""

    def __init__(self, model: PreTrainedModel):
        from transformers.activations import ACT2FN

        config = model.config.get_text_config(decoder=True).to_dict()
        in_config = [value for value in config.values() if isinstance(value, str) and value in ACT2FN]
        self._candidates = [*in_config, *ACT2FN]
        self._known: dict[str, str | None] = {}

    def __getitem__(self, module: nn.Module) -> str | None:
        key = repr(module)
        if key not in self._known:
            self._known[key] = next((name for name in self._candidates if _computes(module, name)), None)
        return self._known[key]


def _computes(module: nn.Module, activation: str) -> bool:
    try:
        named = activation_function(activation)
    except ValueError:  # one with learned parameters
        return False
    if list(module.parameters()):
        return False
    return (named(ACTIVATION_RANGE) - module(ACTIVATION_RANGE)).abs().max().item() < SAME_ACTIVATION


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _is_linear(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def _weight_and_bias(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The weight [out, in] and the bias [out]: a Linear stores its weight in this form, GPT-2's Conv1D as [in, out]."""
    weight = linear.weight.detach()
    return weight if isinstance(linear, nn.Linear) else weight.T, (
        None if linear.bias is None else linear.bias.detach()
    )


def _row_major(weight: Tensor) -> Tensor:
    """A copy [in, out] of a weight [out, in]."""
    return weight.T.clone(memory_format=torch.contiguous_format)


def _holds_matrices(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _holds_experts(block: nn.Module) -> bool:
    """Whether the block has MLPs in a list, or in a module whose class name says that it stacks the weights of
    experts."""
    return any(
        _holds_matrices(module) if isinstance(module, nn.ModuleList) else "Experts" in type(module).__name__
        for module in block.modules()
    )
