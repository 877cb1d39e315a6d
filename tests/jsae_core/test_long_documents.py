"""Standard errors where long documents are cut into pieces: pieces of one document count as that document."""

import math

import numpy
import pytest
import torch
from torch import Tensor

from jsae_core import MLPInputs, load_language_model, run_sandwich
from jsae_core.activations import FirstDocuments, with_documents
from jsae_core.checkpoints import Checkpoint
from jsae_core.measures import (
    ablation_samples,
    ablation_summary,
    jacobian_measures,
    latent_activity,
    measure_shard,
    measured_quality,
    merge_shards,
    pair_quality,
    reconstruction_quality,
)
from jsae_core.text import join_documents
from tests.jsae_core.builders import D_MODEL, random_inputs, random_pair, save_language_model
from tests.jsae_core.streamed_measures import (
    BATCH_TOKENS,
    MEASURES,
    Ends,
    Interrupted,
    assert_same,
    pair_on,
    random_documents,
)

BY_DOCUMENT = ("jacobian_measures", "ablation_samples", "latent_accountings", "latent_activity", "measured_quality")
SOURCES = [0, 0, 1, 2, 2, 2, 3, 4, 4, 5]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_language_model(save_language_model(tmp_path_factory.mktemp("lm")))


@pytest.fixture(scope="module")
def pair(lm):
    return pair_on(lm)


@pytest.fixture(scope="module")
def pieces(lm):
    return random_documents(lm.n_vocabulary, len(SOURCES))


@pytest.mark.parametrize("sources", [SOURCES[:-1], [*SOURCES, 6, 7], SOURCES[:5], [1], [], [1, *SOURCES[1:]]])
def test_sources_that_are_not_one_for_each_document_or_do_not_ascend_are_refused(lm, pair, pieces, sources):
    for use in (
        lambda: MLPInputs(lm, pieces, 1, sources=sources),
        lambda: pair_quality(pair, lm, pieces, sources=sources),
        lambda: join_documents(pieces, sources),
    ):
        with pytest.raises(
            ValueError,
            match=f"sources has {len(sources)} numbers.* each of the {len(pieces)} documents.*numbered_tokens_of",
        ):
            use()


@pytest.fixture(scope="module")
def long_stream(lm):
    """Documents of one to five pieces, which batches cut anywhere."""
    pieces = random_documents(lm.n_vocabulary, 60)
    n_pieces = torch.randint(1, 6, (len(pieces),), generator=torch.Generator().manual_seed(1))
    sources = torch.arange(len(pieces)).repeat_interleave(n_pieces)[: len(pieces)].tolist()
    return MLPInputs(lm, pieces, 1, BATCH_TOKENS, sources=sources)


def test_each_token_is_told_with_its_whole_document(lm, pieces):
    stream = MLPInputs(lm, pieces, 1, BATCH_TOKENS, sources=SOURCES)
    told = torch.cat([documents for _, documents in with_documents(stream)]).tolist()
    assert told == [source for source, piece in zip(SOURCES, pieces, strict=True) for _ in piece[1:]]


@pytest.mark.parametrize("sources", [None, [7] * len(SOURCES), list(range(2, 2 + len(SOURCES)))])
def test_documents_count_as_themselves_if_none_is_a_piece_or_all_are_of_one(lm, pair, pieces, sources):
    stream, alone = (MLPInputs(lm, pieces, 1, BATCH_TOKENS, sources=given) for given in (sources, None))
    assert stream.document_lengths == [len(piece) - 1 for piece in pieces] and stream.digest() == alone.digest()
    quality = pair_quality(pair, lm, pieces, sources=sources)
    assert quality == pair_quality(pair, lm, pieces)


def test_a_checkpoint_of_pieces_is_not_gone_on_with_for_other_documents(lm, pieces):
    streams = [MLPInputs(lm, pieces, 1, sources=sources) for sources in (None, SOURCES, [0, *SOURCES[:-1]])]
    assert len({stream.digest() for stream in streams}) == 3


@pytest.mark.parametrize("n", range(len(SOURCES) + 1))
def test_the_first_pieces_of_a_stream_count_as_the_documents_that_they_begin(lm, pieces, n):
    first = FirstDocuments(MLPInputs(lm, pieces, 1, BATCH_TOKENS, sources=SOURCES), n)
    assert sum(map(len, first)) == sum(first.document_lengths) == sum(len(piece) - 1 for piece in pieces[:n])
    assert len(first.document_lengths) == (len(set(SOURCES[:n])) if n > 2 else n)


def test_an_error_is_that_of_whole_documents_by_hand(lm, pair, pieces):
    """Three pieces of 2, 3 and 4 tokens, the first two of one document."""
    three = [piece[:n] for piece, n in zip([p for p in pieces if len(p) > 5], (3, 4, 5), strict=False)]
    jacobians = run_sandwich(pair, torch.cat(list(MLPInputs(lm, three, 1)))).jacobian
    values = (jacobians.abs() >= 0.01).double().mean(dim=(1, 2))
    deviations = values - values.mean()
    first, second = deviations[:5].sum().item(), deviations[5:].sum().item()
    expected = math.sqrt(2 / 1 * (first**2 + second**2)) / 9
    found = jacobian_measures(pair, MLPInputs(lm, three, 1, sources=[0, 0, 1]))["above_0.01"]
    assert (found.value, found.standard_error) == pytest.approx((values.mean().item(), expected), rel=1e-6)
    assert found.influence.tolist() == pytest.approx([first / 9, second / 9], abs=1e-9)
    quality = pair_quality(pair, lm, three, sources=[0, 0, 1])
    assert quality["above_0.01_se"] == pytest.approx(expected, rel=1e-5)


def test_a_whole_document_moves_each_number_as_its_pieces_together_do(lm, pair, pieces):
    one, other = (measured_quality(pair, lm, pieces, sources=sources).estimates for sources in (None, SOURCES))
    for name, estimate in other.items():
        of_pieces = one[name]
        together = torch.zeros(6, dtype=torch.float64)
        together.index_add_(0, torch.tensor(SOURCES)[of_pieces.documents], of_pieces.influence)
        assert estimate.value == pytest.approx(of_pieces.value, rel=1e-12)
        torch.testing.assert_close(estimate.influence, together[estimate.documents], rtol=1e-6, atol=1e-9)


def test_samples_and_latents_are_counted_by_whole_document(lm, pair, pieces):
    stream = MLPInputs(lm, pieces, 1, BATCH_TOKENS, sources=SOURCES)
    assert set(latent_activity(pair, stream)["n_documents"]) == {6}
    samples = ablation_samples(pair, stream, 300)
    assert set(samples["document"]) <= set(SOURCES)
    alone = ablation_samples(pair, MLPInputs(lm, pieces, 1, BATCH_TOKENS), 300)
    assert samples.drop(columns="document").equals(alone.drop(columns="document"))
    assert (samples["document"] == alone["document"].map(SOURCES.__getitem__)).all()
    assert ablation_summary(samples)["slope"] == pytest.approx(ablation_summary(alone)["slope"])


@pytest.mark.parametrize("name", BY_DOCUMENT)
@pytest.mark.parametrize("of", [2, 5])
def test_shards_give_the_errors_of_one_process(tmp_path, pair, long_stream, name, of):
    def measure(checkpoint: Checkpoint | None = None):
        return MEASURES[name](pair, long_stream, checkpoint=checkpoint)

    place = Checkpoint(tmp_path / "it.safetensors")
    for number in range(of):
        measure_shard(measure, place, number, of)
    merged, whole = merge_shards(measure, place, of), measure()
    for one, other in zip(_numbers(merged), _numbers(whole), strict=True):
        numpy.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", BY_DOCUMENT)
def test_a_resumed_measure_gives_the_errors_of_an_uninterrupted_one(tmp_path, pair, long_stream, name):
    for _ in range(100):
        try:
            resumed = MEASURES[name](pair, long_stream, checkpoint=Ends(tmp_path / "it", 4))
        except Interrupted:
            continue
        break
    assert_same(resumed, MEASURES[name](pair, long_stream))


def _numbers(found) -> list[numpy.ndarray]:
    """All numbers of a result, its errors and influences among them."""
    if isinstance(found, dict):
        return [numbers for value in found.values() for numbers in _numbers(value)]
    if isinstance(found, tuple):
        return [numbers for value in found for numbers in _numbers(value)]
    if isinstance(found, Tensor):
        return [found.numpy()]
    if hasattr(found, "select_dtypes"):
        return [found.select_dtypes("number").astype(float).to_numpy()]
    return [numpy.array(found, dtype=float)]


class Topics:
    """A model whose MLP input is a row of a table for each token, and documents that keep to a topic: a mixture, drawn
    for each, of the half of the table that a pair reconstructs well and of the other. Over all documents every token is
    as frequent as any other, so the mean over them is that over the table."""

    def __init__(self, pair, n_vocabulary: int = 40):
        rows = random_inputs(n_vocabulary, seed=8)
        self.table = rows[numpy.argsort([reconstruction_quality(pair, [row[None]])["mse_input"] for row in rows])]
        self.device = self.table.device

    def check_layer(self, layer: int) -> None:
        """It has any."""

    def mlp_activations(self, tokens: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        return self.table[tokens], torch.zeros(*tokens.shape, D_MODEL)

    def documents(self, generator: torch.Generator, n: int, n_pieces: int, length: int) -> tuple[list[Tensor], list]:
        half = len(self.table) // 2
        mixture = torch.rand(n, 1, 1, generator=generator)
        is_of_second = torch.rand(n, n_pieces, length + 1, generator=generator) < mixture
        tokens = torch.randint(half, is_of_second.shape, generator=generator) + half * is_of_second
        return list(tokens.flatten(0, 1)), torch.arange(n).repeat_interleave(n_pieces).tolist()


def test_intervals_by_whole_document_hold_the_truth_in_95_of_100_samples_and_those_by_piece_do_not():
    pair, generator = random_pair(), torch.Generator().manual_seed(0)
    model = Topics(pair)
    truth, covered, n = reconstruction_quality(pair, [model.table]), {True: 0, False: 0}, 250
    for _ in range(n):
        pieces, sources = model.documents(generator, n=60, n_pieces=6, length=8)
        for whole in covered:
            found = reconstruction_quality(pair, MLPInputs(model, pieces, 1, sources=sources if whole else None))
            covered[whole] += abs(found["mse_input"] - truth["mse_input"]) < 1.96 * found["mse_input_se"]
    assert 0.92 * n <= covered[True] <= 0.98 * n
    assert covered[False] < 0.8 * n
