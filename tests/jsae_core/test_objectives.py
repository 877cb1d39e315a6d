import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from jsae_core import TrainingConfig, jacobian, run_sandwich, train_pair
from jsae_core.artifacts import artifact_name
from jsae_core.jacobian import jacobian_penalty
from jsae_core.objectives import OBJECTIVES
from jsae_core.recipe import OBJECTIVE_NAMES
from tests.jsae_core.builders import random_inputs, random_mlp, random_pair

each_objective = pytest.mark.parametrize("name", OBJECTIVE_NAMES)
CLIPPED = {"cl1": (1.8, "l1"), "cl1nb": (0.9, "l1nb"), "cl1nt": (0.9, "l1nt")}


def scad(a: float) -> float:
    if a < 0.5:
        return 0.5 * a
    if a < 2.15:
        return -(a * a - 2 * 4.3 * 0.5 * a + 0.25) / (2 * 3.3)
    return 0.5 * 5.3 * 0.25


def by_hand(name: str, J: np.ndarray) -> float:
    """From the formulas, an element at a time."""
    if name in CLIPPED:
        factor, inner = CLIPPED[name]
        return factor * by_hand(inner, np.clip(J, -0.5, 0.5))
    if name == "l1nt":
        return float(np.mean([by_hand("l1nb", token[None]) for token in J]))
    elements = [abs(float(x)) for x in J.ravel()]
    mean = {
        "l1": lambda: np.mean(elements),
        "l1nb": lambda: np.mean(elements) / math.sqrt(np.mean([x * x for x in elements])),
        "tanh": lambda: 0.8 * np.mean([math.tanh((10 * x) ** 2) for x in elements]),
        "scad": lambda: 2.2 * np.mean([scad(x) for x in elements]),
        "exp": lambda: np.mean([1 - math.exp(-2.5 * x) for x in elements]),
        "log2": lambda: np.mean([max(0.0, 2.2 * math.log(x * x) + 0.7) for x in elements]),
        "loge": lambda: 1.3 * np.mean([math.log(1 + x**0.4) for x in elements]),
        "lp": lambda: 1.3 * np.mean([x**0.4 for x in elements]) ** 2.5,
    }[name]
    return float(mean())


def jacobians(scale: float = 1.0) -> Tensor:
    return scale * torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_recipe_knows_the_names_of_all_objectives():
    assert tuple(OBJECTIVES) == OBJECTIVE_NAMES


@each_objective
@pytest.mark.parametrize("scale", [0.03, 1.0, 4.0])
def test_an_objective_is_its_formula(name, scale):
    J = jacobians(scale)
    assert OBJECTIVES[name](J).item() == pytest.approx(by_hand(name, J.numpy()), rel=1e-12)


@each_objective
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_the_gradient_of_an_objective_is_autograd_s_through_the_dense_jacobian(name, gated, monkeypatch):
    monkeypatch.setattr(jacobian, "GATHER_BYTES", 2000)  # a few tokens at once
    pair, x = random_pair("silu", gated), random_inputs(7)
    sandwich, slopes = run_sandwich(pair, x), pair.mlp.respond(x).slopes
    ours, theirs = ([w.clone().requires_grad_() for w in (pair.input_sae.W_dec, pair.output_sae.W_enc)] for _ in "ab")
    value = jacobian_penalty(*ours, pair.mlp, sandwich.input_latents, sandwich.output_latents, slopes, OBJECTIVES[name])
    # all d_sae x d_sae elements of each token from the chain rule, and of them those of active latents
    inputs = [theirs[0] @ W for W in pair.mlp.branches]
    outputs = theirs[1].T @ pair.mlp.W_out.T
    dense = sum(torch.einsum("om,nm,im->noi", outputs, c, D) for c, D in zip(slopes, inputs, strict=True))
    rows, columns = sandwich.output_latents[:, :, None], sandwich.input_latents[:, None]
    expected = OBJECTIVES[name](dense[torch.arange(len(x))[:, None, None], rows, columns])
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    (3 * value).backward()
    (3 * expected).backward()
    for mine, its in zip(ours, theirs, strict=True):
        assert its.grad.abs().max() > 0
        torch.testing.assert_close(mine.grad, its.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["l1nb", "l1nt"])
def test_a_normalised_objective_does_not_fall_when_all_elements_shrink(name):
    J = jacobians()
    assert OBJECTIVES[name](1e-3 * J).item() == pytest.approx(OBJECTIVES[name](J).item(), rel=1e-9)


@each_objective
def test_a_jacobian_of_zeros_has_a_finite_objective_and_gradient(name):
    J = torch.zeros(3, 4, 4, dtype=torch.float32, requires_grad=True)
    value = OBJECTIVES[name](J)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(J.grad).all()


@pytest.mark.parametrize("name", ["l1", "l1nb", "lp"])
def test_training_makes_the_objective_that_its_recipe_names_small(name):
    mlp, x = random_mlp("gelu"), random_inputs(200)
    recipe = TrainingConfig(24, 4, 0.0, steps=150, batch_tokens=64, learning_rate=5e-3, objective=name)
    without, with_it = (
        OBJECTIVES[name](run_sandwich(train_pair(x, mlp, replace(recipe, jacobian_coefficient=weight)), x).jacobian)
        for weight in (0.0, 2.0)
    )
    assert with_it < 0.95 * without


def test_l1_is_what_is_trained_unless_another_is_named():
    mlp, x = random_mlp("gelu"), random_inputs(50)
    recipe = TrainingConfig(12, 3, 1.0, steps=5, batch_tokens=16)
    usual, named, other = (
        train_pair(x, mlp, replace(recipe, **o)) for o in ({}, {"objective": "l1"}, {"objective": "lp"})
    )
    assert torch.equal(usual.input_sae.W_dec, named.input_sae.W_dec)
    assert not torch.equal(usual.input_sae.W_dec, other.input_sae.W_dec)
    assert other.config.extra["objective"] == "lp"
    assert artifact_name(usual.config) == "sae_pair_unnamed_layer0_12_J1_k3"
    assert artifact_name(other.config) == "sae_pair_unnamed_layer0_12_J1lp_k3"


def test_an_unknown_objective_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="objective is 'l3'; expected one of l1, l1nb, l1nt"):
        TrainingConfig(12, 3, 1.0, steps=5, objective="l3")
