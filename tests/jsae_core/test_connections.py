import math
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
import torch

from jsae_core import SAEPair, run_sandwich
from jsae_core.measures import (
    connection_curves,
    connections,
    function_curves,
    latent_connections,
    latent_rows,
    strongest_connections,
)
from tests.jsae_core.builders import D_SAE, K, changed, random_inputs, random_pair

N_TOKENS, N_STRONGEST, LEAST_ACTIVE = 2000, 6, 30


@pytest.fixture(scope="module")
def pair() -> SAEPair:
    return random_pair()


@pytest.fixture(scope="module")
def x():
    return random_inputs(N_TOKENS)


def jacobian_by_autograd(pair: SAEPair, x, inputs, outputs):
    """From input latents' activations to output latents' pre-activations, the rest of the MLP's input held fixed."""
    rows, W = pair.input_sae.W_dec[inputs], pair.output_sae.W_enc[:, outputs]
    start = torch.zeros(len(inputs), dtype=x.dtype)
    return torch.autograd.functional.jacobian(lambda s: pair.mlp(x + s @ rows) @ W, start)


@pytest.fixture(scope="module")
def dictionary(pair, x):
    """Every (output, input) pair of latents: the tokens in which both were active, with J, s and the output's
    activation; token by token."""
    found, active = defaultdict(list), defaultdict(int)
    s_in, s_out = pair.input_sae.encode(x), pair.output_sae.encode(pair.mlp(x))
    sandwich = run_sandwich(pair, x)
    for token in range(len(x)):
        inputs, outputs = sandwich.input_latents[token], sandwich.output_latents[token]
        J = jacobian_by_autograd(pair, x[token], inputs, outputs).numpy()
        for row, o in enumerate(outputs.tolist()):
            active[o] += 1
            for column, i in enumerate(inputs.tolist()):
                found[o, i].append((token, J[row, column], float(s_in[token, i]), float(s_out[token, o])))
    return {key: np.array(rows) for key, rows in found.items()}, active


def expected_rows(dictionary, n_strongest: int, least_active: int) -> list[dict]:
    found, active = dictionary
    rows = []
    for o in sorted(active):
        total = sum(np.abs(of[:, 1] * of[:, 2]).sum() for (output, _), of in found.items() if output == o)
        candidates = []
        for (output, i), of in found.items():
            if output == o and len(of) >= least_active:
                J, a = of[:, 1], of[:, 1] * of[:, 2]
                sign = np.sign(J.mean())
                candidates.append(
                    {
                        "output_latent": o,
                        "input_latent": i,
                        "n_both": len(of),
                        "n_output": active[o],
                        "mean_jacobian": J.mean(),
                        "sd_jacobian": J.std(),
                        "mean_abs_jacobian": np.abs(J).mean(),
                        "mean_attribution": a.mean(),
                        "share": np.abs(a).sum() / total,
                        "sign_agreement": (np.sign(J) == sign).mean(),
                    }
                )
        rows += sorted(candidates, key=lambda row: -row["share"])[:n_strongest]
    return rows


def test_connections_are_those_of_a_dictionary_over_two_thousand_tokens(pair, x, dictionary):
    found = latent_connections(pair, [x[:700], x[700:700], x[700:]], N_STRONGEST, LEAST_ACTIVE)
    expected = pd.DataFrame(expected_rows(dictionary, N_STRONGEST, LEAST_ACTIVE))
    assert len(expected) > D_SAE
    pd.testing.assert_frame_equal(found, expected, rtol=1e-9, atol=1e-12)


def test_all_connections_of_an_output_latent_share_all_of_its_attribution(pair, x):
    everything = latent_connections(pair, [x], n_strongest=D_SAE, least_active=1)
    np.testing.assert_allclose(everything.groupby("output_latent")["share"].sum(), 1)
    assert everything["n_both"].sum() == N_TOKENS * K * K
    assert (
        everything.groupby("output_latent")["n_both"].sum()
        == everything.groupby("output_latent")["n_output"].first() * K
    ).all()


def test_examples_are_the_tokens_in_which_a_connection_contributes_most(pair, x, dictionary):
    found = strongest_connections(pair, [x[:900], x[900:]], N_STRONGEST, LEAST_ACTIVE, n_examples=4)
    pd.testing.assert_frame_equal(
        found[connections.COLUMNS], latent_connections(pair, [x], N_STRONGEST, LEAST_ACTIVE), check_exact=False
    )
    for row in found.itertuples():
        of = dictionary[0][row.output_latent, row.input_latent]
        order = np.argsort(-np.abs(of[:, 1] * of[:, 2]), kind="stable")[:4]
        assert list(row.token) == of[order, 0].astype(int).tolist()
        for column, name in enumerate(("jacobian", "input_activation", "output_activation"), start=1):
            np.testing.assert_allclose(getattr(row, name), of[order, column], rtol=1e-6, atol=1e-7)


def test_curves_are_taken_where_a_connection_contributes_most(pair, x):
    stream = [x[:900], x[900:]]
    found = strongest_connections(pair, stream, N_STRONGEST, LEAST_ACTIVE, n_examples=2)
    curves = connection_curves(pair, stream, found, n_strongest=2)
    assert curves["curve"].notna().tolist() == (found.groupby("output_latent").cumcount() < 2).tolist()
    s = run_sandwich(pair, x)
    for number in curves.index[curves["curve"].notna()][:8]:
        row, token = found.loc[number], found.loc[number, "token"][0]
        ranks = [
            (latents[token] == row[name]).nonzero()[0]
            for latents, name in ((s.output_latents, "output_latent"), (s.input_latents, "input_latent"))
        ]
        input_values, output_values = function_curves(pair, x[token, None], *ranks)
        assert curves.loc[number, "curve_end"] == pytest.approx(input_values[0, -1].item(), rel=1e-6)
        np.testing.assert_allclose(curves.loc[number, "curve"], output_values[0].float().numpy(), rtol=1e-5, atol=1e-6)


def test_nothing_depends_on_how_much_is_done_at_once(pair, x, monkeypatch):
    whole = strongest_connections(pair, [x], N_STRONGEST, LEAST_ACTIVE)
    monkeypatch.setattr(connections, "SUMS_AT_ONCE", 3 * D_SAE)
    monkeypatch.setattr(connections, "ROWS_AT_ONCE", 50)
    cut = strongest_connections(pair, list(x.split(333)), N_STRONGEST, LEAST_ACTIVE)
    pd.testing.assert_frame_equal(cut, whole)


def test_no_more_rows_are_held_at_once_the_more_tokens_there_are(pair, x, monkeypatch):
    held = []

    class Watched(latent_rows.LatentRows):
        def read(self, latents):
            for batch in super().read(latents):
                held.append(sum(column.nbytes for column in batch.values()))
                yield batch

    monkeypatch.setattr(connections, "LatentRows", Watched)
    most = []
    for n in (500, 2000):
        held.clear()
        latent_connections(pair, x[:n].split(100))
        most.append(max(held))
    assert most[0] == most[1]


@pytest.mark.parametrize("bad", [[], [torch.empty(0, 8, dtype=torch.float64)]], ids=["nothing", "no token"])
def test_an_empty_stream_is_refused(pair, bad):
    with pytest.raises(ValueError, match="is empty"):
        latent_connections(pair, bad)


def test_what_is_not_finite_is_refused(pair, x):
    broken = x[:5].clone()
    broken[2] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        latent_connections(pair, [broken])


def test_silent_input_latents_contribute_nothing_but_are_counted(pair, x):
    silent = changed(pair, _b_enc=torch.full((D_SAE,), -1e4, dtype=torch.float64))
    found = latent_connections(silent, [x[:200]], least_active=1)
    assert len(found) and (found["share"] == 0).all() and (found["mean_attribution"] == 0).all()
    assert (found["mean_abs_jacobian"] > 0).all()
    with_examples = strongest_connections(silent, [x[:200]], least_active=1, n_examples=2)
    assert (with_examples["token"].map(len) == with_examples["n_both"].clip(upper=2)).all()


def test_where_nothing_is_active_often_enough_the_table_is_empty_with_its_columns(pair, x):
    found = strongest_connections(pair, [x[:3]], least_active=10)
    assert len(found) == 0 and list(found.columns) == connections.COLUMNS + connections.EXAMPLES
    assert len(connection_curves(pair, [x[:3]], found, 2)) == 0
