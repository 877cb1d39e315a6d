import numpy
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsae_core.measures import ablation_samples, samples
from jsae_core.measures.samples import draw_samples
from tests.jsae_core.builders import D_MODEL, K, random_inputs, random_pair

RANKS = ("random", "diagonal", "all")
COLUMNS = ["token", "output_rank", "input_rank", "drawn"]
each_ranks = pytest.mark.parametrize("ranks", RANKS)
# all elements permuted, or some drawn until there are enough
each_way = pytest.mark.parametrize("permuted", [2**22, 0], ids=["permuted", "drawn"])


@pytest.fixture(scope="module")
def pair():
    return random_pair()


@pytest.fixture(scope="module")
def x():
    return random_inputs(9)


def places(drawn: samples.Samples) -> list[tuple[int, int, int]]:
    return list(zip(*(values.tolist() for values in drawn[:3]), strict=True))


def in_order_of_drawing(drawn: samples.Samples) -> list[tuple[int, int, int]]:
    return [place for _, place in sorted(zip(drawn.drawn.tolist(), places(drawn), strict=True))]


def all_places(n_tokens: int, k: int) -> list[tuple[int, int, int]]:
    return [(token, o, i) for token in range(n_tokens) for o in range(k) for i in range(k)]


@each_way
@given(n_tokens=st.integers(1, 9), k=st.integers(1, 5), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_random_samples_are_as_many_as_asked_for_all_distinct_and_in_token_order(permuted, n_tokens, k, seed, data):
    n_samples = data.draw(st.integers(1, n_tokens * k * k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "PERMUTED", permuted)
        drawn = places(draw_samples(n_tokens, k, n_samples, "random", seed))
    assert len(drawn) == n_samples
    assert drawn == sorted(set(drawn))
    assert set(drawn) <= set(all_places(n_tokens, k))


@each_way
@given(n_tokens=st.integers(1, 9), k=st.integers(1, 5), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_with_the_same_seed_a_larger_sample_begins_with_every_smaller_one(permuted, n_tokens, k, seed, data):
    available = n_tokens * k * k
    larger = data.draw(st.integers(1, available) | st.integers(max(1, available - 2), available))
    smaller = data.draw(st.integers(1, larger))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "PERMUTED", permuted)
        of_few, of_many = (draw_samples(n_tokens, k, n, "random", seed) for n in (smaller, larger))
    first = of_many.drawn < smaller
    for few, many in zip(of_few, of_many, strict=True):
        assert torch.equal(few, many[first])


@pytest.mark.parametrize("n_tokens", [4000, 10**7], ids=["permuted", "drawn"])
def test_a_small_sample_of_a_large_stream_is_part_of_a_larger_one(n_tokens):
    of_few, of_many = (draw_samples(n_tokens, 32, n, "random", 5) for n in (100, 20_000))
    assert in_order_of_drawing(of_many)[:100] == in_order_of_drawing(of_few)
    assert set(places(of_few)) < set(places(of_many))


def test_all_of_many_elements_are_drawn_evenly_and_begin_with_a_smaller_sample(monkeypatch):
    monkeypatch.setattr(samples, "PERMUTED", 10_000)
    n_tokens, k = 1000, 8
    of_few, of_all = (draw_samples(n_tokens, k, n, "random", 1) for n in (1000, None))
    assert in_order_of_drawing(of_all)[:1000] == in_order_of_drawing(of_few)
    assert places(of_all) == all_places(n_tokens, k)
    # of each token about 16 elements are in each quarter of the order of drawing, with a standard deviation of 3.5
    quarters = of_all.drawn // (16 * n_tokens)
    counts = torch.bincount(quarters * n_tokens + of_all.token).double().view(4, n_tokens)
    assert counts.min() >= 1 and counts.max() < 32
    torch.testing.assert_close(counts.std(dim=1), torch.full((4,), 3.5, dtype=torch.float64), rtol=0.1, atol=0)


@each_ranks
@each_way
@given(n_samples=st.integers(1, 27), seed=st.integers(0, 99))
def test_every_place_in_the_order_of_drawing_is_taken_once(ranks, permuted, n_samples, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "PERMUTED", permuted)
        drawn = draw_samples(9, 3, n_samples, ranks, seed).drawn
    assert sorted(drawn.tolist()) == list(range(n_samples))


@pytest.mark.parametrize("ranks", ["diagonal", "all"])
def test_without_chance_the_order_of_drawing_is_that_of_the_tokens(ranks):
    assert draw_samples(5, 3, 11, ranks, 0).drawn.tolist() == list(range(11))


@each_way
def test_no_seed_gives_fewer_random_samples_than_asked_for(permuted, monkeypatch):
    monkeypatch.setattr(samples, "PERMUTED", permuted)
    for n_samples in range(1, 7):
        counts = {len(set(places(draw_samples(6, 1, n_samples, "random", seed)))) for seed in range(600)}
        assert counts == {n_samples}


@each_way
def test_every_element_is_drawn_about_equally_often(permuted, monkeypatch):
    monkeypatch.setattr(samples, "PERMUTED", permuted)
    n_tokens, k, n_samples, rounds = 5, 2, 4, 2000
    counts = numpy.zeros((n_tokens, k, k))
    for seed in range(rounds):
        for place in places(draw_samples(n_tokens, k, n_samples, "random", seed)):
            counts[place] += 1
    # 400 expected each, with a standard deviation of 18
    assert counts.min() > 320 and counts.max() < 480


@each_way
def test_every_element_is_about_equally_often_at_every_place_in_the_order_of_drawing(permuted, monkeypatch):
    monkeypatch.setattr(samples, "PERMUTED", permuted)
    n, rounds = 6, 2400
    counts = numpy.zeros((n, n))
    for seed in range(rounds):
        drawn = draw_samples(n, 1, n, "random", seed)
        counts[drawn.token, drawn.drawn] += 1
    # 400 expected each, with a standard deviation of 18
    assert counts.min() > 320 and counts.max() < 480


def test_a_large_sample_is_spread_evenly_over_tokens_and_ranks():
    token, output_rank, input_rank, _ = draw_samples(10_000, 32, 64_000, "random", 0)
    for values, size in ((token // 1000, 10), (output_rank, 32), (input_rank, 32)):
        share = torch.bincount(values, minlength=size) / 64_000 * size
        assert share.min() > 0.9 and share.max() < 1.1


def test_a_sample_of_more_elements_than_memory_holds_is_drawn_all_the_same():
    drawn = draw_samples(10**9, 32, 1000, "random", 0)
    assert len(set(places(drawn))) == 1000
    assert drawn.token.max() > 2**29


@pytest.mark.parametrize("n_samples", [5, 60])
def test_a_seed_decides_the_random_sample(n_samples):
    one, again, other = (in_order_of_drawing(draw_samples(9, 3, n_samples, "random", seed)) for seed in (7, 7, 8))
    assert one == again != other


def test_drawing_leaves_the_global_random_numbers_alone():
    torch.manual_seed(0)
    numpy.random.seed(0)
    expected = torch.rand(1).item(), numpy.random.rand()
    torch.manual_seed(0)
    numpy.random.seed(0)
    draw_samples(9, 3, 5, "random", 0)
    assert (torch.rand(1).item(), numpy.random.rand()) == expected


@pytest.mark.parametrize("ranks", ["random", "all"])
def test_no_number_of_samples_means_every_element_once(ranks):
    assert places(draw_samples(3, 4, None, ranks, 0)) == all_places(3, 4)


def test_the_diagonal_pairs_equal_ranks_in_token_order():
    expected = [(token, rank, rank) for token in range(3) for rank in range(4)]
    assert places(draw_samples(3, 4, None, "diagonal", 0)) == expected
    assert places(draw_samples(3, 4, 6, "diagonal", 0)) == expected[:6]


def test_fewer_than_all_elements_are_the_first_in_token_order():
    assert places(draw_samples(3, 4, 21, "all", 0)) == all_places(3, 4)[:21]


@each_ranks
def test_with_one_latent_a_token_the_ranks_agree(ranks):
    assert places(draw_samples(5, 1, None, ranks, 0)) == [(token, 0, 0) for token in range(5)]


@given(size=st.integers(1, 40))
def test_splitting_a_sample_loses_and_reorders_nothing(size):
    drawn = draw_samples(5, 3, 31, "random", 0)
    parts = drawn.split(size)
    assert [len(part.token) for part in parts[:-1]] == [size] * (len(parts) - 1)
    for whole, pieces in zip(drawn, zip(*parts, strict=True), strict=True):
        assert torch.equal(torch.cat(pieces), whole)


@each_ranks
def test_more_samples_than_the_tokens_hold_are_refused_with_how_many_there_are(ranks):
    held = 3 * (4 if ranks == "diagonal" else 16)
    with pytest.raises(ValueError, match=f"n_samples is {held + 1}, but 3 tokens with k 4 hold {held} samples"):
        draw_samples(3, 4, held + 1, ranks, 0)


@each_ranks
@pytest.mark.parametrize("n_samples", [0, -1])
def test_a_number_of_samples_below_one_is_refused(ranks, n_samples):
    with pytest.raises(ValueError, match=f"n_samples is {n_samples}.*expected a number from 1"):
        draw_samples(3, 4, n_samples, ranks, 0)


def test_unknown_ranks_are_refused_naming_those_there_are():
    with pytest.raises(ValueError, match="'best'.*'random', 'diagonal' or 'all'"):
        draw_samples(3, 4, 1, "best", 0)


@each_ranks
def test_the_rows_of_a_table_are_the_sample_that_was_drawn(pair, x, ranks):
    frame = ablation_samples(pair, [x], 20, ranks, seed=3)
    expected = draw_samples(len(x), K, 20, ranks, 3)
    pandas.testing.assert_frame_equal(
        frame[COLUMNS], pandas.DataFrame({name: values.numpy() for name, values in expected._asdict().items()})
    )


@pytest.mark.parametrize("stream", [[], [torch.zeros(0, D_MODEL, dtype=torch.float64)]], ids=["nothing", "no tokens"])
def test_an_empty_stream_is_refused(pair, stream):
    with pytest.raises(ValueError, match="empty"):
        ablation_samples(pair, stream)
