import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jsae_core import SAEPair, jacobian, run_sandwich
from tests.jsae_core.builders import (
    D_MODEL,
    D_SAE,
    K,
    artifact_config,
    mlp_tensors,
    random_inputs,
    random_mlp,
    random_pair,
    random_sae_tensors,
    write_artifact,
)

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda z: F.gelu(z, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
plain_and_gated = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])


def sorted_latents(pre_activation: Tensor, k: int) -> list[int]:
    """The k largest of one token's pre-activations, largest first, without topk."""
    values = pre_activation.tolist()
    return sorted(range(len(values)), key=lambda latent: -values[latent])[:k]


def autograd_jacobian(tensors: dict[str, Tensor], phi, x: Tensor, k: int) -> Tensor:
    """d(output latents before TopK and ReLU) / d(input latents), by autograd, of one token; from the tensors alone."""

    def mlp(x: Tensor) -> Tensor:
        hidden = x @ tensors["mlp.W_in"] + tensors["mlp.b_in"]
        if "mlp.W_gate" in tensors:
            hidden = phi(x @ tensors["mlp.W_gate"] + tensors["mlp.b_gate"]) * hidden
        else:
            hidden = phi(hidden)
        return hidden @ tensors["mlp.W_out"] + tensors["mlp.b_out"]

    def encode(side: str, x: Tensor) -> Tensor:
        return x @ tensors[f"_W_enc{side}"] + tensors[f"_b_enc{side}"]

    inputs, outputs = sorted_latents(encode("", x), k), sorted_latents(encode("_out", mlp(x)), k)

    def of_latents(change: Tensor) -> Tensor:
        return encode("_out", mlp(x + change @ tensors["_W_dec"][inputs]))[outputs]

    return torch.autograd.functional.jacobian(of_latents, torch.zeros(k, dtype=x.dtype))


@each_activation
@plain_and_gated
def test_at_the_reconstruction_the_mlp_is_given_what_the_input_sae_makes_of_its_input(activation, gated):
    pair, x = random_pair(activation, gated), random_inputs(6)
    sandwich = run_sandwich(pair, x, at="reconstruction")
    x_hat = pair.input_sae.decode(pair.input_sae.encode(x))
    torch.testing.assert_close(sandwich.mlp_output, pair.mlp(x_hat))
    assert torch.equal(sandwich.input_latents, run_sandwich(pair, x).input_latents)
    phi = ACTIVATIONS[activation]
    for token in range(len(x)):

        def of_latents(change, token=token):
            moved = x_hat[token] + change @ pair.input_sae.W_dec[sandwich.input_latents[token]]
            tensors = pair.tensors()
            hidden = moved @ tensors["mlp.W_in"] + tensors["mlp.b_in"]
            if gated:
                hidden = phi(moved @ tensors["mlp.W_gate"] + tensors["mlp.b_gate"]) * hidden
            else:
                hidden = phi(hidden)
            y = hidden @ tensors["mlp.W_out"] + tensors["mlp.b_out"]
            return (y @ tensors["_W_enc_out"])[sandwich.output_latents[token]]

        expected = torch.autograd.functional.jacobian(of_latents, torch.zeros(K, dtype=x.dtype))
        torch.testing.assert_close(sandwich.jacobian[token], expected, rtol=1e-10, atol=1e-12)


def test_an_unknown_place_to_evaluate_at_is_refused():
    with pytest.raises(ValueError, match="at is 'output'; expected one of input, reconstruction"):
        run_sandwich(random_pair(), random_inputs(2), at="output")


def loop_jacobian(pair: SAEPair, x: Tensor) -> Tensor:
    """The sum over hidden units as it stands in the paper, one element after another, plain MLPs with relu only."""
    mlp, (W_enc_out, W_dec) = pair.mlp, (pair.output_sae.W_enc, pair.input_sae.W_dec)
    z = x @ mlp.W_in + mlp.b_in
    y = F.relu(z) @ mlp.W_out + mlp.b_out
    inputs = sorted_latents(x @ pair.input_sae.W_enc + pair.input_sae.b_enc, K)
    outputs = sorted_latents(y @ W_enc_out + pair.output_sae.b_enc, K)
    result = torch.zeros(K, K, dtype=x.dtype)
    for row, o in enumerate(outputs):
        for column, i in enumerate(inputs):
            for m in range(len(z)):
                reads, moves = mlp.W_out[m] @ W_enc_out[:, o], W_dec[i] @ mlp.W_in[:, m]
                result[row, column] += reads * (z[m] > 0) * moves
    return result


@each_activation
@plain_and_gated
def test_the_jacobian_is_what_autograd_says_in_float64(activation, gated):
    pair, x = random_pair(activation, gated), random_inputs(9)
    jacobians = run_sandwich(pair, x).jacobian
    for token, ours in zip(x, jacobians, strict=True):
        expected = autograd_jacobian(pair.tensors(), ACTIVATIONS[activation], token, K)
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


@each_activation
@plain_and_gated
def test_a_pair_read_from_an_artifact_has_autograd_s_jacobian(activation, gated, tmp_path):
    tensors = random_sae_tensors() | mlp_tensors(random_mlp(activation, gated))
    directory = write_artifact(tmp_path, tensors, artifact_config(dtype="torch.float64", mlp_activation=activation))
    pair, x = SAEPair.load(directory), random_inputs(5)
    for token, ours in zip(x, run_sandwich(pair, x).jacobian, strict=True):
        expected = autograd_jacobian(tensors, ACTIVATIONS[activation], token, K)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


@plain_and_gated
def test_a_saved_and_loaded_pair_has_autograd_s_jacobian(gated, tmp_path):
    original, x = random_pair("gelu_new", gated), random_inputs(5)
    original.save(tmp_path)
    for token, ours in zip(x, run_sandwich(SAEPair.load(tmp_path), x).jacobian, strict=True):
        expected = autograd_jacobian(original.tensors(), ACTIVATIONS["gelu_new"], token, K)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_the_jacobian_is_the_paper_s_sum_taken_one_element_at_a_time():
    pair, x = random_pair("relu"), random_inputs(3)
    expected = torch.stack([loop_jacobian(pair, token) for token in x])
    torch.testing.assert_close(run_sandwich(pair, x).jacobian, expected, rtol=0, atol=1e-10)


def test_a_jacobian_computed_by_hand():
    one = torch.ones(1, 1, dtype=torch.float64)
    tensors = {f"_{name}{side}": 0 * one[0] for name in ("b_enc", "b_dec") for side in ("", "_out")}
    tensors |= {"_W_enc": one, "_W_enc_out": 2 * one, "_W_dec": 3 * one, "_W_dec_out": one}
    tensors |= {"mlp.W_in": 5 * one, "mlp.W_out": 7 * one, "mlp.b_in": one[0], "mlp.b_out": one[0]}
    config = random_pair("relu", d_model=1, d_sae=1, k=1).config
    sandwich = run_sandwich(SAEPair.from_tensors(tensors, config), torch.tensor([1.0], dtype=torch.float64))
    assert sandwich.mlp_output.tolist() == [43.0]  # 7 relu(5 + 1) + 1
    assert sandwich.output_activations.tolist() == [86.0]
    assert sandwich.jacobian.tolist() == [[3 * 5 * 7 * 2]]


def test_latents_come_in_descending_order_of_pre_activation():
    pair, x = random_pair(), random_inputs(9)
    sandwich = run_sandwich(pair, x)
    for side, latents, fed in (
        (pair.input_sae, sandwich.input_latents, x),
        (pair.output_sae, sandwich.output_latents, pair.mlp(x)),
    ):
        expected = [sorted_latents(row, K) for row in fed @ side.W_enc + side.b_enc]
        assert latents.tolist() == expected


def test_b_dec_is_taken_off_before_encoding_only_where_the_config_says_so():
    x = random_inputs(9)
    for apply in (False, True):
        pair = random_pair(apply_b_dec_to_input=apply)
        pre = (x - pair.input_sae.b_dec * apply) @ pair.input_sae.W_enc + pair.input_sae.b_enc
        assert run_sandwich(pair, x).input_latents.tolist() == [sorted_latents(row, K) for row in pre]
    latents = [run_sandwich(random_pair(apply_b_dec_to_input=apply), x).input_latents for apply in (False, True)]
    assert not torch.equal(*latents)


def test_a_latent_kept_below_zero_has_no_activation_but_stays_in_the_jacobian():
    tensors = random_pair().tensors()
    tensors["_b_enc"] -= 100
    tensors["_b_enc_out"] -= 1000
    pair, x = SAEPair.from_tensors(tensors, random_pair().config), random_inputs(4)
    sandwich = run_sandwich(pair, x)
    assert not sandwich.input_activations.any() and not sandwich.output_activations.any()
    for token, ours in zip(x, sandwich.jacobian, strict=True):
        torch.testing.assert_close(ours, autograd_jacobian(tensors, F.gelu, token, K), rtol=0, atol=1e-10)
    assert (sandwich.jacobian.abs() > 1e-6).all()


def test_the_jacobian_is_taken_at_the_true_input_whatever_the_input_sae_reconstructs():
    tensors = random_pair().tensors()
    shifted = tensors | {"_b_dec": tensors["_b_dec"] + 10}
    config, x = random_pair().config, random_inputs(4)
    torch.testing.assert_close(
        run_sandwich(SAEPair.from_tensors(shifted, config), x).jacobian,
        run_sandwich(SAEPair.from_tensors(tensors, config), x).jacobian,
        rtol=0,
        atol=0,
    )


def test_the_output_is_the_mlp_s_true_output():
    pair, x = random_pair("silu", gated=True), random_inputs(4)
    torch.testing.assert_close(run_sandwich(pair, x).mlp_output, pair.mlp(x), rtol=0, atol=1e-12)


@plain_and_gated
def test_a_token_s_jacobian_does_not_depend_on_the_batch_it_comes_in(gated):
    pair, x = random_pair("gelu", gated), random_inputs(9)
    alone = torch.stack([run_sandwich(pair, token).jacobian for token in x])
    torch.testing.assert_close(run_sandwich(pair, x).jacobian, alone, rtol=0, atol=1e-12)


@plain_and_gated
@pytest.mark.parametrize("kept_bytes", [1, 2000])
def test_small_kept_buffers_change_no_jacobian(gated, kept_bytes, monkeypatch):
    pair, x = random_pair("gelu", gated), random_inputs(9)
    at_once = run_sandwich(pair, x).jacobian
    monkeypatch.setattr(jacobian, "GATHER_BYTES", kept_bytes)
    torch.testing.assert_close(run_sandwich(pair, x).jacobian, at_once, rtol=0, atol=1e-12)


def test_all_leading_dimensions_are_kept():
    pair, x = random_pair(), random_inputs(6)
    flat, shaped, single = run_sandwich(pair, x), run_sandwich(pair, x.reshape(2, 3, D_MODEL)), run_sandwich(pair, x[0])
    for name in vars(flat):
        expected = getattr(flat, name)
        in_shape = expected.reshape(2, 3, *expected.shape[1:])
        torch.testing.assert_close(getattr(shaped, name), in_shape, rtol=0, atol=1e-12)
        torch.testing.assert_close(getattr(single, name), expected[0], rtol=0, atol=1e-12)


def test_no_tokens_give_an_empty_jacobian():
    assert run_sandwich(random_pair(), random_inputs(0)).jacobian.shape == (0, K, K)


def test_an_input_of_the_wrong_width_is_refused_with_the_width_expected():
    with pytest.raises(ValueError, match=rf"\(3, {D_MODEL + 1}\).*d_in, {D_MODEL}"):
        run_sandwich(random_pair(), random_inputs(3, D_MODEL + 1))


def test_an_input_of_another_dtype_is_refused_naming_both():
    with pytest.raises(ValueError, match=r"torch\.float32.*torch\.float64"):
        run_sandwich(random_pair(), random_inputs(3, dtype=torch.float32))


def test_replacing_a_weight_any_number_of_times_changes_the_jacobian_with_it():
    pair, x = random_pair(), random_inputs(2)
    run_sandwich(pair, x)
    for seed in range(20, 60):
        # earlier weights are freed on the way, so their addresses come round again
        for draw in range(2):
            tensors = random_sae_tensors(seed=2 * seed + draw)
            pair.input_sae.W_dec = torch.nn.Parameter(tensors["_W_dec"], requires_grad=False)
            del tensors
        expected = autograd_jacobian(pair.tensors(), F.gelu, x[0], K)
        torch.testing.assert_close(run_sandwich(pair, x).jacobian[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("weight", ["input_sae.W_dec", "output_sae.W_enc", "mlp.W_in", "mlp.W_out", "mlp.W_gate"])
def test_changing_a_weight_in_place_changes_the_jacobian_with_it(weight):
    pair, x = random_pair("gelu", gated=True), random_inputs(2)
    run_sandwich(pair, x)
    part, name = weight.split(".")
    with torch.no_grad():
        getattr(getattr(pair, part), name).mul_(1.5)
    expected = autograd_jacobian(pair.tensors(), F.gelu, x[0], K)
    torch.testing.assert_close(run_sandwich(pair, x).jacobian[0], expected, rtol=0, atol=1e-10)


def test_the_tables_are_built_once_for_any_number_of_sandwiches():
    pair, x = random_pair(), random_inputs(2)
    tables = pair.tables()
    run_sandwich(pair, x)
    assert pair.tables() is tables


@pytest.mark.parametrize(
    "convert", [lambda pair: pair.double(), lambda pair: pair.to(torch.float64)], ids=["double", "to"]
)
def test_a_pair_moved_to_float64_computes_in_float64(convert):
    x = random_inputs(4)
    pair = convert(random_pair(dtype=torch.float32))
    sandwich = run_sandwich(pair, x)
    for token, ours in zip(x, sandwich.jacobian, strict=True):
        expected = autograd_jacobian(pair.tensors(), F.gelu, token, K)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    pre_activation = x @ pair.input_sae.W_enc + pair.input_sae.b_enc
    expected = pre_activation.gather(1, sandwich.input_latents).relu()
    torch.testing.assert_close(sandwich.input_activations, expected, rtol=0, atol=1e-12)
    assert pair.config.dtype == "float64"


@each_activation
@plain_and_gated
def test_the_training_term_is_the_mean_of_the_batched_jacobian_s_magnitude(activation, gated):
    pair, x = random_pair(activation, gated), random_inputs(5)
    sandwich = run_sandwich(pair, x)
    latents, slopes = (sandwich.input_latents, sandwich.output_latents), pair.mlp.respond(x).slopes
    mean = jacobian.jacobian_penalty(pair.input_sae.W_dec, pair.output_sae.W_enc, pair.mlp, *latents, slopes)
    torch.testing.assert_close(mean, sandwich.jacobian.abs().mean(), rtol=0, atol=1e-12)


@plain_and_gated
@pytest.mark.parametrize("rows_at_once", [1, 2**20])
def test_the_training_term_s_gradient_is_that_of_finite_differences(gated, rows_at_once, monkeypatch):
    monkeypatch.setattr(jacobian, "GATHER_BYTES", rows_at_once)
    pair, x = random_pair("gelu", gated, d_model=4, d_mlp=5, d_sae=6, k=2), random_inputs(3, 4)
    sandwich, slopes = run_sandwich(pair, x), pair.mlp.respond(x).slopes
    latents = (sandwich.input_latents, sandwich.output_latents)

    def of_weights(W_dec_in: Tensor, W_enc_out: Tensor) -> Tensor:
        return jacobian.jacobian_penalty(W_dec_in, W_enc_out, pair.mlp, *latents, slopes)

    weights = (pair.input_sae.W_dec.clone(), pair.output_sae.W_enc.clone())
    assert torch.autograd.gradcheck(of_weights, tuple(weight.requires_grad_() for weight in weights))


@plain_and_gated
def test_the_training_term_builds_and_moves_the_rows_of_active_latents_alone(gated, monkeypatch):
    pair, x = random_pair("silu", gated), random_inputs(1)
    sandwich, slopes, built = run_sandwich(pair, x), pair.mlp.respond(x).slopes, []
    build = jacobian.build_tables
    monkeypatch.setattr(jacobian, "build_tables", lambda *weights: built.append(build(*weights)) or built[-1])
    W_dec_in, W_enc_out = (w.clone().requires_grad_() for w in (pair.input_sae.W_dec, pair.output_sae.W_enc))
    latents = (sandwich.input_latents, sandwich.output_latents)
    jacobian.jacobian_penalty(W_dec_in, W_enc_out, pair.mlp, *latents, slopes).backward()
    assert [(len(tables.inputs), len(tables.outputs)) for tables in built] == [(K, K)]
    for gradient, active in zip((W_dec_in.grad, W_enc_out.grad.T), latents, strict=True):
        assert gradient.any(dim=1).nonzero().flatten().tolist() == sorted(active.flatten().tolist())


def test_tables_have_one_row_a_latent():
    tables = random_pair("silu", gated=True, d_mlp=7).tables()
    assert tables.inputs.shape == (D_SAE, 2 * 7) and tables.outputs.shape == (D_SAE, 7)
