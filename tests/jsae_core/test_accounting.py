import math

import numpy
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GPTNeoXConfig, LlamaConfig
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXMLP
from transformers.models.llama.modeling_llama import LlamaMLP

from jsae_core import MLPInputs, PairConfig, SAEPair, load_language_model
from jsae_core.measures import accounting, latent_accounting, latent_accountings
from jsae_core.mlp import MLP
from tests.jsae_core.builders import (
    D_MLP,
    D_MODEL,
    D_SAE,
    K,
    changed,
    random_inputs,
    random_pair,
    random_sae_tensors,
    save_language_model,
)

KEPT = (0, 1, 2, K)
ORDERS = ("attribution", "ablation", "random")


def hugging_face_mlp(gated: bool):
    """Hugging Face's own module, and the same weights as ours."""
    torch.manual_seed(1)
    if gated:
        config = LlamaConfig(
            hidden_size=D_MODEL, intermediate_size=D_MLP, hidden_act="silu", mlp_bias=True, num_attention_heads=2
        )
        module = LlamaMLP(config).double()
        parts = (module.up_proj, module.down_proj, module.gate_proj)
    else:
        module = GPTNeoXMLP(
            GPTNeoXConfig(hidden_size=D_MODEL, intermediate_size=D_MLP, hidden_act="gelu", num_attention_heads=2)
        ).double()
        parts = (module.dense_h_to_4h, module.dense_4h_to_h)
    for parameter in module.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter)
    (W_in, b_in), (W_out, b_out), *gate = ((part.weight.T, part.bias) for part in parts)
    of_gate = {"W_gate": gate[0][0], "b_gate": gate[0][1]} if gated else {}
    return module, MLP(W_in, W_out, "silu" if gated else "gelu", b_in, b_out, **of_gate)


def pair_around(mlp: MLP, k: int = K, apply_b_dec_to_input: bool = True) -> SAEPair:
    config = PairConfig(
        "tiny",
        1,
        D_MODEL,
        D_SAE,
        k,
        dtype="float64",
        apply_b_dec_to_input=apply_b_dec_to_input,
        mlp_activation=mlp.activation,
    )
    tensors = random_sae_tensors() | {f"mlp.{name}": tensor for name, tensor in mlp.named_buffers(recurse=False)}
    return SAEPair.from_tensors(tensors, config)


def brute_force(pair: SAEPair, module, x: Tensor, order: str) -> pd.DataFrame:
    """From the definitions, one token, one output latent and one set of input latents at a time, in float64, through
    Hugging Face's MLP and SAELens's pre-activations: a row a token and output latent."""

    def read(mlp_input: Tensor, latent: int) -> float:
        sae = pair.output_sae
        return float((sae.process_sae_in(module(mlp_input)[None]) @ sae.W_enc + sae.b_enc)[0, latent])

    rows = []
    for token, of_token in enumerate(x):
        latents = pair.input_sae.encode(of_token[None])[0]
        active = latents.topk(pair.config.k).indices
        s, d = latents[active], pair.input_sae.W_dec[active]
        output = module(of_token)
        pre = pair.output_sae.process_sae_in(output[None]) @ pair.output_sae.W_enc + pair.output_sae.b_enc
        for o in pre[0].topk(pair.config.k).indices.tolist():
            v = of_token.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(module(v) @ pair.output_sae.W_enc[:, o], v)
            a = s * (d @ gradient)
            p, empty = read(of_token, o), read(of_token - s @ d, o)
            alone = torch.tensor([abs(read(of_token - s[i] * d[i], o) - p) for i in range(len(s))])
            by = {"attribution": a.abs(), "ablation": alone}[order].argsort(descending=True)
            errors = {}
            for n in KEPT:
                kept = torch.zeros(len(s), dtype=torch.float64)
                kept[by[:n]] = 1
                errors[f"error_{n}"] = (read(of_token - ((1 - kept) * s) @ d, o) - p) ** 2
            sizes = a.abs().sort(descending=True).values.numpy()
            n90 = next((n for n in range(len(s) + 1) if sizes[:n].sum() >= 0.9 * sizes.sum()), len(s))
            rows.append(
                {
                    "token": token,
                    "latent": o,
                    "p": p,
                    "p_without_latents": empty,
                    "p_reconstruction": read(pair.input_sae.b_dec + s @ d, o),
                    "p_bias": read(pair.input_sae.b_dec, o),
                    "attributed": float(a.sum()),
                    "n90": n90,
                    "participation_ratio": sizes.sum() ** 2 / (sizes**2).sum() if sizes.any() else 0.0,
                    "unkept": (empty - p) ** 2,
                }
                | errors
            )
    return pd.DataFrame(rows)


def expected_of(rows: pd.DataFrame) -> dict[str, float]:
    means = rows[["p", "p_without_latents", "p_reconstruction", "p_bias", "n90", "participation_ratio"]].mean()
    return (
        means.to_dict()
        | {
            "accounted_share": (rows["p"] - rows["p_without_latents"]).sum() / rows["p"].sum(),
            "completeness": rows["attributed"].sum() / rows["p"].sum(),
        }
        | {f"r2_{n}": 1 - rows[f"error_{n}"].sum() / rows["unkept"].sum() for n in KEPT}
    )


@pytest.mark.parametrize("order", ["attribution", "ablation"])
@pytest.mark.parametrize("apply_b_dec", [False, True], ids=["b_dec kept", "b_dec taken off"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_accounting_is_a_brute_force_through_hugging_face_s_mlp(gated, apply_b_dec, order):
    module, mlp = hugging_face_mlp(gated)
    pair, x = pair_around(mlp, apply_b_dec_to_input=apply_b_dec), random_inputs(5)
    rows = brute_force(pair, module, x, order)
    measured = latent_accounting(pair, [x], KEPT, order)
    expected = expected_of(rows)
    assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert measured["n_tokens"] == len(x)
    # agreement between numbers that are all alike would prove nothing
    assert len({round(expected[name], 3) for name in ("p", "p_without_latents", "p_reconstruction", "p_bias")}) == 4
    assert expected["r2_0"] == 0 < abs(expected["r2_1"]) and expected["r2_1"] != expected["r2_2"]


def test_each_output_latent_s_row_is_made_of_its_own_tokens():
    module, mlp = hugging_face_mlp(False)
    pair, x = pair_around(mlp), random_inputs(12)
    rows = brute_force(pair, module, x, "attribution")
    table = latent_accountings(pair, [x], KEPT, ["attribution"]).by_latent.set_index("output_latent")
    assert sorted(table.index) == sorted(rows["latent"].unique()) and table["n_tokens"].sum() == 12 * K
    for latent, of_latent in rows.groupby("latent"):
        expected = expected_of(of_latent) | {"n_tokens": len(of_latent)}
        expected = {name.replace("r2_", "r2_attribution_"): value for name, value in expected.items()}
        assert table.loc[latent].to_dict() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(seed=st.integers(0, 10**4), gated=st.booleans(), order=st.sampled_from(ORDERS))
def test_no_input_latent_explains_nothing_and_all_of_them_everything(seed, gated, order):
    pair, x = random_pair("silu", gated, seed=seed), random_inputs(6, seed=seed)
    measured = latent_accounting(pair, [x], (0, K, K + 3), order)
    assert measured["r2_0"] == pytest.approx(0, abs=1e-12)
    assert measured[f"r2_{K}"] == pytest.approx(1, abs=1e-12) == measured[f"r2_{K + 3}"]


def test_a_linear_mlp_with_a_diagonal_jacobian_needs_one_input_latent():
    eye, nothing = torch.eye(D_MODEL, dtype=torch.float64), torch.zeros(D_MODEL, dtype=torch.float64)
    side = {"W_enc": eye, "b_enc": nothing, "W_dec": eye, "b_dec": nothing}
    tensors = {f"_{name}{suffix}": tensor for suffix in ("", "_out") for name, tensor in side.items()}
    mlp = {"mlp.W_in": eye, "mlp.b_in": nothing, "mlp.W_out": 2 * eye, "mlp.b_out": nothing}
    config = PairConfig("tiny", 0, D_MODEL, D_MODEL, K, dtype="float64", mlp_activation="linear")
    pair = SAEPair.from_tensors(tensors | mlp, config)
    # more positive entries than k, so that every active output latent's own input latent is active as well
    x = random_inputs(50).abs() + 0.1
    for order in ("attribution", "ablation"):
        measured = latent_accounting(pair, [x], (0, 1), order)
        assert (measured["r2_0"], measured["r2_1"]) == pytest.approx((0, 1), abs=1e-12)
        assert (measured["accounted_share"], measured["completeness"]) == pytest.approx((1, 1))
        assert (measured["n90"], measured["participation_ratio"]) == pytest.approx((1, 1))
    assert latent_accounting(pair, [x], (1,), "random")["r2_1"] < 0.6


def test_a_pair_whose_outputs_come_from_their_bias_accounts_for_nothing():
    pair = random_pair()
    bias = torch.full((D_SAE,), 50.0, dtype=torch.float64)
    bypassing = changed(pair, _W_enc_out=pair.output_sae.W_enc * 1e-3, _b_enc_out=bias)
    measured = latent_accounting(bypassing, [random_inputs(20)])
    assert measured["p"] == pytest.approx(50, rel=0.01)
    assert abs(measured["accounted_share"]) < 1e-3 and abs(measured["completeness"]) < 1e-3


def test_nothing_depends_on_how_the_stream_is_cut_or_how_much_is_done_at_once(monkeypatch):
    pair, x = random_pair("silu", gated=True), random_inputs(23)
    whole = latent_accountings(pair, [x], KEPT, ORDERS, seed=3)
    monkeypatch.setattr(accounting, "HIDDEN_BYTES", 3 * K * D_MLP * 8)
    cut = latent_accountings(pair, [x[:4], x[:0], x[4:]], KEPT, ORDERS, seed=3)
    assert cut.overall == pytest.approx(whole.overall, rel=1e-9, abs=1e-12)
    pd.testing.assert_frame_equal(cut.by_latent, whole.by_latent)


def test_the_random_order_is_its_seed_s():
    pair, x = random_pair(), random_inputs(20)
    by_seed = [latent_accounting(pair, [x], (1,), "random", seed)["r2_1"] for seed in (0, 0, 1)]
    assert by_seed[0] == by_seed[1] != by_seed[2]


def test_errors_are_those_of_documents(tmp_path):
    language_model = load_language_model(save_language_model(tmp_path), dtype="float64")
    tensors = random_sae_tensors(language_model.d_model)
    config = PairConfig("tiny", 1, language_model.d_model, D_SAE, K, dtype="float64")
    pair = SAEPair.from_tensors(tensors, config, language_model)
    documents = [torch.tensor([0, *range(3 + n, 10 + 2 * n)]) for n in range(6)]
    stream = MLPInputs(language_model, documents, 1)
    overall = latent_accounting(pair, stream)
    p = [latent_accounting(pair, [x])["p"] for x in torch.cat(list(stream)).split(stream.document_lengths)]
    sizes = numpy.array(stream.document_lengths)
    sums = (numpy.array(p) - overall["p"]) * sizes
    assert overall["p_se"] == pytest.approx(math.sqrt(6 / 5 * (sums**2).sum()) / sizes.sum(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fewer_digits_give_finite_numbers_near_the_exact_ones(dtype):
    exact = latent_accounting(random_pair(), [random_inputs(40)])
    rounded = latent_accounting(random_pair().to(dtype), [random_inputs(40).to(dtype)])
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.15}[dtype]
    for name in ("p", "p_without_latents", "accounted_share", "r2_1", "participation_ratio"):
        assert rounded[name] == pytest.approx(exact[name], rel=tolerance, abs=tolerance), name


def test_latents_that_are_all_silent_give_zeros():
    silent = torch.full((D_SAE,), -1e4, dtype=torch.float64)
    pair, x = changed(random_pair(), _b_enc=silent), random_inputs(5)
    measured = latent_accounting(pair, [x])
    assert measured["accounted_share"] == pytest.approx(0, abs=1e-12) and measured["n90"] == 0
    assert measured["participation_ratio"] == 0 and all(measured[f"r2_{n}"] == 0 for n in (0, 4, 16))
    of_each = latent_accountings(pair, [x], orders=["attribution"]).by_latent
    assert not of_each[["n90", "participation_ratio", "completeness", "r2_attribution_4"]].any(axis=None)
    assert numpy.isfinite(of_each.to_numpy(float)).all()


@pytest.mark.parametrize(
    ("stream", "arguments", "message"),
    [
        ([], {}, "stream of MLP inputs is empty"),
        ([torch.zeros(0, D_MODEL, dtype=torch.float64)], {}, "stream of MLP inputs is empty"),
        ([torch.full((2, D_MODEL), math.nan, dtype=torch.float64)], {}, "NaN or infinite"),
        ([random_inputs(2)], {"order": "size"}, "unknown order 'size'; expected one of attribution, random, ablation"),
        ([random_inputs(2)], {"kept": (1, -1)}, r"\[1, -1\]; expected none below 0"),
        ([random_inputs(2, d_model=3)], {}, "last dimension must be this pair's d_in"),
    ],
)
def test_what_cannot_be_measured_is_refused(stream, arguments, message):
    with pytest.raises(ValueError, match=message):
        latent_accounting(random_pair(), stream, **arguments)


def test_the_table_begins_with_the_row_of_all_output_latents_together():
    accounting_of_all = latent_accountings(random_pair(), [random_inputs(9)], KEPT)
    table = accounting_of_all.table()
    first, others = table.iloc[0], table.iloc[1:].reset_index(drop=True)
    assert first.drop("output_latent").to_dict() == pytest.approx(accounting_of_all.overall)
    assert table["output_latent"].isna().tolist() == [True] + [False] * len(others)
    names = accounting_of_all.by_latent.columns
    pd.testing.assert_frame_equal(others[names], accounting_of_all.by_latent, check_dtype=False)
    assert others.drop(columns=names).isna().all(axis=None)
