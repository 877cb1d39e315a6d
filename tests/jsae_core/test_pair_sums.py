import pytest
import torch

from jsae_core.measures import pair_sums
from jsae_core.measures.pair_sums import PairSums, sums_fit

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
D_SAE, N_TOKENS, K = 9, 40, 3


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """|J|, input and output latents."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.rand(N_TOKENS, K, K, generator=generator, dtype=torch.float64)
    latents = torch.rand(2, N_TOKENS, D_SAE, generator=generator).argsort(dim=2)[..., :K]
    return magnitude, *latents


def means(batches, counts) -> torch.Tensor:
    sums = PairSums(D_SAE, CPU)
    for magnitude, inputs, outputs in batches:
        sums.add(magnitude, inputs, outputs)
    return torch.cat([means for means, _ in sums.means(counts, 1.0)])


def counted(outputs: torch.Tensor) -> torch.Tensor:
    return torch.bincount(outputs.flatten(), minlength=D_SAE)


@pytest.mark.parametrize("n_tokens", [1, N_TOKENS])
def test_the_means_are_off_by_at_most_what_is_stated(n_tokens):
    magnitude, inputs, outputs = (tensor[:n_tokens] for tensor in drawn())
    magnitude = 0.501 * magnitude / magnitude.max()  # just above a power of two, of which the unit is the largest share
    expected, counts = torch.zeros(D_SAE, D_SAE, dtype=torch.float64), counted(outputs)
    expected.index_put_((outputs[:, :, None], inputs[:, None]), magnitude, accumulate=True)
    expected /= counts.clamp(min=1)[:, None]
    ours = means([(magnitude, inputs, outputs)], counts)
    assert 0 < (ours - expected).abs().max() <= 2.0**-32 * magnitude.max()


def test_the_sums_are_the_same_in_every_order():
    magnitude, inputs, outputs = drawn()
    counts = counted(outputs)
    first = (magnitude[:1], inputs[:1], outputs[:1])  # the first batch sets the unit
    rest = [tensor[1:] for tensor in (magnitude, inputs, outputs)]
    order = torch.randperm(N_TOKENS - 1, generator=torch.Generator().manual_seed(1))
    shuffled = [tensor[order] for tensor in rest]
    assert torch.equal(means([first, rest], counts), means([first, shuffled], counts))


def test_a_batch_of_zeros_may_come_first():
    magnitude, inputs, outputs = drawn()
    counts = counted(outputs)
    ours = means([(0 * magnitude, inputs, outputs), (magnitude, inputs, outputs)], counts)
    torch.testing.assert_close(ours, means([(magnitude, inputs, outputs)], counts), rtol=1e-8, atol=1e-9)


def test_more_than_there_is_room_for_is_refused():
    magnitude, inputs, outputs = drawn()
    sums = PairSums(D_SAE, CPU)
    sums.add(magnitude, inputs, outputs)
    with pytest.raises(OverflowError, match="room for; measure fewer tokens"):
        list(sums.means(counted(outputs), 2.0**31))


def test_a_sum_for_every_pair_is_kept_where_it_fits(monkeypatch):
    monkeypatch.setattr(pair_sums, "available_bytes", lambda device: 80 * 10**9 if device == CUDA else None)
    assert sums_fit(2048, CPU) and not sums_fit(4096, CPU)
    assert sums_fit(49152, CUDA) and not sums_fit(65536, CUDA)
    assert not sums_fit(64, torch.device("mps"))
