import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jsae_core.measures.top_k import among_top_k

K = 3


def decided(values: Tensor, known: Tensor, error: float, looked_at: int) -> tuple[bool, bool]:
    """For latent 0 of `values` [d_sae], from what is known of the first `looked_at` others."""
    rivals = known[1 : 1 + looked_at]
    rest = values[1 + looked_at :]
    inside, undecided = among_top_k(
        values[:1],
        rivals[None],
        torch.ones(1, looked_at, dtype=torch.bool),
        torch.tensor([error], dtype=torch.float64),
        rest.amax()[None] if len(rest) else torch.tensor([-torch.inf], dtype=torch.float64),
        K,
    )
    return inside.item(), undecided.item()


@given(seed=st.integers(0, 10**6), error=st.sampled_from([0.0, 0.01, 0.3, 3.0]), looked_at=st.integers(1, 11))
def test_what_is_decided_is_what_the_true_values_say(seed, error, looked_at):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(12, generator=generator, dtype=torch.float64)
    known = values + error * (2 * torch.rand(12, generator=generator, dtype=torch.float64) - 1)
    inside, undecided = decided(values, known, error, looked_at)
    active = (values > values[0]).sum() < K and values[0] > 0
    assert not (inside and undecided)
    if not undecided:
        # below zero it makes no difference
        assert inside == active or values[0] <= 0


def test_with_exact_rivals_and_a_low_ceiling_everything_is_decided():
    values = torch.tensor([2.0, 5, 4, 1, 0, -1], dtype=torch.float64)
    assert decided(values, values, 0.0, 3) == (True, False)
    values[3] = 3
    assert decided(values, values, 0.0, 3) == (False, False)


def test_a_high_ceiling_leaves_it_open():
    values = torch.tensor([2.0, 1, 1, 9], dtype=torch.float64)
    assert decided(values, values, 0.0, 2) == (False, True)


def test_equal_values_computed_in_another_order_are_left_open():
    values = torch.tensor([2.0, 5, 4, 2, 0], dtype=torch.float64)
    assert decided(values, values * (1 + 1e-16), 0.0, 4) == (False, True)


def test_a_rival_that_does_not_count_is_passed_over():
    value, rivals = torch.tensor([1.0]), torch.tensor([[4.0, 3, 2]])
    for counts, expected in (([True, True, True], False), ([True, False, True], True)):
        inside, undecided = among_top_k(value, rivals, torch.tensor([counts]), 0.0, torch.tensor([0.0]), K)
        assert inside.item() == expected and not undecided.item()


def test_an_error_that_is_not_finite_decides_nothing():
    inside, undecided = among_top_k(
        torch.tensor([1.0]), torch.tensor([[4.0]]), torch.tensor([[True]]), torch.tensor([torch.inf]), torch.zeros(1), K
    )
    assert not inside.item() and undecided.item()
