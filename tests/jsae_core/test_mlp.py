import pytest
import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

from jsae_core.mlp import MLP, activation_function
from tests.jsae_core.builders import D_MLP, D_MODEL, random_inputs, random_mlp

# PReLU and xIELU are left out: their slope is learned, so the name alone does not say what they compute.
ELEMENTWISE = sorted(set(ACT2FN) - {"prelu", "xielu"})
TORCH_ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda z: F.gelu(z, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


@pytest.mark.parametrize("name", TORCH_ACTIVATIONS)
def test_a_plain_mlp_is_its_formula_with_the_named_activation(name):
    mlp, x = random_mlp(name), random_inputs(7)
    expected = TORCH_ACTIVATIONS[name](x @ mlp.W_in + mlp.b_in) @ mlp.W_out + mlp.b_out
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", TORCH_ACTIVATIONS)
def test_a_gated_mlp_applies_its_activation_to_the_gate_alone(name):
    mlp, x = random_mlp(name, gated=True), random_inputs(7)
    gate = TORCH_ACTIVATIONS[name](x @ mlp.W_gate + mlp.b_gate)
    expected = (gate * (x @ mlp.W_in + mlp.b_in)) @ mlp.W_out + mlp.b_out
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_respond_gives_the_same_output_as_the_forward_pass(gated):
    mlp, x = random_mlp("gelu", gated), random_inputs(7)
    torch.testing.assert_close(mlp.respond(x).output, mlp(x), rtol=0, atol=0)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_slopes_times_branches_are_the_derivative_for_every_activation_hugging_face_names(name, gated):
    mlp = random_mlp(name, gated)
    x = random_inputs(3)
    for row in x:
        response = mlp.respond(row)
        chained = sum((branch * slope) @ mlp.W_out for branch, slope in zip(mlp.branches, response.slopes, strict=True))
        derivative = torch.autograd.functional.jacobian(mlp, row).T
        torch.testing.assert_close(chained, derivative, rtol=0, atol=1e-10)


def test_a_plain_relu_mlp_computed_by_hand():
    mlp = MLP(
        W_in=torch.tensor([[1.0, -1.0], [2.0, 0.0]]),
        W_out=torch.tensor([[3.0, 0.0], [0.0, 5.0]]),
        activation="relu",
        b_in=torch.tensor([1.0, 0.0]),
        b_out=torch.tensor([0.5, 0.5]),
    )
    response = mlp.respond(torch.tensor([1.0, 1.0]))  # hidden: relu(1 + 2 + 1, -1) = (4, 0)
    assert response.output.tolist() == [12.5, 0.5]
    assert [slope.tolist() for slope in response.slopes] == [[1.0, 0.0]]


def test_a_gated_mlp_s_slopes_computed_by_hand():
    one = torch.ones(1, 1)
    mlp = MLP(W_in=3 * one, W_out=one, activation="relu", W_gate=2 * one)
    response = mlp.respond(torch.tensor([1.0]))  # relu(2) * 3
    assert response.output.tolist() == [6.0]
    assert [slope.tolist() for slope in response.slopes] == [[3.0], [2.0]]  # u for the gate, relu(gate) for the other


@pytest.mark.parametrize("centred", [False, True], ids=["", "centred"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_a_folded_mlp_gives_at_z_what_the_mlp_gives_at_gain_times_z_plus_bias(gated, centred):
    mlp, z, (gain, bias) = random_mlp("silu", gated), random_inputs(5), random_inputs(2, seed=9)
    if centred:
        z = z - z.mean(dim=1, keepdim=True)
    expected, folded = mlp(gain * z + bias), mlp.folded(gain, bias, centred)
    if centred:
        expected = expected - expected.mean(dim=1, keepdim=True)
        torch.testing.assert_close(folded.W_in.mean(dim=0), torch.zeros_like(folded.b_in), rtol=0, atol=1e-12)
    torch.testing.assert_close(folded(z), expected, rtol=0, atol=1e-10)


def test_biases_that_a_model_lacks_are_zeros():
    whole = random_mlp("silu", gated=True)
    bare = MLP(whole.W_in, whole.W_out, "silu", W_gate=whole.W_gate)
    for bias in ("b_in", "b_out", "b_gate"):
        assert not getattr(bare, bias).any()
    assert bare.W_in.dtype == bare.b_in.dtype


def test_respond_keeps_no_graph_even_where_gradients_are_on():
    response = random_mlp("gelu", gated=True).respond(random_inputs(2).requires_grad_())
    assert not any(tensor.requires_grad for tensor in (response.output, *response.slopes))


@pytest.mark.parametrize("activation", ["prelu", "xielu"])
def test_an_activation_whose_slope_is_learned_is_refused(activation):
    with pytest.raises(ValueError, match=f"{activation}.*learned parameters"):
        random_mlp(activation)


def test_any_leading_dimensions_are_kept():
    mlp, x = random_mlp("gelu", gated=True), random_inputs(6)
    response, shaped = mlp.respond(x), mlp.respond(x.reshape(2, 3, D_MODEL))
    torch.testing.assert_close(shaped.output, response.output.reshape(2, 3, D_MODEL), rtol=0, atol=1e-12)
    for ours, theirs in zip(shaped.slopes, response.slopes, strict=True):
        torch.testing.assert_close(ours, theirs.reshape(2, 3, D_MLP), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "said"), [("gelu_newish", "did you mean gelu_new"), ("qqqq", "expected one of .*gelu_new.*relu")]
)
def test_an_unknown_activation_is_refused_with_its_name_and_the_nearest_or_what_there_is(name, said):
    with pytest.raises(ValueError, match=f"'{name}'; {said}"):
        activation_function(name)


@pytest.mark.parametrize("name", ["W_out", "b_in", "b_out", "W_gate", "b_gate"])
def test_a_tensor_of_the_wrong_shape_is_refused_with_its_name(name):
    mlp = random_mlp("gelu", gated=True)
    tensors = {key: getattr(mlp, key) for key in ("W_in", "W_out", "b_in", "b_out", "W_gate", "b_gate")}
    tensors[name] = tensors[name][:-1]
    with pytest.raises(ValueError, match=rf"mlp\.{name} has shape .*expected"):
        MLP(activation="gelu", **tensors)
