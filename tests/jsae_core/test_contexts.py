import copy
import math
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pytest
import torch

from jsae_core import MLPInputs, PairConfig, SAEPair, load_language_model
from jsae_core.measures import contexts, latent_contexts
from tests.jsae_core.builders import D_SAE, K, random_sae_tensors, save_language_model

N_TOP = 5
SIDES = ("input", "output")


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_language_model(save_language_model(tmp_path_factory.mktemp("lm")), dtype="float64")


@pytest.fixture(scope="module")
def documents(lm):
    """2,000 tokens besides BOS, in documents of 1 to 30."""
    generator = torch.Generator().manual_seed(3)
    lengths = [1 + n % 30 for n in range(400)]
    made, left = [], 2000
    for length in lengths:
        n = min(left, length)
        made.append(torch.cat([torch.tensor([0]), torch.randint(1, lm.n_vocabulary, (n,), generator=generator)]))
        left -= n
    return [document for document in made if len(document) > 1]


@pytest.fixture(scope="module")
def pair(lm):
    tensors = random_sae_tensors(lm.d_model)
    tensors["_b_enc_out"][3] = -1e4  # one that never fires
    return SAEPair.from_tensors(tensors, PairConfig("tiny", 1, lm.d_model, D_SAE, K, dtype="float64"), lm)


@pytest.fixture(scope="module")
def table(pair, lm, documents):
    return latent_contexts(pair, lm, documents, 1, N_TOP)


@pytest.fixture(scope="module")
def dense(pair, lm, documents):
    """SAELens's own activations of every latent, [n_tokens, d_sae] a side, with the place of each token."""
    activations = defaultdict(list)
    places = []
    for number, document in enumerate(documents):
        x, y = lm.mlp_activations(document[None], 1)
        activations["input"].append(pair.input_sae.encode(x[0, 1:]))
        activations["output"].append(pair.output_sae.encode(y[0, 1:]))
        places += [(number, position) for position in range(1, len(document))]
    return {side: torch.cat(parts).numpy() for side, parts in activations.items()}, places


def of(table: pd.DataFrame, side: str, latent: int, kind: str) -> pd.DataFrame:
    return table[(table["side"] == side) & (table["latent"] == latent) & (table["kind"] == kind)]


@pytest.mark.parametrize("side", SIDES)
def test_the_top_contexts_are_those_of_a_full_sort_each_document_once(table, dense, side):
    activations, places = dense[0][side], dense[1]
    for latent in range(D_SAE):
        expected, seen = [], set()
        for token in sorted(range(len(places)), key=lambda t: (-activations[t, latent], t)):
            if activations[token, latent] > 0 and places[token][0] not in seen and len(expected) < N_TOP:
                seen.add(places[token][0])
                expected.append((*places[token], activations[token, latent]))
        found = of(table, side, latent, "top")
        assert found["rank"].tolist() == list(range(len(expected)))
        assert list(zip(found["document"], found["position"], strict=True)) == [row[:2] for row in expected]
        np.testing.assert_allclose(found["activation"], [row[2] for row in expected], rtol=1e-9)
    assert len(of(table, "output", 3, "top")) == 0


@pytest.mark.parametrize("side", SIDES)
def test_quantile_contexts_are_those_of_a_full_sort(table, dense, side):
    activations = dense[0][side]
    for latent in range(D_SAE):
        ascending = np.sort(activations[:, latent][activations[:, latent] > 0])
        found = of(table, side, latent, "quantile")
        quantile_of: dict[int, float] = {}  # the lowest at each place
        for percent in range(5, 100, 10) if len(ascending) else ():
            quantile_of.setdefault(percent * len(ascending) // 100, percent / 100)
        np.testing.assert_allclose(found["activation"], ascending[list(quantile_of)], rtol=1e-9)
        assert found["rank"].isna().all() and found["quantile"].tolist() == list(quantile_of.values())


@pytest.mark.parametrize("side", SIDES)
def test_density_and_top_tokens_are_counted_over_all_tokens(table, dense, lm, documents, side):
    activations, places = dense[0][side], dense[1]
    for latent in range(D_SAE):
        (row,) = of(table, side, latent, "latent").to_dict("records")
        assert row["density"] == pytest.approx((activations[:, latent] > 0).mean())
        sums = Counter()
        for (document, position), activation in zip(places, activations[:, latent], strict=True):
            if activation > 0:
                sums[lm.tokenizer.decode([int(documents[document][position])])] += activation
        expected = sums.most_common(contexts.N_TOKENS)
        assert list(row["top_tokens"]) == [text for text, _ in expected]
        np.testing.assert_allclose(row["top_token_shares"], [s / sums.total() for _, s in expected], rtol=1e-9)


@pytest.mark.parametrize("side", SIDES)
def test_a_context_is_the_text_around_its_token_with_the_latent_s_activations_there(table, dense, lm, documents, side):
    activations, places = dense[0][side], dense[1]
    where = {place: token for token, place in enumerate(places)}
    rows = table[(table["side"] == side) & (table["kind"] != "latent")]
    assert len(rows) > D_SAE
    for row in rows.itertuples():
        document = documents[row.document]
        first, last = max(1, row.position - 8), min(len(document) - 1, row.position + 8)
        assert list(row.tokens) == [lm.tokenizer.decode([int(t)]) for t in document[first : last + 1]]
        expected = [activations[where[row.document, position], row.latent] for position in range(first, last + 1)]
        np.testing.assert_allclose(row.activations, expected, rtol=1e-9, atol=1e-12)
        assert row.place == row.position - first and row.activations[row.place] == row.activation


def test_output_latents_raise_and_lower_the_tokens_that_the_unembedding_says(table, pair, lm):
    """The final LayerNorm and the unembedding by hand."""
    norm = lm.hugging_face.gpt_neox.final_layer_norm
    d = pair.output_sae.W_dec
    centred = d - d.mean(dim=1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(dim=1, keepdim=True) + norm.eps).sqrt() * norm.weight
    logits = scaled @ lm.hugging_face.get_output_embeddings().weight.T
    for latent in range(D_SAE):
        (row,) = of(table, "output", latent, "latent").to_dict("records")
        order = logits[latent].argsort(descending=True)
        for name, ids in (("raised", order[:10]), ("lowered", order.flip(0)[:10])):
            assert list(row[f"{name}_tokens"]) == [lm.tokenizer.decode([int(i)]) for i in ids]
            np.testing.assert_allclose(row[f"{name}_logits"], logits[latent, ids].detach().numpy(), rtol=1e-6)
    assert table.loc[table["side"] == "input", "raised_tokens"].isna().all()


def test_nothing_depends_on_how_many_latents_are_taken_together(table, pair, lm, documents, monkeypatch):
    monkeypatch.setattr(contexts, "ROWS_AT_ONCE", 300)
    pd.testing.assert_frame_equal(latent_contexts(pair, lm, documents, 1, N_TOP), table)


@pytest.mark.parametrize("bad", ["no tokens", "not finite"])
def test_what_cannot_be_measured_is_refused(pair, lm, documents, bad):
    if bad == "no tokens":
        with pytest.raises(ValueError, match="no token to measure"):
            latent_contexts(pair, lm, [torch.tensor([0])], 1)
    else:
        damaged = copy.deepcopy(pair)
        damaged.input_sae.b_enc.fill_(math.nan)
        with pytest.raises(ValueError, match="NaN or infinite"):
            latent_contexts(damaged, lm, documents[:5], 1)


def test_a_stream_that_others_share_gives_the_same(table, pair, lm, documents):
    stream = MLPInputs(lm, documents, 1, batch_tokens=64)
    pd.testing.assert_frame_equal(contexts.stream_contexts(pair, stream, N_TOP), table)
