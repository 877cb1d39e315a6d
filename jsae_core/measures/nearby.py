"""Is this output latent active at inputs near x, and how strongly?

Here: `exact`, which encodes every such input in full, and `activations`, which gives the same and encodes few of them;
an output latent's own pre-activation, no matter which other latents are active.
Not here: which inputs and latents are asked about (`ablation.py`, `linearity.py`).

The inputs lie on lines: x moved along the decoder row of an input latent. An intervention is a line with one point, a
sweep a line with many. A question consists of a line and an output latent.

How `activations` decides without encoding: an output latent is active if its pre-activation is positive and fewer than
k others are larger. Its own pre-activation costs one product of two vectors. Those of all others are known at an input
nearby, the anchor. If the encoder's input has moved from there by a distance r, each of them has changed by at most r
times the norm of its encoder row (Cauchy-Schwarz). So latents far below the TopK at the anchor are still below it, and
only the largest ones there, the rivals, are computed. Questions that remain undecided are passed on to `exact`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jsae_core.memory import cached_piece
from jsae_core.sae import active_latents, inputs_at_once, largest_pre_activations, pre_activations
from jsae_core.sae_pair import SAEPair

ROUNDING = 2  # times the dtype's epsilon and the product of the norms: how much the order of a sum may change it

# on lines with few points, the anchor is the MLP input x itself
TOKEN_RIVALS = 32  # times k
POINTS_A_TOKEN = 4  # gathering the encoder rows of a token's rivals takes as long as encoding so many points
RIVALS_SHARE = 8  # with fewer latents than so many times the rivals, encoding everything is as fast
GATHER_BYTES = 2**24  # of encoder rows of rivals at once

# on lines with many points, a few of the points are anchors: the nodes
NODES = 4
NODE_RIVALS = 4  # times k, of each node
HIDDEN_BYTES = 2**23  # of hidden layers at once: they stay in a CPU's cache


class Lines(NamedTuple):
    """Points on lines. Point p of line l is the MLP input x[token[l]] + steps[l, p] * W_dec_in[input_latent[l]].

    A branch of the MLP at a moved input is its value at x plus a multiple of the input latent's row of W_dec_in W_b, so
    the moved input need not be multiplied by W_b."""

    pair: SAEPair
    branch_values: tuple[Tensor, ...]  # `pair.mlp.branch_values(x)`, each [n_tokens, d_mlp]
    token: Tensor  # [n_lines], ascending
    input_latent: Tensor  # [n_lines]
    steps: Tensor  # [n_lines, n_points]

    def hidden(self, line: Tensor, point: Tensor) -> Tensor:
        """The MLP's hidden layer [..., d_mlp] at points of lines, two tensors of indices that broadcast."""
        rows = self.pair.tables().inputs[self.input_latent[line]]
        directions = rows.unflatten(-1, (len(self.branch_values), -1)).unbind(dim=-2)
        steps = self.steps[line, point][..., None]
        return self.pair.mlp.hidden(
            [
                torch.addcmul(values[self.token[line]], steps, direction)
                for values, direction in zip(self.branch_values, directions, strict=True)
            ]
        )

    def single_points(self, line: Tensor, point: Tensor) -> Lines:
        """Lines with one point each: points of these lines, two tensors [n] of indices, `line` ascending."""
        return self._replace(
            token=self.token[line], input_latent=self.input_latent[line], steps=self.steps[line, point][:, None]
        )


@torch.no_grad()
def exact(lines: Lines, line: Tensor, output_latent: Tensor) -> Tensor:
    """Activations of output latents along lines, 0 outside the TopK: [n_questions, n_points].

    Args:
        line, output_latent: [n_questions].
    """
    sae, mlp, (n_lines, n_points) = lines.pair.output_sae, lines.pair.mlp, lines.steps.shape
    every_line, points = (torch.arange(n, device=line.device) for n in (n_lines, n_points))
    at_once = max(1, min(inputs_at_once(sae), _hidden_layers_at_once(lines)) // n_points)
    parts = [
        active_latents(sae, mlp.project(lines.hidden(part[:, None], points)).flatten(0, 1))
        for part in every_line.split(at_once)
    ]
    activations, latents = (
        torch.cat(tensors).view(n_lines, n_points, sae.cfg.k)[line] for tensors in zip(*parts, strict=True)
    )
    return torch.where(latents == output_latent[:, None, None], activations, 0).sum(dim=2)


@torch.no_grad()
def activations(lines: Lines, line: Tensor, output_latent: Tensor) -> Tensor:
    """What `exact` gives, up to rounding."""
    pair, (n_lines, n_points) = lines.pair, lines.steps.shape
    n_tokens, n_rivals = len(lines.branch_values[0]), TOKEN_RIVALS * pair.config.k
    if n_points > NODES:
        values, undecided = _from_nodes(lines, line, output_latent)
    elif n_lines * n_points >= POINTS_A_TOKEN * n_tokens and RIVALS_SHARE * n_rivals <= pair.config.d_sae:
        values, undecided = _from_tokens(lines, line, output_latent, n_rivals)
    else:
        return exact(lines, line, output_latent)
    question, point = undecided.nonzero(as_tuple=True)
    encoded, which = (line[question] * n_points + point).unique(return_inverse=True)
    single = lines.single_points(encoded // n_points, encoded % n_points)
    values[question, point] = exact(single, which, output_latent[question])[:, 0]
    return values


@torch.no_grad()
def own_pre_activations(lines: Lines, line: Tensor, output_latent: Tensor) -> Tensor:
    """Pre-activations of output latents along lines, no matter which others are active: [n_questions, n_points].

    Args:
        line, output_latent: [n_questions].
    """
    pair, (n_lines, n_points) = lines.pair, lines.steps.shape
    E, offset = pair.tables().outputs, pre_activations(pair.output_sae, pair.mlp.b_out[None])[0]
    values, points = E.new_empty(len(line), n_points), torch.arange(n_points, device=line.device)
    order = line.argsort()
    at_once = max(1, _hidden_layers_at_once(lines) // n_points)
    for part in torch.arange(n_lines, device=line.device).split(at_once):
        start, stop = torch.searchsorted(line[order], part[[0, -1]] + torch.tensor([0, 1], device=line.device)).tolist()
        question = order[start:stop]
        hidden = lines.hidden(part[:, None], points)[line[question] - part[0]]
        values[question] = torch.bmm(hidden, E[output_latent[question]][:, :, None])[:, :, 0]
    return values + offset[output_latent][:, None]


def _from_tokens(lines: Lines, line: Tensor, output_latent: Tensor, n_rivals: int) -> tuple[Tensor, Tensor]:
    """Activations, and which of them remain undecided, both [n_questions, n_points], with x as the anchor. At each
    point only the rivals at x are encoded, with encoder rows that are gathered once for each token."""
    n_points, device = lines.steps.shape[1], line.device
    points = torch.arange(n_points, device=device)
    if n_points > 1:
        every = torch.arange(lines.steps.numel(), device=device)
        lines = lines.single_points(every // n_points, every % n_points)
    line = (line[:, None] * n_points + points).flatten()
    output_latent = output_latent.repeat_interleave(n_points)

    pair, sae = lines.pair, lines.pair.output_sae
    mlp_output = pair.mlp.project(pair.mlp.hidden(lines.branch_values))
    largest, rivals = largest_pre_activations(sae, mlp_output, n_rivals)
    encoder_input, ceiling = sae.process_sae_in(mlp_output), largest[:, -1]
    encoder_rows = sae.W_enc.T.contiguous()
    longest_row, largest_bias = encoder_rows.norm(dim=1).max(), sae.b_enc.abs().max()

    at_once = max(1, cached_piece(GATHER_BYTES, device) // (n_rivals * encoder_rows[0].nbytes))
    starts = torch.arange(0, len(mlp_output) + at_once, at_once, device=device)
    first_line = torch.searchsorted(lines.token, starts)
    order = line.argsort()
    first_question = torch.searchsorted(line[order], first_line)
    most_lines = lines.token.bincount(minlength=at_once * (len(starts) - 1)).view(-1, at_once).amax(dim=1)
    place = _place_in_run(lines.token)

    values = mlp_output.new_empty(len(line))
    undecided = torch.empty_like(line, dtype=torch.bool)
    bounds = torch.stack([starts, first_line, first_question], dim=1).tolist()
    for (start, first, a), (stop, last, b), n_places in zip(bounds, bounds[1:], most_lines.tolist(), strict=False):
        moved_lines = torch.arange(first, last, device=device)
        token, column = lines.token[first:last] - start, place[first:last]
        moved = sae.process_sae_in(pair.mlp.project(lines.hidden(moved_lines, torch.zeros_like(moved_lines))))
        latents = rivals[start:stop]
        padded = moved.new_zeros(len(latents), n_places, moved.shape[1])
        padded[token, column] = moved
        of_rivals = torch.baddbmm(sae.b_enc[latents][:, None], padded, encoder_rows[latents].transpose(1, 2))

        question = order[a:b]
        latent, which = output_latent[question], line[question] - first
        row, column = token[which], column[which]
        moved = moved[which]
        value = torch.linalg.vecdot(encoder_rows[latent], moved) + sae.b_enc[latent]
        distance = (moved - encoder_input[start + row]).norm(dim=1)
        rounding = ROUNDING * torch.finfo(moved.dtype).eps * (longest_row * moved.norm(dim=1) + largest_bias)
        inside, undecided[question] = _among_top_k(
            value,
            of_rivals[row, column].masked_fill_(latents[row] == latent[:, None], -torch.inf),
            rounding,
            ceiling[start + row] + longest_row * distance,
            sae.cfg.k,
        )
        values[question] = torch.where(inside, value, 0).relu()
    return values.view(-1, n_points), undecided.view(-1, n_points)


def _from_nodes(lines: Lines, line: Tensor, output_latent: Tensor) -> tuple[Tensor, Tensor]:
    """Activations, and which of them remain undecided, both [n_questions, n_points], with the nodes as anchors.

    A pre-activation is affine in the hidden layer h, so the latent's own takes one product with its row of the table
    E = (W_out W_enc_out)^T at each point. The rivals' pre-activations are interpolated between the nodes. If h
    interpolated in the same way is off by a vector of length r, each of them is off by at most r times the norm of its
    row of E. h is so smooth along a line that this decides, at nearly all points, how many rivals are above the
    latent."""
    pair, sae, E = lines.pair, lines.pair.output_sae, lines.pair.tables().outputs
    (n_lines, n_points), device = lines.steps.shape, line.device
    between = _Interpolation.of(n_points, E)
    known = _RivalsAtNodes.of(lines, between)
    offset = pre_activations(sae, pair.mlp.b_out[None])[0]
    longest_row, largest_offset = E.norm(dim=1).max(), _largest_offset(pair)

    at_once = max(1, _hidden_layers_at_once(lines) // n_points)
    starts = torch.arange(0, n_lines + at_once, at_once, device=device)
    order = line.argsort()
    first_question = torch.searchsorted(line[order], starts)
    place = _place_in_run(line[order])
    most_questions = line.bincount(minlength=at_once * (len(starts) - 1)).view(-1, at_once).amax(dim=1)
    points = torch.arange(n_points, device=device)

    values = E.new_empty(len(line), n_points)
    undecided = torch.empty_like(values, dtype=torch.bool)
    bounds = torch.stack([starts, first_question], dim=1).tolist()
    for (start, a), (stop, b), n_places in zip(bounds, bounds[1:], most_questions.tolist(), strict=False):
        which = torch.arange(start, min(stop, n_lines), device=device)
        hidden, node_hidden = lines.hidden(which[:, None], points), known.hidden[start:stop]
        off_line, off_curve = (
            longest_row * torch.baddbmm(hidden, weights.expand(len(which), -1, -1), node_hidden, alpha=-1).norm(dim=2)
            for weights in (between.line, between.curve)
        )
        largest_product = longest_row * node_hidden.norm(dim=2).amax(dim=1, keepdim=True) + off_line
        rounding = ROUNDING * torch.finfo(E.dtype).eps * (largest_product + largest_offset)

        question = order[a:b]
        own, latent = line[question] - start, output_latent[question]
        rows = E.new_zeros(len(which), n_places, E.shape[1])
        rows[own, place[a:b]] = E[latent]
        value = torch.bmm(rows, hidden.transpose(1, 2))[own, place[a:b]] + offset[latent, None]
        inside, open_ = _among_top_k(
            between.by_interval(value),
            known.others_between(line[question], latent, between),
            between.by_interval((off_curve + rounding)[own]),
            known.ceiling[line[question], :, None] + between.by_interval(off_line[own]),
            sae.cfg.k,
        )
        values[question] = torch.where(between.by_point(inside), value, 0).relu()
        undecided[question] = between.by_point(open_)
    return values, undecided


class _Interpolation(NamedTuple):
    """How points lie between the nodes. An interval holds its two nodes and all points between them; where intervals
    are of different lengths, the shorter ones hold their last point again."""

    nodes: Tensor  # [NODES], the points that they are
    line: Tensor  # [n_points, NODES], weights of the nodes in each point on straight lines between neighbours
    # and on the polynomial through all nodes (Lagrange), which is nearer to smooth functions, but bounds nothing
    curve: Tensor  # [n_points, NODES]
    points: Tensor  # [NODES - 1, length], the points of each interval
    interval: Tensor  # [n_points], one that each point is in
    place: Tensor  # [n_points], and where in it

    @classmethod
    def of(cls, n_points: int, like: Tensor) -> _Interpolation:
        points = torch.arange(n_points)
        nodes = torch.linspace(0, n_points - 1, NODES).round().long()
        interval = (torch.searchsorted(nodes, points, right=True) - 1).clamp(max=NODES - 2)
        start, end = nodes[interval], nodes[interval + 1]
        line = torch.zeros(n_points, NODES)
        line[points, interval] = (end - points) / (end - start)
        line[points, interval + 1] = (points - start) / (end - start)
        others = [nodes[nodes != node] for node in nodes]
        factors = [(points[:, None] - other) / (node - other) for node, other in zip(nodes, others, strict=True)]
        curve = torch.stack([factor.prod(dim=1) for factor in factors], dim=1)
        offsets = torch.arange(int(nodes.diff().max()) + 1)
        of_intervals = torch.minimum(nodes[:-1, None] + offsets, nodes[1:, None])
        return cls(
            *(tensor.to(like.device) for tensor in (nodes, line.to(like.dtype), curve.to(like.dtype), of_intervals)),
            *(tensor.to(like.device) for tensor in (interval, points - start)),
        )

    def by_interval(self, values: Tensor) -> Tensor:
        """[n, n_points] -> [n, NODES - 1, length]."""
        return values[:, self.points]

    def by_point(self, values: Tensor) -> Tensor:
        """[n, NODES - 1, length] -> [n, n_points]."""
        return values[:, self.interval, self.place]


class _RivalsAtNodes(NamedTuple):
    """Pre-activations of output latents at the nodes of lines. The rivals of an interval are the largest latents at
    each of its two nodes, m in all; a latent that is among the largest at both is there twice."""

    hidden: Tensor  # [n_lines, NODES, d_mlp]
    latents: Tensor  # [n_lines, NODES - 1, m]
    again: Tensor  # [n_lines, NODES - 1, m], bool: there for the second time
    at_nodes: Tensor  # [n_lines, NODES - 1, NODES, m], pre-activations
    ceiling: Tensor  # [n_lines, NODES - 1]; no other latent is above it on straight lines between the nodes

    @classmethod
    def of(cls, lines: Lines, between: _Interpolation) -> _RivalsAtNodes:
        pair, sae, n_lines = lines.pair, lines.pair.output_sae, len(lines.token)
        at_once = max(1, inputs_at_once(sae) // NODES)
        memory = lines.steps.new_empty(min(n_lines, at_once) * NODES, sae.cfg.d_sae)  # new memory costs more
        parts = []
        for part in torch.arange(n_lines, device=lines.token.device).split(at_once):
            hidden = lines.hidden(part[:, None], between.nodes)
            at_nodes = pre_activations(sae, pair.mlp.project(hidden).flatten(0, 1), memory)
            parts.append((hidden, *cls._largest(at_nodes.view(len(part), NODES, -1), sae.cfg.k)))
        return cls(*map(torch.cat, zip(*parts, strict=True)))

    @staticmethod
    def _largest(pre: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pre-activations [n_lines, NODES, d_sae] -> all but `hidden`."""
        n_rivals = min(NODE_RIVALS * k, pre.shape[2])
        largest, latents = pre.topk(n_rivals, dim=2)
        first, second = latents[:, :-1], latents[:, 1:]
        again = (second[..., None] == first[:, :, None]).any(dim=3)
        both = torch.cat([first, second], dim=2)
        at_nodes = pre[:, None].expand(-1, NODES - 1, -1, -1).gather(3, both[:, :, None].expand(-1, -1, NODES, -1))
        least = torch.full_like(largest[..., -1], -torch.inf) if n_rivals == pre.shape[2] else largest[..., -1]
        return both, torch.cat([torch.zeros_like(again), again], dim=2), at_nodes, least[:, :-1].maximum(least[:, 1:])

    def others_between(self, line: Tensor, latent: Tensor, between: _Interpolation) -> Tensor:
        """Interpolated pre-activations of rivals other than `latent`, for questions [n]: [n, NODES - 1, length, m],
        -inf in the place of those that do not count."""
        values = between.curve[between.points] @ self.at_nodes[line]
        not_counted = self.again[line] | (self.latents[line] == latent[:, None, None])
        return values.masked_fill_(not_counted[:, :, None], -torch.inf)


def _among_top_k(value: Tensor, rivals: Tensor, error: Tensor, ceiling: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Whether latents are among the k largest, and for which of them this remains undecided: both [...] bool.

    Args:
        value: [...], their pre-activations.
        rivals: [..., m], those of others; a rival less a value is off by at most `error` [...].
        ceiling: [...]; no other latent's pre-activation exceeds it.
    """
    certainly_above = (rivals > (value + error)[..., None]).sum(dim=-1)
    possibly_above = (rivals > (value - error)[..., None]).sum(dim=-1)
    inside = (possibly_above < k) & (ceiling + error < value)
    outside = (certainly_above >= k) | (value < -error)  # below zero the activation is 0 either way
    return inside, ~(inside | outside)


def _largest_offset(pair: SAEPair) -> Tensor:
    """An upper bound on the part of any pre-activation that does not depend on the MLP's input."""
    sae, b_out = pair.output_sae, pair.mlp.b_out
    return sae.W_enc.norm(dim=0).max() * (b_out.norm() + sae.b_dec.norm()) + sae.b_enc.abs().max()


def _hidden_layers_at_once(lines: Lines) -> int:
    values = lines.branch_values[0]
    return cached_piece(HIDDEN_BYTES, values.device) // (values.shape[1] * values.element_size())


def _place_in_run(ascending: Tensor) -> Tensor:
    """[n] -> [n], the place of each element among those equal to it."""
    return torch.arange(len(ascending), device=ascending.device) - torch.searchsorted(ascending, ascending)
