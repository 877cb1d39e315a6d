"""What a recipe may add to the loss: each term beside a slow, dense version of it, and what it does in training."""

import pytest
import torch
import torch.nn.functional as F

from jsae_core import TrainingConfig, train_pair
from jsae_core.losses import losses_of
from jsae_core.measures import latent_accounting
from jsae_core.recipe import AntiBypass, AuxK
from tests.jsae_core.builders import D_SAE, K, random_inputs, random_mlp, random_sae_tensors

N_TOKENS = 48
DEAD = {"input": torch.arange(D_SAE) % 3 == 0, "output": torch.arange(D_SAE) >= 15}


def recipe(**changes) -> TrainingConfig:
    defaults = {"d_sae": D_SAE, "k": K, "jacobian_coefficient": 0.0, "steps": 5, "batch_tokens": N_TOKENS}
    return TrainingConfig(**defaults | changes)


@pytest.fixture
def weights():
    """Random weights with a graph, by side."""
    tensors = {name: tensor.requires_grad_() for name, tensor in random_sae_tensors().items()}
    return {
        side: {name: tensors[f"_{name}{suffix}"] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        for side, suffix in (("input", ""), ("output", "_out"))
    }


def dense(part, target, k=K):
    """The TopK of all pre-activations, by a mask: the pre-activations [n, d_sae], which of them are in it, and the
    reconstruction."""
    pre_activations = target @ part["W_enc"] + part["b_enc"]
    kept = torch.zeros_like(pre_activations).scatter(1, pre_activations.topk(k).indices, 1.0)
    return pre_activations, kept, (pre_activations.relu() * kept) @ part["W_dec"] + part["b_dec"]


def gradients(value, weights):
    flat = [tensor for side in weights.values() for tensor in side.values()]
    found = torch.autograd.grad(value, flat, allow_unused=True)
    return [torch.zeros_like(t) if gradient is None else gradient for t, gradient in zip(flat, found, strict=True)]


def assert_same_value_and_gradients(got, expected, weights):
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for ours, autograd in zip(gradients(got, weights), gradients(expected, weights), strict=True):
        torch.testing.assert_close(ours, autograd, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_the_accounted_share_and_its_gradient_are_autograd_s_of_its_definition(weights, activation, gated):
    mlp, x = random_mlp(activation, gated), random_inputs(N_TOKENS)
    got = losses_of(weights, mlp, x, recipe(anti_bypass=AntiBypass(1.0)), None).accounted_share
    pre_activations, kept, _ = dense(weights["input"], x)
    without = x - (pre_activations.relu() * kept) @ weights["input"]["W_dec"]
    p, active, _ = dense(weights["output"], mlp(x))
    p_empty = mlp(without) @ weights["output"]["W_enc"] + weights["output"]["b_enc"]
    assert_same_value_and_gradients(got, ((p - p_empty) * active).sum() / (p * active).sum(), weights)


def test_the_auxiliary_loss_and_its_gradient_are_autograd_s_of_its_definition(weights):
    mlp, x = random_mlp("gelu"), random_inputs(N_TOKENS)
    got = losses_of(weights, mlp, x, recipe(auxk=AuxK(k=3)), None, DEAD).auxk
    expected = 0.0
    for side, target in (("input", x), ("output", mlp(x))):
        part = weights[side]
        pre_activations, _, reconstruction = dense(part, target)
        of_dead = pre_activations.masked_fill(~DEAD[side], -torch.inf)
        kept = torch.zeros_like(of_dead).scatter(1, of_dead.topk(3).indices, 1.0)
        revived = (pre_activations.relu() * kept) @ part["W_dec"]
        expected = expected + (((target - reconstruction).detach() - revived) ** 2).sum() / target.numel()
    assert_same_value_and_gradients(got, expected, weights)


def test_of_fewer_dead_latents_than_asked_for_all_reconstruct_and_of_none_nothing_is_lost(weights):
    mlp, x = random_mlp("gelu"), random_inputs(N_TOKENS)
    one = {side: torch.arange(D_SAE) == 7 for side in weights}
    none = {side: torch.zeros(D_SAE, dtype=torch.bool) for side in weights}
    with_one = losses_of(weights, mlp, x, recipe(auxk=AuxK(k=5)), None, one).auxk
    assert with_one == losses_of(weights, mlp, x, recipe(auxk=AuxK(k=1)), None, one).auxk > 0
    assert losses_of(weights, mlp, x, recipe(auxk=AuxK(k=5)), None, none).auxk == 0


def test_the_shares_that_training_tells_and_that_are_measured_are_one(weights):
    x, told = random_inputs(N_TOKENS), []
    config = recipe(steps=1, learning_rate=1e-300, anti_bypass={"weight": 1.0, "threshold": 0.5})
    pair = train_pair(x, random_mlp("gelu"), config, report=told.append)
    assert told[0].accounted_share == pytest.approx(latent_accounting(pair, [x])["accounted_share"], rel=1e-9)
    train_pair(x, random_mlp("gelu"), recipe(steps=1), report=told.append)
    assert told[1].accounted_share is None


# --- what they do in training ---


def trained(x, **changes):
    defaults = {"steps": 300, "learning_rate": 5e-3, "batch_tokens": 100, "jacobian_coefficient": 1.0}
    return train_pair(x, random_mlp("gelu"), recipe(**defaults | changes))


@pytest.fixture(scope="module")
def many():
    return random_inputs(1000, seed=5)


def same(one, other) -> bool:
    tensors = other.tensors()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in one.tensors().items())


def test_a_penalty_of_bypassing_raises_the_accounted_share_up_to_its_threshold(many):
    held_out = random_inputs(200, seed=6)
    shares = {
        threshold: latent_accounting(
            trained(many, anti_bypass={"weight": 1.0, "threshold": threshold} if threshold else None), [held_out]
        )["accounted_share"]
        for threshold in (0, 0.6, 0.9)
    }
    assert shares[0] + 0.05 < shares[0.6] < shares[0.9] and shares[0.9] > 0.8


def test_a_penalty_whose_threshold_is_met_changes_nothing(many):
    plain = {"jacobian_coefficient": 0.0, "steps": 20}
    assert same(trained(many, anti_bypass={"weight": 5.0, "threshold": 1e-9}, **plain), trained(many, **plain))


def test_a_latent_is_dead_only_once_so_many_tokens_have_passed(many):
    settings = {"d_sae": 60, "steps": 10, "jacobian_coefficient": 0.0}
    never = {"k": 8, "dead_after_tokens": 10 * 100}  # known after the last step
    assert same(trained(many, auxk=never, **settings), trained(many, **settings))
    assert not same(trained(many, auxk=never | {"dead_after_tokens": 900}, **settings), trained(many, **settings))


def test_the_output_error_counts_as_much_as_its_coefficient_says(many):
    mlp, held_out = random_mlp("gelu"), random_inputs(200, seed=6)
    y = mlp(held_out)
    errors = {}
    for coefficient in (0.0, 1.0, 10.0):
        pair = trained(many, mlp_out_mse_coefficient=coefficient, steps=100)
        errors[coefficient] = F.mse_loss(pair.output_sae(y), y).item()
    assert errors[10.0] < errors[1.0] < errors[0.0]


def test_an_output_error_of_weight_zero_trains_the_output_sae_not_at_all(many):
    settings = {"mlp_out_mse_coefficient": 0.0, "jacobian_coefficient": 0.0}
    one, other = trained(many, steps=3, **settings).tensors(), trained(many, steps=30, **settings).tensors()
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    assert moved == {"_W_enc", "_b_enc", "_W_dec", "_b_dec"}


@pytest.mark.parametrize("parts", [2, 5, 100])
def test_a_batch_gone_through_in_parts_gives_the_same_pair_and_takes_as_few_tokens_at_once(many, parts, monkeypatch):
    mlp, sizes = random_mlp("gelu"), []
    # some steps' gradients are clipped, and others not: a gradient of another size would show
    settings = {
        "steps": 8,
        "batch_tokens": 100,
        "jacobian_coefficient": 1.0,
        "learning_rate": 5e-3,
        "gradient_clip": 72,
    }
    config = recipe(**settings)
    whole, told = train_pair(many, mlp, config), []
    assert not any(same(whole, train_pair(many, mlp, recipe(**settings | {"gradient_clip": c}))) for c in (1e-3, 1e3))
    respond = mlp.respond
    monkeypatch.setattr(mlp, "respond", lambda x: (sizes.append(len(x)), respond(x))[1])
    accumulated = train_pair(many, mlp, recipe(**settings, gradient_accumulation=parts), report=told.append)
    assert set(sizes) == {100 // parts} and len(sizes) == 8 * parts
    for name, tensor in accumulated.tensors().items():
        torch.testing.assert_close(tensor, whole.tensors()[name], rtol=0, atol=1e-9)
    told_of_whole = []
    train_pair(many, random_mlp("gelu"), config, report=told_of_whole.append)
    assert told[-1].input_loss == pytest.approx(told_of_whole[-1].input_loss, rel=1e-9)
    assert told[-1].jacobian_loss == pytest.approx(told_of_whole[-1].jacobian_loss, rel=1e-9)


def test_a_pair_says_which_options_it_was_trained_with_and_only_those(many):
    options = {"mlp_out_mse_coefficient": 2.0, "anti_bypass": {"weight": 0.5, "threshold": 0.8}}
    extra = trained(many, steps=1, **options).config.extra
    assert extra.items() >= options.items() and "auxk" not in extra
    assert not {*options, "auxk", "gradient_accumulation"} & trained(many, steps=1).config.extra.keys()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mlp_out_mse_coefficient": -1.0}, "mlp_out_mse_coefficient is -1.0"),
        ({"mlp_out_mse_coefficient": float("inf")}, "mlp_out_mse_coefficient is inf"),
        ({"gradient_accumulation": 0}, "gradient_accumulation is 0"),
        ({"gradient_accumulation": 5}, f"gradient_accumulation is 5, which does not divide batch_tokens, {N_TOKENS}"),
        ({"auxk": {"coefficient": 0.0}}, "auxk has coefficient 0.0"),
        ({"auxk": {"dead_after_tokens": 0}}, "dead_after_tokens 0"),
        ({"anti_bypass": {"weight": 1.0, "threshold": 1.5}}, "threshold 1.5"),
        ({"anti_bypass": {"weight": -1.0}}, "anti_bypass has weight -1.0"),
    ],
)
def test_options_that_cannot_be_are_refused_with_their_names(changes, named):
    with pytest.raises(ValueError, match=named):
        recipe(**changes)
