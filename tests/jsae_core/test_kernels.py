"""The fused kernels against the plain way and autograd in float64: in Triton's interpreter, or, with TRITON_INTERPRET=0
on a machine with a GPU, compiled."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no build for this system, and the kernels are not used on it")

from jsae_core import fused, jacobian, kernels, run_sandwich, train_pair
from jsae_core.tables import Tables
from tests.jsae_core.builders import random_inputs, random_pair

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"
N_TOKENS, N_LATENTS = 5, 40
# off by at most, as a share of the norm; the interpreter multiplies no bfloat16
FEWER_DIGITS = {torch.float16: 2e-3} | ({} if DEVICE == "cpu" else {torch.bfloat16: 1e-2})

plain_and_gated = pytest.mark.parametrize("branches", [1, 2], ids=["plain", "gated"])
# neither powers of two, nor multiples of what is taken at a time, nor as many inputs as outputs
sizes = pytest.mark.parametrize(
    ("k_in", "k_out", "d_mlp"), [(5, 3, 70), (32, 32, 64), (20, 33, 40), (2, 128, 16)], ids=str
)


def close(ours: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> None:
    assert ours.shape == expected.shape
    assert (ours.cpu().double() - expected).norm() <= tolerance * expected.norm()


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operands(k_in: int, k_out: int, d_mlp: int, branches: int):
    """Tables, latents and slopes, in float64 on the CPU."""
    tables = Tables(random(N_LATENTS, branches * d_mlp, seed=0), random(N_LATENTS, d_mlp, seed=1))
    generator = torch.Generator().manual_seed(2)
    latents = [torch.randint(N_LATENTS, (N_TOKENS, k), generator=generator) for k in (k_in, k_out)]
    return tables, *latents, [random(N_TOKENS, d_mlp, seed=3 + branch) for branch in range(branches)]


def on_device(tables: Tables, input_latents, output_latents, slopes, dtype=torch.float32):
    moved = Tables(*(table.to(DEVICE, dtype) for table in tables))
    return moved, input_latents.to(DEVICE), output_latents.to(DEVICE), [slope.to(DEVICE, dtype) for slope in slopes]


def on_host(slopes: list[torch.Tensor]) -> list[torch.Tensor]:
    return [slope.cpu() for slope in slopes]


@sizes
@plain_and_gated
def test_the_fused_jacobian_is_the_plain_one(k_in, k_out, d_mlp, branches):
    given = operands(k_in, k_out, d_mlp, branches)
    close(kernels.jacobian(*on_device(*given)), jacobian.gather_jacobian(*given))


@plain_and_gated
@pytest.mark.parametrize("dtype", FEWER_DIGITS, ids=str)
def test_the_fused_jacobian_of_fewer_digits_is_off_by_their_rounding(dtype, branches):
    given = operands(8, 8, 64, branches)
    ours = kernels.jacobian(*on_device(*given, dtype))
    assert ours.dtype == dtype
    close(ours, jacobian.gather_jacobian(*given), FEWER_DIGITS[dtype])


@plain_and_gated
@pytest.mark.parametrize("dtype", FEWER_DIGITS, ids=str)
def test_the_fused_jacobian_of_rounded_tables_has_the_slopes_dtype_and_is_off_by_their_rounding(dtype, branches):
    given = operands(32, 32, 512, branches)
    tables, *others = on_device(*given)
    rounded = Tables(*(table.to(dtype) for table in tables))
    ours, expected = kernels.jacobian(rounded, *others), jacobian.gather_jacobian(*given)
    assert ours.dtype == torch.float32
    close(ours, expected, FEWER_DIGITS[dtype] / 2)
    # the plain way rounds the rows alone, the kernel what it multiplies too
    plain = jacobian.gather_jacobian(Tables(*(table.cpu() for table in rounded)), *given[1:3], on_host(others[2]))
    assert (plain.double() - expected).norm() <= (ours.cpu().double() - expected).norm()


@sizes
@plain_and_gated
@pytest.mark.parametrize("at_once", [1, 2**29], ids=["few columns at once", "all at once"])
def test_the_fused_gradients_of_the_tables_are_autograd_s(k_in, k_out, d_mlp, branches, at_once, monkeypatch):
    monkeypatch.setattr(kernels, "GRADIENT_ROWS_BYTES", at_once)
    tables, input_latents, output_latents, slopes = given = operands(k_in, k_out, d_mlp, branches)
    weight = random(N_TOKENS, k_out, k_in, seed=9)
    for table in tables:
        table.requires_grad_()
    D = sum(
        tables.inputs[input_latents][..., b * d_mlp : (b + 1) * d_mlp] * slope[:, None]
        for b, slope in enumerate(slopes)
    )
    (weight * (tables.outputs[output_latents] @ D.transpose(1, 2))).sum().backward()
    with torch.no_grad():
        ours = kernels.table_gradients(*on_device(*given), weight.to(DEVICE, torch.float32))
    for gradient, table in zip(ours, tables, strict=True):
        close(gradient, table.grad)


def test_sums_over_the_tokens_of_a_latent_and_products_with_its_row_are_those_of_a_loop():
    latents = torch.randint(10, (N_TOKENS, 6), generator=torch.Generator().manual_seed(0))
    vectors, weights, table = random(N_TOKENS, 70, seed=1), random(N_TOKENS, 6, seed=2), random(12, 70, seed=3)
    sums, products = torch.zeros(12, 70, dtype=torch.float64), torch.zeros(N_TOKENS, 6, dtype=torch.float64)
    for token in range(N_TOKENS):
        for rank, latent in enumerate(latents[token]):
            sums[latent] += weights[token, rank] * vectors[token]
            products[token, rank] = table[latent] @ vectors[token]
    where = kernels.occurrences(latents.to(DEVICE), 12)
    there = {"device": DEVICE, "dtype": torch.float32}
    close(kernels.weighted_sums(vectors.to(**there), weights.to(**there), where), sums)
    close(kernels.row_products(table.to(**there), latents.to(DEVICE), vectors.to(**there)), products)


def test_no_token_is_no_launch():
    tables, input_latents, output_latents, slopes = operands(3, 4, 16, 1)
    none = on_device(tables, input_latents[:0], output_latents[:0], [slope[:0] for slope in slopes])
    assert kernels.jacobian(*none).shape == (0, 4, 3)
    gradients = kernels.table_gradients(*none, torch.zeros(0, 4, 3, device=DEVICE))
    assert not gradients.inputs.any() and not gradients.outputs.any()


@pytest.fixture
def kernels_everywhere(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(fused, "_can_run", lambda device: True)
    for module in ("jacobian", "losses"):
        monkeypatch.setattr(f"jsae_core.{module}.fused_kernels", lambda like, k: kernels)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_a_sandwich_by_the_fused_kernels_is_the_plain_one(gated, kernels_everywhere, monkeypatch):
    pair, x = random_pair("silu", gated, dtype=torch.float32), random_inputs(7, dtype=torch.float32)
    fused_one = run_sandwich(pair.to(DEVICE), x.to(DEVICE))
    monkeypatch.undo()
    for ours, plain in zip(vars(fused_one).values(), vars(run_sandwich(pair.cpu(), x)).values(), strict=True):
        close(ours, plain.double())


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_training_by_the_fused_kernels_takes_the_plain_steps(gated, coefficient, kernels_everywhere, monkeypatch):
    mlp, x = random_pair("silu", gated, dtype=torch.float32).mlp, random_inputs(8, dtype=torch.float32)
    recipe = {"d_sae": 20, "k": 4, "jacobian_coefficient": coefficient, "steps": 3, "batch_tokens": 8}

    def losses(device: str) -> torch.Tensor:
        reports = []
        train_pair(x.to(device), mlp.to(device), recipe, report=reports.append)
        return torch.tensor([[p.input_loss, p.output_loss, p.jacobian_loss] for p in reports], dtype=torch.float64)

    by_kernels = losses(DEVICE)
    monkeypatch.undo()
    plain = losses("cpu")
    assert len(plain) == 3 and plain[0].all() == (coefficient > 0)
    torch.testing.assert_close(by_kernels, plain, rtol=1e-5, atol=0)


def test_the_kernels_are_used_on_cuda_alone_and_for_what_they_can_compute(monkeypatch):
    class Like:
        def __init__(self, device: str, dtype: torch.dtype = torch.float32):
            self.device, self.dtype = torch.device(device), dtype

    monkeypatch.setattr(fused, "_can_run", lambda device: device.index == 0)
    assert fused.fused_kernels(Like("cuda:0"), 128) is kernels
    assert fused.fused_kernels(Like("cuda:0"), 129) is None
    assert fused.fused_kernels(Like("cuda:0", torch.float64), 32) is None
    for elsewhere in ("cuda:1", "cpu", "mps:0"):
        assert fused.fused_kernels(Like(elsewhere), 32) is None
