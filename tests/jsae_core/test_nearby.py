"""Both ways are judged by all pre-activations, computed in float64 from the moved MLP inputs themselves."""

import dataclasses
import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jsae_core import SAEPair, sae
from jsae_core.measures import nearby
from jsae_core.measures.nearby import Lines, activations, exact, own_pre_activations
from tests.jsae_core.builders import changed, count_encoded, random_inputs, random_pair

D_MODEL, D_MLP, N_TOKENS = 6, 10, 3
ROUNDING = 4  # times the dtype's epsilon and the product of the norms
MANY, FEW = (5, 7, 8, 100), (1, 2, 4)  # points of a line: more than there are nodes, and no more
WAYS = pytest.mark.parametrize("way", [exact, activations], ids=["exact", "activations"])


@functools.cache
def some_pair(d_sae: int, k: int, gated: bool, minus_b_dec: bool, activation: str) -> SAEPair:
    return random_pair(activation, gated, D_MODEL, D_MLP, d_sae, k, apply_b_dec_to_input=minus_b_dec)


def some_lines(pair: SAEPair, n_lines: int, n_points: int, seed: int) -> tuple[Lines, Tensor]:
    """Random ones, through few enough tokens that looking at rivals pays."""
    generator = torch.Generator().manual_seed(seed)
    x = random_inputs(N_TOKENS, D_MODEL, pair.config.torch_dtype, seed)
    token = torch.randint(N_TOKENS, (n_lines,), generator=generator).sort().values
    latent = torch.randint(pair.config.d_sae, (n_lines,), generator=generator)
    start, length = torch.randn(2, n_lines, 1, generator=generator, dtype=torch.float64)
    steps = start + length * torch.linspace(0, 1, n_points, dtype=torch.float64)
    return Lines(pair, pair.mlp.branch_values(x), token, latent, steps.to(x.dtype)), x


def some_questions(lines: Lines, x: Tensor, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Half about latents that are active or nearly active at x, which are the doubtful ones."""
    generator = torch.Generator().manual_seed(seed)
    pair = lines.pair
    line = torch.randint(len(lines.token), (n,), generator=generator)
    latent = torch.randint(pair.config.d_sae, (n,), generator=generator)
    largest = pre_activations(pair, x).topk(min(2 * pair.config.k, pair.config.d_sae)).indices
    rank = torch.randint(largest.shape[1], (n,), generator=generator)
    return line, torch.where(torch.rand(n, generator=generator) < 0.5, latent, largest[lines.token[line], rank])


def pre_activations(pair: SAEPair, x: Tensor) -> Tensor:
    sae = pair.output_sae
    return sae.process_sae_in(pair.mlp(x)) @ sae.W_enc + sae.b_enc


def check(values: Tensor, lines: Lines, x: Tensor, line: Tensor, latent: Tensor) -> None:
    """An answer is the latent's own pre-activation, or 0 where it is negative or k others are larger; where rounding
    decides that, either."""
    epsilon, pair = torch.finfo(values.dtype).eps, in_dtype(lines.pair, torch.float64)
    token, steps, k = lines.token[line], lines.steps[line].double()[..., None], pair.config.k
    direction = pair.input_sae.W_dec[lines.input_latent[line]][:, None]
    pre = pre_activations(pair, x.double()[token][:, None] + steps * direction)
    own = pre.gather(2, latent[:, None, None].expand(-1, pre.shape[1], 1))
    others = pre.scatter(2, latent[:, None, None].expand(-1, pre.shape[1], 1), -torch.inf)
    own, bar = own[..., 0], others.topk(k).values[..., -1].clamp(min=0)

    sizes = [
        (of_x.abs()[token][:, None] + (steps * (direction @ W)).abs())
        for of_x, W in zip(pair.mlp.branch_values(x.double()), pair.mlp.branches, strict=True)
    ]
    norm = functools.reduce(torch.mul, sizes).norm(dim=2)
    sae, W_enc = pair.output_sae, pair.output_sae.W_enc.norm(dim=0).max()
    norm = norm * pair.mlp.W_out.norm() * W_enc + W_enc * (pair.mlp.b_out.norm() + sae.b_dec.norm())
    slack = ROUNDING * epsilon * (norm + sae.b_enc.abs().max())

    is_own, is_zero = (values - own).abs() <= slack, values == 0
    right = torch.where(own > bar + slack, is_own, torch.where(own < bar - slack, is_zero, is_own | is_zero))
    assert right.all(), (values[~right], own[~right], bar[~right], slack[~right])


def in_dtype(pair: SAEPair, dtype: torch.dtype, **tensors: Tensor) -> SAEPair:
    """A copy, with other tensors under some of its artifact names."""
    config = dataclasses.replace(pair.config, dtype=str(dtype).removeprefix("torch."))
    return SAEPair.from_tensors(pair.tensors() | tensors, config)


@WAYS
@given(
    sizes=st.sampled_from([(4, 4), (5, 4), (20, 4), (64, 1), (300, 1), (600, 2), (1100, 4)]),
    gated=st.booleans(),
    minus_b_dec=st.booleans(),
    activation=st.sampled_from(["gelu", "relu"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    step=st.sampled_from([1e-6, 0.01, 0.1, 1.0, 30.0, 1e6, 1e15]),
    bias=st.sampled_from([0.0, -3.0, -1e4, 1e4]),
    tied=st.booleans(),
    n_points=st.sampled_from([*FEW, *MANY]),
    n_lines=st.integers(1, 40),
    seed=st.integers(0, 10**6),
)
def test_an_answer_is_what_all_pre_activations_say(
    way, sizes, gated, minus_b_dec, activation, dtype, step, bias, tied, n_points, n_lines, seed
):
    pair = some_pair(*sizes, gated, minus_b_dec, activation)
    named = {name: pair.tensors()[name] for name in ("_W_dec", "_W_enc_out", "_b_enc_out")}
    named["_W_dec"] = step * named["_W_dec"]
    named["_b_enc_out"] = named["_b_enc_out"] + bias
    if tied:  # latents are equal two by two
        first = torch.arange(pair.config.d_sae) // 2
        named |= {name: named[name][..., first] for name in ("_W_enc_out", "_b_enc_out")}
    pair = in_dtype(pair, dtype, **named)
    lines, x = some_lines(pair, n_lines, n_points, seed)
    line, latent = some_questions(lines, x, 50, seed)
    check(way(lines, line, latent), lines, x, line, latent)


@pytest.mark.parametrize(("n_points", "gather_bytes"), [(1, 2**24), (1, 1), (100, 2**24)])
def test_few_points_are_encoded_where_lines_are_short(monkeypatch, n_points, gather_bytes):
    monkeypatch.setattr(nearby, "GATHER_BYTES", gather_bytes)
    pair = random_pair(d_model=64, d_mlp=64, d_sae=2048)
    pair = changed(pair, _W_dec=0.02 * pair.tensors()["_W_dec"])
    x, token = random_inputs(N_TOKENS, 64), torch.arange(N_TOKENS).repeat_interleave(8)
    steps = torch.linspace(1, 2, n_points, dtype=x.dtype).expand(len(token), -1)
    lines = Lines(pair, pair.mlp.branch_values(x), token, torch.arange(len(token)), steps)
    latent = pre_activations(pair, x).argmax(dim=1)[token]
    encoded = count_encoded(monkeypatch, nearby)
    assert (activations(lines, torch.arange(len(token)), latent) > 0).any()
    assert sum(encoded) < steps.numel() / 20


@WAYS
@pytest.mark.parametrize("n_points", [1, 2, 100])
def test_below_zero_every_answer_is_zero_though_some_latents_are_the_largest(way, n_points):
    pair = some_pair(300, 1, False, False, "gelu")
    pair = changed(pair, _W_dec=0.01 * pair.tensors()["_W_dec"], _b_enc_out=pair.tensors()["_b_enc_out"] - 100)
    lines, x = some_lines(pair, 20, n_points, seed=2)
    largest = pre_activations(pair, x).argmax(dim=1)[lines.token]
    assert not way(lines, torch.arange(20), largest).any()


@pytest.mark.parametrize("minus_b_dec", [False, True])
@pytest.mark.parametrize("n_points", [1, 100])
def test_own_pre_activations_are_those_of_the_moved_inputs_whoever_is_larger(n_points, minus_b_dec):
    lines, x = some_lines(some_pair(20, 4, True, minus_b_dec, "gelu"), 10, n_points, seed=5)
    line, latent = some_questions(lines, x, 30, seed=5)
    moved = x[lines.token, None] + lines.steps[..., None] * lines.pair.input_sae.W_dec[lines.input_latent, None]
    expected = pre_activations(lines.pair, moved)[line, :, latent]
    torch.testing.assert_close(own_pre_activations(lines, line, latent), expected, rtol=0, atol=1e-9)


@WAYS
@pytest.mark.parametrize("n_points", [1, 2, 100])
def test_no_questions_have_no_answers(way, n_points):
    lines, _ = some_lines(some_pair(300, 1, False, False, "gelu"), 20, n_points, seed=0)
    none = torch.zeros(0, dtype=torch.int64)
    assert way(lines, none, none).shape == (0, n_points)


@WAYS
@pytest.mark.parametrize("n_points", [1, 2, 100])
def test_answers_do_not_depend_on_how_many_are_computed_at_once(way, n_points, monkeypatch):
    lines, x = some_lines(some_pair(300, 1, True, True, "gelu"), 30, n_points, seed=1)
    questions = some_questions(lines, x, 60, seed=1)
    at_once = way(lines, *questions)
    for module, name in ((sae, "PRE_ACTIVATION_BYTES"), (nearby, "GATHER_BYTES"), (nearby, "HIDDEN_BYTES")):
        monkeypatch.setattr(module, name, 1)
    torch.testing.assert_close(way(lines, *questions), at_once, rtol=1e-10, atol=1e-10)


def test_a_latent_that_rises_and_falls_between_nodes_takes_its_place_in_the_topk():
    # along the line the MLP's output is a parabola, 0 at the nodes 33 and 66 and 10 between them; latent 9 alone sees
    # it, and at the nodes nine others are larger
    def rows(*values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    pair = changed(
        random_pair("relu2", d_model=2, d_mlp=2, d_sae=10, k=1),
        _W_dec=rows([1, 0]).expand(10, -1),
        _W_enc_out=rows(9 * [0] + [1], 10 * [0]),
        _b_enc_out=rows([3] + 8 * [1] + [0])[0],
        **{
            "mlp.W_in": rows([1, 1], [0, 0]),
            "mlp.b_in": rows([0, 1])[0],
            "mlp.W_out": rows([-50.5, 0], [49.5, 0]) / 27.225,
            "mlp.b_out": rows([10 - (49.5**2 + 49.5) / 27.225, 0])[0],
        },
    )
    point, zero = torch.arange(100, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    lines = Lines(pair, pair.mlp.branch_values(rows([0, 0])), zero, zero, point[None])
    seen = 10 - (point - 49.5) ** 2 / 27.225
    values = activations(lines, torch.tensor([0, 0]), torch.tensor([0, 9]))
    torch.testing.assert_close(values, torch.stack([torch.where(seen > 3, 0, 3), torch.where(seen > 3, seen, 0)]))


@WAYS
@pytest.mark.parametrize("n_points", [1, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_two_equal_latents_at_the_edge_of_the_topk_one_is_active(way, n_points, dtype):
    pair, first = some_pair(300, 1, False, False, "gelu"), torch.arange(300) // 2
    named = {name: pair.tensors()[name][..., first] for name in ("_W_enc_out", "_b_enc_out")}
    pair = in_dtype(pair, dtype, _W_dec=0.01 * pair.tensors()["_W_dec"], **named)
    lines, x = some_lines(pair, 40, n_points, seed=3)
    lines = lines._replace(token=torch.arange(40) // 14)
    largest = pre_activations(pair, x).argmax(dim=1)[lines.token] // 2 * 2
    line = torch.arange(40)
    both = way(lines, line.repeat(2), torch.cat([largest, largest + 1])).view(2, 40, n_points)
    assert ((both > 0).sum(dim=0) == 1).float().mean() > 0.9 and ((both > 0).sum(dim=0) <= 1).all()
