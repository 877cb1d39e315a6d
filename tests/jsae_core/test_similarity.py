import itertools

import pytest
import torch

from jsae_core import similarity
from jsae_core.similarity import latent_similarity, nearest_latents


def decoder(n: int, d_model: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d_model, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_best_mean_cosine_of_all_ways_to_match_the_rows():
    one, other = decoder(6), decoder(6, seed=1)
    cosines = torch.nn.functional.cosine_similarity(one[:, None].double(), other[None].double(), dim=2)
    best = max(cosines[range(6), list(order)].mean().item() for order in itertools.permutations(range(6)))
    assert latent_similarity(one, other) == pytest.approx(best, rel=1e-9)


def test_the_same_latents_in_another_order_and_of_other_lengths_are_alike():
    one = decoder(40)
    shuffled = one[torch.randperm(40, generator=torch.Generator().manual_seed(3))] * torch.linspace(0.1, 9, 40)[:, None]
    assert latent_similarity(one, shuffled) == pytest.approx(1)
    assert latent_similarity(one, -one) < 0.9


def test_too_many_latents_are_not_matched(monkeypatch):
    monkeypatch.setattr(similarity, "MATCHED_AT_MOST", 3)
    assert latent_similarity(decoder(4), decoder(4)) is None
    assert latent_similarity(decoder(3), decoder(3)) == pytest.approx(1)


def test_decoders_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 5\) and \(6, 5\)"):
        latent_similarity(decoder(4), decoder(6))


def test_the_nearest_latent_is_the_one_of_the_largest_cosine_whatever_the_rows_lengths(monkeypatch):
    monkeypatch.setattr("jsae_core.similarity.ROWS_AT_ONCE", 3)
    one, other = torch.randn(7, 4), torch.randn(5, 4)
    latents, cosines = nearest_latents(3 * one, other / 2)
    expected = torch.nn.functional.cosine_similarity(one[:, None], other[None], dim=2)
    assert latents.tolist() == expected.argmax(dim=1).tolist()
    torch.testing.assert_close(cosines, expected.amax(dim=1))
