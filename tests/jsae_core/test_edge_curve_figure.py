import pytest

from jsae_core.figures import Variant, edge_curve_figure

TRADITIONAL, JSAE = Variant("Traditional", "#0072B2"), Variant("JSAE <b>", "#D55E00")


def accounting(accounted_share: float = 0.9, kept: tuple[int, ...] = (0, 1, 4), **changes: float) -> dict[str, float]:
    numbers = {"accounted_share": accounted_share, "p": 1.0, "p_without_latents": 0.1}
    numbers |= {"p_reconstruction": 0.8, "p_bias": 0.05}
    for n in kept:
        numbers |= {f"r2_attribution_{n}": n / 4, f"r2_random_{n}": n / 8}
    return numbers | {f"{name}_se": 0.01 for name in numbers} | changes


def test_each_variant_s_curves_are_its_numbers_with_their_95_percent_intervals():
    figure = edge_curve_figure({TRADITIONAL: accounting(), JSAE: accounting(r2_attribution_1=0.6)}, "settings")
    curves = {trace.name: trace for trace in figure.data if trace.type == "scatter"}
    assert list(curves["JSAE &lt;b&gt;"].x) == ["0", "1", "4"] and list(curves["JSAE &lt;b&gt;"].y) == [0, 0.6, 1]
    assert list(curves["Traditional, random latents"].y) == [0, 0.125, 0.5]
    assert list(curves["Traditional"].error_y.array) == pytest.approx([0.0196] * 3)
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert [(bar.y, bar.error_y.array) for bar in bars] == [((0.9,), pytest.approx((0.0196,)))] * 2


def test_variants_and_orders_are_told_apart_without_colour():
    figure = edge_curve_figure({TRADITIONAL: accounting(), JSAE: accounting()}, "settings")
    curves = [trace for trace in figure.data if trace.type == "scatter"]
    assert [trace.line.dash for trace in curves] == ["solid", "dot"] * 2
    assert [trace.marker.symbol for trace in curves] == ["circle", "circle-open", "diamond", "diamond-open"]
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert len({trace.marker.pattern.shape for trace in bars}) == 2
    assert len({trace.name for trace in curves}) == 4


def test_the_subtitle_says_what_few_latents_explain_and_what_all_account_for():
    figure = edge_curve_figure({TRADITIONAL: accounting(), JSAE: accounting(-0.166, r2_attribution_4=0.55)}, "layer 2")
    said = figure.layout.title.subtitle.text.replace("<br>", " ")
    assert said.startswith("4 input latents explain 100% (Traditional), 55% (JSAE &lt;b&gt;)")
    assert "account for 90% (Traditional), −17% (JSAE &lt;b&gt;). layer 2" in said


def test_a_share_below_zero_is_drawn_whole():
    figure = edge_curve_figure({TRADITIONAL: accounting(), JSAE: accounting(-3.0)}, "settings")
    assert figure.layout.yaxis2.range[0] < -3.02 and figure.layout.yaxis2.range[1] > 1


def test_a_share_above_one_is_drawn_with_its_error_bar():
    figure = edge_curve_figure({TRADITIONAL: accounting(1.3), JSAE: accounting(0.4)}, "settings")
    assert figure.layout.yaxis2.range[1] > 1.32


def test_equal_shares_are_two_bars():
    figure = edge_curve_figure({TRADITIONAL: accounting(), JSAE: accounting()}, "settings")
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert len({trace.x[0] for trace in bars}) == 2


@pytest.mark.parametrize(
    ("accountings", "message"),
    [
        ({}, "no variant"),
        ({TRADITIONAL: accounting(kept=())}, "'Traditional' has R^2 by attribution for \\[\\] latents"),
        (
            {TRADITIONAL: accounting(), JSAE: accounting(kept=(0, 1))},
            "'JSAE <b>' has R\\^2 .*\\[0, 1\\].*\\[0, 1, 4\\]",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(accountings, message):
    with pytest.raises(ValueError, match=message.replace("R^2", r"R\^2")):
        edge_curve_figure(accountings, "settings")
