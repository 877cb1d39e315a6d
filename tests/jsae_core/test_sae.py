import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsae_core.sae import GROUP, grouped_top_k, top_k


@given(seed=st.integers(0, 10**6), n=st.integers(0, 5), n_groups=st.integers(1, 12), data=st.data())
def test_the_search_in_two_stages_finds_what_torch_s_own_does_to_the_last_bit(seed, n, n_groups, data):
    k = data.draw(st.integers(1, n_groups))
    generator = torch.Generator().manual_seed(seed)
    values = (
        torch.randperm(n * n_groups * GROUP, generator=generator).view(n, n_groups * GROUP).float() / 7
    )  # none twice
    for ours, expected in zip(grouped_top_k(values, k), torch.topk(values, k), strict=True):
        assert torch.equal(ours, expected)


@given(seed=st.integers(0, 10**6), n_groups=st.integers(1, 8), n_values=st.integers(1, 4), data=st.data())
def test_of_equal_values_each_place_holds_its_value_and_none_is_given_twice(seed, n_groups, n_values, data):
    k = data.draw(st.integers(1, n_groups))
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.tensor([-torch.inf, 0.0, 1.0, torch.nan])[:n_values]
    values = drawn[torch.randint(n_values, (3, n_groups * GROUP), generator=generator)]
    largest, places = grouped_top_k(values, k)
    torch.testing.assert_close(largest, torch.topk(values, k).values, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(values.gather(1, places), largest, rtol=0, atol=0, equal_nan=True)
    assert all(len(set(row)) == k for row in places.tolist())


def test_the_largest_values_may_all_be_in_one_group_or_each_in_another():
    n_groups = 64
    values = torch.zeros(2, n_groups * GROUP)
    values[0, 5::n_groups] = torch.arange(1.0, GROUP + 1)  # a whole group
    values[1, :GROUP] = torch.arange(1.0, GROUP + 1)  # neighbours, which are in different groups
    largest, places = grouped_top_k(values, GROUP)
    assert largest.tolist() == [list(range(GROUP, 0, -1))] * 2
    assert places[0].tolist() == [5 + n_groups * member for member in reversed(range(GROUP))]
    assert places[1].tolist() == list(reversed(range(GROUP)))


@pytest.mark.parametrize("d", [40, 100, 2**14])
def test_the_search_on_a_cpu_is_torch_s_own(d):
    values = torch.randn(3, d, generator=torch.Generator().manual_seed(0))
    for ours, expected in zip(top_k(values, 32), torch.topk(values, 32), strict=True):
        assert torch.equal(ours, expected)
