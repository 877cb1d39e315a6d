import itertools
import json
import math
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from jsae_core import SAEPair, TrainingConfig, jacobian, losses, run_sandwich, train_pair
from jsae_core.measures import reconstruction_quality
from jsae_core.recipe import AntiBypass, AuxK
from jsae_core.shuffling import ShuffledBatches
from tests.jsae_core.builders import D_MODEL, D_SAE, K, random_inputs, random_mlp

N_TOKENS = 64


def recipe(**changes) -> TrainingConfig:
    """Every step sees all the tokens, unless changed."""
    defaults = {"d_sae": D_SAE, "k": K, "jacobian_coefficient": 1.0, "steps": 5, "batch_tokens": N_TOKENS}
    return TrainingConfig(**defaults | changes)


@pytest.fixture(scope="module")
def x():
    return random_inputs(N_TOKENS)


@pytest.fixture(scope="module")
def mlp():
    return random_mlp("gelu")


def same(one: SAEPair, other: SAEPair) -> bool:
    tensors = other.tensors()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in one.tensors().items())


def initial(x, mlp, **changes) -> dict[str, torch.Tensor]:
    """The weights that training starts from: those after one step too small to move anything."""
    return train_pair(x, mlp, recipe(**changes | {"steps": 1, "learning_rate": 1e-300})).tensors()


def slow_loss(weights: dict[str, torch.Tensor], phi, mlp, x, k: int, coefficient: float):
    """The loss as the paper states it: dense latents, and the Jacobian by autograd, one token after another."""

    def mlp_output(x):
        return phi(x @ mlp.W_in + mlp.b_in) @ mlp.W_out + mlp.b_out

    def latents(side, x):
        return (x @ weights[f"_W_enc{side}"] + weights[f"_b_enc{side}"]).topk(k)

    y, losses = mlp_output(x), []
    for side, target in (("", x), ("_out", y)):
        kept = latents(side, target)
        dense = torch.zeros(len(x), D_SAE, dtype=x.dtype).scatter(1, kept.indices, kept.values.relu())
        reconstruction = dense @ weights[f"_W_dec{side}"] + weights[f"_b_dec{side}"]
        losses.append(((target - reconstruction) ** 2).sum() / target.numel())
    elements = []
    for token, inputs, outputs in zip(x, latents("", x).indices, latents("_out", y).indices, strict=True):

        def read(change, token=token, inputs=inputs, outputs=outputs):
            moved = mlp_output(token + change @ weights["_W_dec"][inputs])
            return (moved @ weights["_W_enc_out"] + weights["_b_enc_out"])[outputs]

        elements.append(torch.autograd.functional.jacobian(read, torch.zeros(k, dtype=x.dtype), create_graph=True))
    losses.append(torch.stack(elements).abs().mean())
    return losses[0] + losses[1] + coefficient * losses[2], losses


# --- the loss and the step ---


@pytest.mark.parametrize(("activation", "phi"), [("gelu", F.gelu), ("silu", F.silu)])
def test_the_losses_are_the_paper_s_computed_slowly(x, activation, phi):
    mlp, reports = random_mlp(activation), []
    train_pair(x, mlp, recipe(steps=1), report=reports.append)
    _, expected = slow_loss(initial(x, mlp), phi, mlp, x, K, 1.0)
    (progress,) = reports
    got = [progress.input_loss, progress.output_loss, progress.jacobian_loss]
    assert got == pytest.approx([value.item() for value in expected], rel=1e-10)


@pytest.mark.parametrize("gradient_clip", [1.0, 1e9])
def test_training_is_adam_on_the_paper_s_loss_with_decoders_made_unit_norm_first(x, gradient_clip):
    # relu's slope is constant between its kinks, so that autograd's gradient needs nothing held fixed
    mlp = random_mlp("relu")
    schedules = {"jacobian_warm_up": 0.5, "learning_rate_warm_up": 0.5, "learning_rate_decay": 0.25}
    config = recipe(steps=4, gradient_clip=gradient_clip, **schedules)
    weights = {name: t.clone().requires_grad_() for name, t in initial(x, mlp).items() if name.startswith("_")}
    moments = {name: (torch.zeros_like(t), torch.zeros_like(t)) for name, t in weights.items()}
    rates, coefficients = [0.5, 1.0, 1.0, 1.0], [0.0, 0.5, 1.0, 1.0]
    for step, (rate, coefficient) in enumerate(zip(rates, coefficients, strict=True), start=1):
        with torch.no_grad():
            for name in ("_W_dec", "_W_dec_out"):
                weights[name] /= weights[name].norm(dim=1, keepdim=True)
        loss, _ = slow_loss(weights, F.relu, mlp, x, K, coefficient)
        gradients = torch.autograd.grad(loss, list(weights.values()))
        norm = math.sqrt(sum((gradient**2).sum().item() for gradient in gradients))
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                gradient = gradient * min(1.0, gradient_clip / (norm + 1e-6))
                first, second = moments[name]
                first.mul_(0.9).add_(0.1 * gradient)
                second.mul_(0.999).add_(0.001 * gradient**2)
                mean, variance = first / (1 - 0.9**step), second / (1 - 0.999**step)
                weight -= 5e-4 * rate * mean / (variance.sqrt() + 1e-8)
    trained = train_pair(x, mlp, config).tensors()
    for name, expected in weights.items():
        torch.testing.assert_close(trained[name], expected.detach(), rtol=0, atol=1e-9)


def test_the_encoder_starts_as_the_decoder_s_transpose_with_unit_rows_and_zero_biases(x, mlp):
    start = initial(x, mlp)
    for side in ("", "_out"):
        torch.testing.assert_close(start[f"_W_enc{side}"], start[f"_W_dec{side}"].T, rtol=0, atol=1e-7)
        norms = start[f"_W_dec{side}"].norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-12)
        assert max(start[f"_b_enc{side}"].abs().max(), start[f"_b_dec{side}"].abs().max()) < 1e-200
    assert not torch.equal(start["_W_dec"], start["_W_dec_out"])


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_the_jacobian_term_moves_the_input_decoder_and_the_output_encoder_alone(x, gated):
    mlp = random_mlp("gelu", gated)
    one_step = {"steps": 1, "jacobian_warm_up": 0.0, "gradient_clip": 1e9}
    with_term = train_pair(x, mlp, recipe(jacobian_coefficient=1.0, **one_step)).tensors()
    without = train_pair(x, mlp, recipe(jacobian_coefficient=0.0, **one_step)).tensors()
    moved = {name for name in with_term if not torch.equal(with_term[name], without[name])}
    assert moved == {"_W_dec", "_W_enc_out"}


def test_coefficient_zero_computes_no_jacobian(x, mlp, monkeypatch):
    def refuse(*args):
        raise AssertionError("a Jacobian was computed")

    monkeypatch.setattr(losses, "jacobian_penalty", refuse)
    monkeypatch.setattr(jacobian, "build_tables", refuse)
    reports = []
    train_pair(x, mlp, recipe(jacobian_coefficient=0.0), report=reports.append)
    assert {progress.jacobian_loss for progress in reports} == {0.0}


def test_the_mlp_is_not_trained(x):
    mlp, before = random_mlp("gelu"), random_mlp("gelu")
    pair = train_pair(x, mlp, recipe(steps=20, learning_rate=0.01))
    for name, tensor in before.named_buffers():
        assert torch.equal(mlp.get_buffer(name), tensor) and torch.equal(pair.mlp.get_buffer(name), tensor)


# --- what training does ---


@pytest.fixture(scope="module")
def twins(x):
    """Trained alike on the same tokens, with and without the Jacobian term."""
    mlp, many = random_mlp("gelu"), random_inputs(1000, seed=5)
    return {
        coefficient: train_pair(
            many, mlp, recipe(jacobian_coefficient=coefficient, steps=300, batch_tokens=100, learning_rate=5e-3)
        )
        for coefficient in (0.0, 1.0)
    }


def test_the_jacobian_term_makes_the_jacobian_smaller_than_its_twin_s(twins):
    held_out = random_inputs(200, seed=6)
    mean = {coefficient: run_sandwich(pair, held_out).jacobian.abs().mean() for coefficient, pair in twins.items()}
    assert mean[1.0] < 0.5 * mean[0.0]


def test_training_reconstructs_better_than_the_pair_it_began_with(twins, mlp):
    held_out, many = random_inputs(200, seed=6), random_inputs(1000, seed=5)
    untrained = train_pair(many, mlp, recipe(jacobian_coefficient=0.0, steps=1, learning_rate=1e-300))
    before, after = (reconstruction_quality(pair, [held_out]) for pair in (untrained, twins[0.0]))
    for side in ("input", "output"):
        assert after[f"mse_{side}"] < 0.8 * before[f"mse_{side}"]


def test_the_same_seed_gives_the_same_pair_and_another_seed_another(x, mlp):
    config = {"steps": 8, "batch_tokens": 10}
    first = train_pair(x, mlp, recipe(seed=3, **config))
    torch.rand(5)  # what else draws random numbers makes no difference
    assert same(first, train_pair(x, mlp, recipe(seed=3, **config)))
    assert not same(first, train_pair(x, mlp, recipe(seed=4, **config)))


def test_training_leaves_torch_s_own_random_numbers_alone(x, mlp):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train_pair(x, mlp, recipe())
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "as_stream",
    [lambda x: [x], lambda x: iter(x.split(7)), lambda x: (row for row in x.split(1))],
    ids=["list", "iterator", "generator"],
)
def test_a_stream_that_fits_the_buffer_trains_the_same_pair_as_its_tokens_in_one_tensor(x, mlp, as_stream):
    config = recipe(steps=8, batch_tokens=10)
    assert same(train_pair(as_stream(x), mlp, config), train_pair(x, mlp, config))


def test_a_trained_pair_says_what_it_is_and_how_it_was_made(x, mlp, tmp_path):
    made = train_pair(x, mlp, recipe(jacobian_coefficient=0.5, seed=7), model_name="tiny", layer=2, context_size=128)
    made.save(tmp_path)
    config = SAEPair.load(tmp_path).config
    assert (config.model_name, config.layer, config.context_size) == ("tiny", 2, 128)
    assert (config.d_in, config.d_sae, config.k, config.jacobian_coefficient) == (D_MODEL, D_SAE, K, 0.5)
    assert (config.mlp_activation, config.dtype, config.apply_b_dec_to_input) == ("gelu", "float64", False)
    assert config.trained_on_bos is False  # a stream of MLP inputs leaves BOS out
    assert config.extra.items() >= {"lr": 5e-4, "seed": 7, "training_tokens": 5 * N_TOKENS}.items()


@pytest.mark.parametrize("randomised", [False, True])
def test_a_pair_trained_on_a_randomised_model_says_so_and_still_does_when_loaded(x, mlp, tmp_path, randomised):
    made = train_pair(x, mlp, recipe(), randomize_llm_weights=randomised)
    made.save(tmp_path)
    assert made.config.randomize_llm_weights is SAEPair.load(tmp_path).config.randomize_llm_weights is randomised
    assert json.loads((tmp_path / "cfg.json").read_text())["randomize_llm_weights"] is randomised


def test_a_pair_is_of_a_model_that_was_not_randomised_unless_said_otherwise(x, mlp):
    assert train_pair(x, mlp, recipe()).config.randomize_llm_weights is False


@pytest.mark.parametrize("steps", [1, 7, 20, 45, 100])
def test_progress_is_reported_in_order_to_the_last_step(x, mlp, steps):
    reports = []
    train_pair(x, mlp, recipe(steps=steps, jacobian_coefficient=0.0), report=reports.append)
    seen = [progress.step for progress in reports]
    assert seen == sorted(set(seen)) and seen[-1] == steps and min(steps, 20) <= len(seen) < 40
    assert {progress.steps for progress in reports} == {steps}


# --- the schedules, by hand ---


def test_the_learning_rate_rises_stays_and_falls_to_nearly_zero():
    config = recipe(steps=10, learning_rate=1.0, learning_rate_warm_up=0.38, learning_rate_decay=0.18)  # 4 and 2 steps
    rates = [config.learning_rate_at(step) for step in range(10)]
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 0.5]


def test_the_jacobian_coefficient_rises_from_zero_and_stays():
    config = recipe(steps=10, jacobian_coefficient=2.0, jacobian_warm_up=0.38)  # 4 steps
    assert [config.jacobian_coefficient_at(step) for step in range(6)] == [0, 0.5, 1, 1.5, 2, 2]


def test_the_paper_s_schedule_is_the_default():
    config = recipe(steps=1000, jacobian_coefficient=1.0)
    assert config.learning_rate_at(0) == pytest.approx(5e-5)
    assert config.learning_rate_at(9) == config.learning_rate_at(800) == 5e-4
    assert config.learning_rate_at(900) == pytest.approx(2.5e-4)
    assert config.jacobian_coefficient_at(25) == 0.5 and config.jacobian_coefficient_at(50) == 1


def test_all_that_a_recipe_leaves_open_is_the_paper_s_or_for_dead_latents_gao_s():
    assert asdict(TrainingConfig(d_sae=20, k=4, jacobian_coefficient=1.0, steps=1000)) == {
        "d_sae": 20,
        "k": 4,
        "jacobian_coefficient": 1.0,
        "steps": 1000,
        "batch_tokens": 4096,
        "learning_rate": 5e-4,
        "learning_rate_warm_up": 0.01,
        "learning_rate_decay": 0.2,
        "jacobian_warm_up": 0.05,
        "gradient_clip": 1.0,
        "seed": 0,
        "buffer_tokens": 524288,
        "objective": "l1",
        "mlp_out_mse_coefficient": 1.0,
        "auxk": None,
        "anti_bypass": None,
        "gradient_accumulation": 1,
    }
    assert asdict(AuxK()) == {"coefficient": 0.03125, "k": 512, "dead_after_tokens": 10_000_000}
    assert AntiBypass(1.0).threshold == 0.9


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_fewest_steps_have_a_learning_rate_and_a_coefficient_too(steps):
    config = recipe(steps=steps)
    assert all(0 < config.learning_rate_at(step) <= 5e-4 for step in range(steps))
    assert all(0 <= config.jacobian_coefficient_at(step) <= 1 for step in range(steps))


# --- shuffled batches ---


def numbered(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float64)[:, None]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@given(n=st.integers(1, 30), batch_tokens=st.integers(1, 40))
def test_an_epoch_over_what_fits_the_buffer_serves_no_token_twice(n, batch_tokens):
    batches = ShuffledBatches(numbered(n), batch_tokens, 1000, generator())
    per_epoch = max(1, n // batch_tokens)
    for _ in range(3):
        served = torch.cat(list(itertools.islice(batches, per_epoch))).flatten().tolist()
        assert len(served) == per_epoch * batch_tokens
        assert max(served.count(token) for token in served) <= math.ceil(batch_tokens / n)
        assert set(served) <= set(range(n))


def test_an_epoch_that_divides_evenly_is_a_permutation_and_the_next_another():
    batches = ShuffledBatches(numbered(12), 4, 1000, generator())
    epochs = [torch.cat(list(itertools.islice(batches, 3))).flatten().tolist() for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1] != sorted(epochs[1])


@given(
    chunks=st.lists(st.integers(0, 15), min_size=1, max_size=12),
    batch_tokens=st.integers(1, 12),
    buffer_tokens=st.integers(1, 40),
    rest=st.integers(1, 20),
)
def test_a_stream_longer_than_the_buffer_is_served_once_all_but_less_than_a_batch(
    chunks, batch_tokens, buffer_tokens, rest
):
    # whatever is read ahead, as much as the buffer and the longest piece hold, there is a rest
    chunks = [*chunks, buffer_tokens, max(chunks), rest]
    stream = list(numbered(sum(chunks)).split(chunks))
    batches = list(ShuffledBatches(iter(stream), batch_tokens, buffer_tokens, generator()))
    assert all(batch.shape == (batch_tokens, 1) for batch in batches)
    served = [token for batch in batches for token in batch.flatten().tolist()]
    assert len(served) == len(set(served)) and set(served) <= set(range(sum(chunks)))
    assert sum(chunks) - len(served) < batch_tokens


def test_empty_pieces_in_a_stream_that_fits_do_not_end_it():
    empty = numbered(0)
    batches = ShuffledBatches([empty, numbered(3), empty], 2, 3, generator())
    assert len(list(itertools.islice(batches, 10))) == 10


def test_a_long_stream_is_mixed_beyond_its_pieces():
    stream = numbered(1000).split(10)
    batches = list(ShuffledBatches(stream, 50, 200, generator()))
    spread = [(batch.max() - batch.min()).item() for batch in batches]
    assert sum(spread) / len(spread) > 100


# --- what is refused ---


@pytest.mark.parametrize("stream", [[], [torch.zeros(0, D_MODEL, dtype=torch.float64)]], ids=["nothing", "no tokens"])
def test_an_empty_stream_is_refused(mlp, stream):
    with pytest.raises(ValueError, match="empty"):
        train_pair(stream, mlp, recipe())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[:, :5], rf"shape \[n_tokens, 5\] .* expected torch.float64 of shape \[n_tokens, {D_MODEL}\]"),
        (lambda x: x[0], r"shape \[n_tokens\]"),
        (lambda x: x[None], r"shape \[n_tokens, \d+, \d+\]"),
        (lambda x: x.float(), "are torch.float32 .* expected torch.float64"),
        (lambda x: x.int(), "are torch.int32 .* expected torch.float64"),
    ],
    ids=["another width", "one dimension", "three dimensions", "another dtype", "whole numbers"],
)
def test_inputs_that_the_mlp_does_not_take_are_refused_with_both(x, mlp, change, said):
    with pytest.raises(ValueError, match=said):
        train_pair(change(x), mlp, recipe())


def test_a_stream_that_ends_too_soon_is_refused_saying_how_far_it_went(x, mlp):
    with pytest.raises(ValueError, match="after 6 of 100 steps of 10 tokens"):
        train_pair(iter(x.split(4)), mlp, recipe(steps=100, batch_tokens=10, buffer_tokens=20))


def test_a_pair_that_memory_cannot_hold_is_refused_with_both_sizes_before_any_is_taken(x, mlp):
    # 8 bytes for each of 2 SAEs' 2 matrices of 8 x 10^12, their gradients and Adam's two means
    message = r"d_sae 1,000,000,000,000 takes at least 953,674.3 GiB .* but [\d,.]+ GiB are"
    with pytest.raises(MemoryError, match=message):
        train_pair(x, mlp, recipe(d_sae=10**12))


@pytest.mark.parametrize("steps", [1, 30])
def test_a_loss_that_is_not_finite_is_refused(x, mlp, steps):
    broken = x.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(ValueError, match="the loss is nan at step .*; are the MLP inputs finite"):
        train_pair(broken, mlp, recipe(steps=steps))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"k": D_SAE + 1}, f"k is {D_SAE + 1}, larger than d_sae, {D_SAE}"),
        ({"k": 0}, "k is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"batch_tokens": -1}, "batch_tokens is -1"),
        ({"jacobian_coefficient": -0.5}, "jacobian_coefficient is -0.5"),
        ({"jacobian_coefficient": math.inf}, "jacobian_coefficient is inf"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"learning_rate_warm_up": 1.1}, "learning_rate_warm_up is 1.1, expected a share of all steps"),
        ({"jacobian_warm_up": -0.1}, "jacobian_warm_up is -0.1, expected a share of all steps"),
        ({"gradient_clip": 0.0}, "gradient_clip is 0.0"),
        ({"gradient_clip": math.nan}, "gradient_clip is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"k": 4.5}, "k is 4.5, expected a whole number"),
        ({"d_sae": None}, "d_sae is None, expected a whole number"),
        ({"steps": True}, "steps is True, expected a whole number"),
        ({"learning_rate": "5e-4"}, "learning_rate is '5e-4', expected a number"),
        ({"auxk": 3}, "auxk is 3, expected a mapping of its settings, coefficient, k, dead_after_tokens"),
        ({"auxk": {"kk": 1}}, "auxk is {'kk': 1}, expected a mapping of its settings, coefficient, k,"),
        ({"auxk": {"k": "many"}}, "k is 'many', expected a whole number"),
        ({"anti_bypass": {}}, "anti_bypass is {}, expected a mapping of its settings, weight, threshold"),
    ],
)
def test_a_recipe_that_no_training_can_follow_is_refused_with_its_key(changes, named):
    with pytest.raises(ValueError, match=named):
        recipe(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"k": D_SAE},
        {"jacobian_coefficient": 0},
        {"gradient_clip": math.inf},
        {"seed": 2**63 - 1},
        {"learning_rate_warm_up": 1.0, "learning_rate_decay": 0, "jacobian_warm_up": 1.0},
        {"anti_bypass": {"weight": 0.1, "threshold": 1.0}},
        {"auxk": {"k": 1, "dead_after_tokens": 1}},
        {"batch_tokens": 1, "buffer_tokens": 1},
    ],
)
def test_a_recipe_at_the_edge_of_what_training_can_follow_is_followed(x, mlp, changes):
    pair = train_pair(x, mlp, recipe(steps=2, **changes))
    assert all(tensor.isfinite().all() for tensor in pair.tensors().values())
