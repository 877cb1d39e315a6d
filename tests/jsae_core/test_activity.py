import numpy
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsae_core import run_sandwich
from jsae_core.checkpoints import Checkpoint
from jsae_core.figures import Variant, dead_latents_figure
from jsae_core.measures import latent_activity
from tests.jsae_core.builders import D_SAE, changed, random_inputs, random_pair
from tests.jsae_core.streamed_measures import Ends, Interrupted, assert_same

LENGTHS = [3, 90, 1, 60, 200, 46]
N_TOKENS = sum(LENGTHS)


class Documents(list):
    def __init__(self, items, lengths):
        super().__init__(items)
        self.document_lengths = lengths


@pytest.fixture(scope="module")
def pair():
    """Of some output latents few are ever active."""
    pair = random_pair()
    return changed(pair, _b_enc_out=pair.tensors()["_b_enc_out"] - 2.5 * torch.arange(D_SAE))


@pytest.fixture(scope="module")
def x():
    return random_inputs(N_TOKENS)


def seen(pair, x) -> dict[str, numpy.ndarray]:
    """Whether each latent is above zero at each token, [n_tokens, d_sae]."""
    sandwich = run_sandwich(pair, x)
    return {
        side: torch.zeros(len(x), D_SAE).scatter(1, latents, activations.float()).numpy() > 0
        for side, latents, activations in (
            ("input", sandwich.input_latents, sandwich.input_activations),
            ("output", sandwich.output_latents, sandwich.output_activations),
        )
    }


@given(cuts=st.lists(st.integers(0, N_TOKENS), max_size=5))
def test_dead_and_unseen_are_what_a_loop_over_latents_counts_however_the_stream_is_cut(pair, x, cuts):
    edges = [0, *sorted(cuts), N_TOKENS]
    batches = [x[start:stop] for start, stop in zip(edges, edges[1:], strict=False)]
    table = latent_activity(pair, Documents(batches, LENGTHS))
    of_documents = numpy.arange(len(LENGTHS)).repeat(LENGTHS)
    for side, active in seen(pair, x).items():
        rows = table[table["side"] == side]
        assert rows["n_tokens"].tolist() == [100, 200, N_TOKENS]
        expected = [1 - active[:n].any(axis=0).mean() for n in rows["n_tokens"]]
        numpy.testing.assert_allclose(rows["dead"], expected)
        times = [len(set(of_documents[active[:, latent]])) for latent in range(D_SAE)]
        once, twice, n = times.count(1), times.count(2), len(LENGTHS)
        unseen = (n - 1) / n * once * (once - 1) / (2 * (twice + 1)) / D_SAE
        numpy.testing.assert_allclose(rows["unseen"], min(unseen, expected[-1]))
    assert table[table["side"] == "output"]["dead"].iloc[0] > 0


def test_a_document_within_which_the_measure_is_interrupted_counts_once(tmp_path, pair, x):
    stream = Documents(x.split(20), LENGTHS)  # most interruptions are within a document
    whole = latent_activity(pair, stream)
    assert whole[whole["side"] == "output"]["unseen"].gt(0).all()  # so it tells how often documents are counted
    for saves in range(1, len(stream) + 1):
        path = tmp_path / f"after {saves} items"
        with pytest.raises(Interrupted):
            latent_activity(pair, stream, checkpoint=Ends(path, saves))
        said = []
        assert_same(latent_activity(pair, stream, checkpoint=Checkpoint(path, say=said.append)), whole)
        assert said == ["going on from the checkpoint"]


def test_the_estimate_of_the_unseen_is_near_the_truth_where_more_text_shows_them():
    """Latents that fire in documents at random, the rarest in one of a hundred: half of the text tells how many more
    the other half will show."""
    pair = random_pair(d_sae=400, k=1)
    # inputs near single decoder rows, some rows far rarer than others
    generator = torch.Generator().manual_seed(0)
    rates = torch.logspace(0, -2.5, 400, dtype=torch.float64)
    chosen = torch.multinomial(rates, 3000, replacement=True, generator=generator)
    x = 50 * pair.input_sae.W_enc.T[chosen]
    lengths = [3] * 1000
    all_ = latent_activity(pair, Documents([x], lengths))
    half = latent_activity(pair, Documents([x[:600]], lengths[:200]))
    (dead_half, unseen), dead_all = (
        half[half["side"] == "input"][["dead", "unseen"]].iloc[-1],
        all_[all_["side"] == "input"]["dead"].iloc[-1],
    )
    came = dead_half - dead_all
    assert came > 0.02
    assert 0.4 * came < unseen < 2.5 * came


def test_no_more_latents_are_alive_though_unseen_than_are_unseen_at_all(x):
    table = latent_activity(random_pair(), Documents([x], [N_TOKENS - 1, 1]))
    assert table["n_documents"].eq(2).all()  # most latents are in one of them, few in both: the estimate is high
    last = table.groupby("side").last()
    assert last["dead"]["input"] == 0 and (last["unseen"] <= last["dead"]).all()


def test_a_stream_of_no_token_is_refused(pair):
    with pytest.raises(ValueError, match="stream of MLP inputs is empty"):
        latent_activity(pair, [])


TRADITIONAL = Variant("Traditional", "#0072B2")


def activity(**changes) -> pandas.DataFrame:
    table = pandas.DataFrame(
        {
            "side": ["input"] * 2 + ["output"] * 2,
            "n_tokens": [100, 1000] * 2,
            "dead": [0.5, 0.2, 0.4, 0.3],
            "unseen": [0.05, 0.05, 0.1, 0.1],
        }
    )
    return table.assign(**changes)


def test_the_figure_draws_each_side_s_curve_and_what_is_left_without_the_unseen():
    figure = dead_latents_figure({TRADITIONAL: activity()}, "tiny, layer 1")
    curves = [trace for trace in figure.data if trace.line.dash is None]
    left = [trace for trace in figure.data if trace.line.dash == "dash"]
    numpy.testing.assert_allclose([curve.y for curve in curves], [[50, 20], [40, 30]])
    numpy.testing.assert_allclose([line.y for line in left], [[15, 15], [20, 20]])
    assert {trace.line.color for trace in figure.data} == {TRADITIONAL.colour}
    assert [trace.showlegend for trace in curves] == [True, False]
    said = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert "In 1,000 tokens 20% / 30% (Traditional) of the input / output SAE's latents were never active" in said
    assert dead_latents_figure({TRADITIONAL: activity()[::-1]}, "tiny, layer 1") == figure


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (activity().drop(columns="unseen"), "lacks unseen"),
        (activity()[:2], "no row of side output"),
        (activity(dead=float("nan")), "NaN or infinite"),
    ],
)
def test_the_figure_refuses_what_it_cannot_draw(table, message):
    with pytest.raises(ValueError, match=f"'Traditional'.* {message}|'Traditional' holds {message}"):
        dead_latents_figure({TRADITIONAL: table}, "")
