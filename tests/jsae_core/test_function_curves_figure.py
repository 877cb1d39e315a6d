"""What the figures of functions promise, read from their data."""

import numpy as np
import pandas as pd
import pytest

from jsae_core.figures import Variant, function_curves_figure, function_shapes_figure
from jsae_core.figures.export import page
from tests.jsae_core.subtitles import answer, details

TRADITIONAL, JSAE = Variant("Traditional", "#0072B2"), Variant("JSAE", "#D55E00")
SUBTITLE = "pythia-70m, layer 3 · 1000 tokens of C4 · k = 16, λ = 1"
INPUTS = np.linspace(0, 5, 100).astype(np.float32)
RISING = 1 + INPUTS / 5
JUMPING = np.where(INPUTS > 2.5, 0.8, 0).astype(np.float32)
NONE = "none among the kept curves"


def sample(shape: str = "linear", outputs=RISING, at: float = 2.5, flat: bool = False, **columns) -> dict:
    """A row of the table; `outputs` None: its curve was not kept."""
    reached = 1.0 if outputs is None else float(np.interp(at, INPUTS, outputs))
    row = {"shape": shape, "flat": flat, "input_latent": 12, "output_latent": 345}
    row |= {"input_activation": at, "output_activation": reached}
    return row | {"input_values": None if outputs is None else INPUTS, "output_values": outputs} | columns


def table(*rows: dict) -> pd.DataFrame:
    """Samples, drawn in this order."""
    return pd.DataFrame(rows).assign(drawn=range(len(rows)))


def many(n: int, kept: int, seed: int = 0) -> pd.DataFrame:
    """As the measure makes them, in token order, which is not the order of drawing."""
    generator = np.random.default_rng(seed)
    shapes = generator.choice(["linear", "jumprelu", "other"], n)
    curves = {"linear": RISING, "jumprelu": JUMPING, "other": np.sin(INPUTS) + 1}
    drawn = generator.permutation(n)
    rows = [sample(shapes[i], curves[shapes[i]] if drawn[i] < kept else None) for i in range(n)]
    return pd.DataFrame(rows).assign(drawn=drawn, input_latent=drawn, output_latent=drawn + 10_000)


ONE_OF_EACH = table(
    sample("linear"),
    sample("jumprelu", JUMPING),
    sample("other", np.sin(INPUTS) + 1),
    sample("linear", RISING * 0 + 1, flat=True),
)


@pytest.fixture(scope="module")
def curves_figure():
    return function_curves_figure({TRADITIONAL: many(300, 150), JSAE: many(300, 30, seed=1)}, SUBTITLE)


@pytest.fixture(scope="module")
def shapes_figure():
    return function_shapes_figure({TRADITIONAL: many(300, 150), JSAE: ONE_OF_EACH}, SUBTITLE)


@pytest.fixture(params=[function_curves_figure, function_shapes_figure])
def draw(request):
    return request.param


def paths(trace) -> list[np.ndarray]:
    """Its lines, [n, 2] each, which are separated by gaps."""
    points = np.array([trace.x, trace.y], dtype=float).T
    gaps = np.flatnonzero(np.isnan(points[:, 0]))
    return [part[~np.isnan(part[:, 0])] for part in np.split(points, gaps + 1) if len(part)]


def shown(figure, page_number: int = 0) -> list:
    """The traces of charts that are seen after the slider is moved to a page."""
    traces = [trace for trace in figure.data if trace.type == "scatter" and trace.xaxis in (None, "x")]
    if not figure.layout.sliders:
        return traces
    visible = figure.layout.sliders[0].steps[page_number].args[0]["visible"]
    return [trace for trace, seen in zip(figure.data, visible, strict=True) if seen]


def lines(figure, label: str, page_number: int = 0) -> list[np.ndarray]:
    (trace,) = [t for t in shown(figure, page_number) if t.mode == "lines" and t.name == label]
    return paths(trace)


def dots(figure, label: str, page_number: int = 0):
    (trace,) = [t for t in shown(figure, page_number) if t.mode == "markers" and t.name == label]
    return trace


def frames(figure, page_number: int = 0) -> list[tuple[float, float, float, float]]:
    """Left, top, right and bottom of the charts."""
    (trace,) = [t for t in shown(figure, page_number) if t.mode == "lines" and t.name is None]
    return [(path[0, 0], path[0, 1], path[2, 0], path[2, 1]) for path in paths(trace)]


def written(figure, page_number: int = 0) -> list[list[str]]:
    """Of each chart: its latents, where its input begins and ends, its highest and lowest output."""
    (trace,) = [t for t in shown(figure, page_number) if t.mode == "text"]
    return [list(trace.text[start : start + 5]) for start in range(0, len(trace.text), 5)]


def notes(figure) -> list[str]:
    return [note.text for note in figure.layout.annotations]


def latents(figure) -> list[str]:
    return [numbers[0] for numbers in written(figure)]


def bars(figure) -> dict:
    """By variant: the bars of all functions and of those that are not flat."""
    every = [bar for bar in figure.select_traces({"type": "bar"}) if bar.x != (None,)]
    return {bar.name: [other for other in every if other.name == bar.name] for bar in every}


def numbers_on_bars(figure):
    (trace,) = figure.select_traces({"mode": "text", "xaxis": "x2"})
    return trace


def diamonds(figure) -> list:
    return [trace for trace in figure.select_traces({"mode": "markers"}) if trace.marker.symbol == "diamond"]


# charts


def test_a_curve_fills_its_frame_and_its_dot_is_where_the_token_was():
    figure = function_curves_figure({JSAE: table(sample(at=1.25))}, SUBTITLE)
    ((left, top, right, bottom),) = frames(figure)
    assert top < bottom and figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1]
    (line,) = lines(figure, "JSAE")
    np.testing.assert_allclose(line[[0, -1]], [(left, bottom), (right, top)], atol=0.1)
    dot = dots(figure, "JSAE")
    np.testing.assert_allclose(dot.x, left + (right - left) / 4, atol=0.1)
    np.testing.assert_allclose(dot.y, bottom + (top - bottom) / 4, atol=0.1)


def test_a_chart_says_which_latents_it_is_of_and_between_which_activations():
    figure = function_curves_figure({JSAE: table(sample())}, SUBTITLE)
    assert written(figure) == [["12 → 345", "0", "5", "2.0", "1.0"]]
    assert [axis.title.text for axis in (figure.layout.xaxis, figure.layout.yaxis)] == [
        "input latent (activation)",
        "output latent (activation)",
    ]


def test_each_chart_has_axes_of_its_own():
    longer = sample(outputs=RISING / 4) | {"input_values": INPUTS * 1.5}
    figure = function_curves_figure({JSAE: table(sample(), longer)}, SUBTITLE)
    assert [numbers[1:] for numbers in written(figure)] == [["0", "5", "2.0", "1.0"], ["0", "7.5", "0.50", "0.25"]]
    first, second = (line[:, 1] for line in lines(figure, "JSAE"))
    assert np.ptp(first) == pytest.approx(np.ptp(second))


def test_what_is_flat_looks_flat():
    outputs = 0.5 + INPUTS * 0.001
    figure = function_curves_figure({JSAE: table(sample(outputs=outputs, flat=True))}, SUBTITLE)
    ((_, top, _, bottom),) = frames(figure)
    (line,) = lines(figure, "JSAE")
    assert np.ptp(line[:, 1]) < 0.06 * (bottom - top)
    low, high = (float(number) for number in written(figure)[0][:-3:-1])
    assert high - low == pytest.approx(0.1) and low < 0.5 < high


def test_no_axis_begins_below_zero_unless_activations_do():
    figure = function_curves_figure({JSAE: table(sample(outputs=INPUTS * 0), sample(outputs=INPUTS - 1))}, SUBTITLE)
    assert [numbers[-1] for numbers in written(figure)] == ["0", "-1.0"]
    ((_, _, _, bottom), _) = frames(figure)
    assert set(lines(figure, "JSAE")[0][:, 1]) == {bottom}


@pytest.mark.parametrize("outputs", [np.sin(INPUTS * 3) + 1, JUMPING, np.random.default_rng(0).random(100)])
def test_the_points_that_are_left_out_are_not_missed(outputs):
    figure = function_curves_figure({JSAE: table(sample(outputs=outputs))}, SUBTITLE)
    ((left, top, right, bottom),) = frames(figure)
    (line,) = lines(figure, "JSAE")
    low, high = outputs.min(), outputs.max()
    x = left + (right - left) * INPUTS / 5
    expected = bottom + (top - bottom) * (outputs - low) / (high - low)
    places = np.abs(x[:, None] - line[:, 0]).argmin(axis=0)
    drawn = np.interp(x, x[places], line[:, 1])
    np.testing.assert_allclose(drawn, expected, atol=0.5)


def test_straight_lines_take_few_points():
    figure = function_curves_figure({JSAE: table(sample(), sample("jumprelu", JUMPING))}, SUBTITLE)
    assert [len(line) for line in lines(figure, "JSAE")] == [2, 4]


def test_hovering_over_a_dot_tells_latents_activations_and_shape():
    flat = sample(outputs=RISING * 0 + 1, flat=True)
    figure = function_curves_figure({JSAE: table(sample(at=1.25), flat)}, SUBTITLE)
    first, second = dots(figure, "JSAE").text
    assert first == "linear<br>input latent 12 at 1.25<br>output latent 345 at 1.25"
    assert second.startswith("linear, flat<br>")


# pages of curves


def test_the_curves_are_those_drawn_first_in_that_order():
    figure = function_curves_figure({JSAE: many(300, 150)}, SUBTITLE, n_curves=12)
    assert latents(figure) == [f"{place} → {place + 10_000}" for place in range(10)]
    assert [numbers[0] for numbers in written(figure, 1)] == ["10 → 10010", "11 → 10011"]


def test_samples_without_a_curve_are_left_out():
    samples = table(sample(outputs=None), sample(input_latent=1), sample(outputs=None), sample(input_latent=3))
    assert latents(function_curves_figure({JSAE: samples}, SUBTITLE)) == ["1 → 345", "3 → 345"]


def test_a_hundred_curves_of_each_variant_are_on_ten_pages(curves_figure):
    steps = curves_figure.layout.sliders[0].steps
    assert [step.label for step in steps][::9] == ["1–10", "91–100"]
    assert {step.method for step in steps} == {"restyle"}
    assert sum(len(lines(curves_figure, "Traditional", number)) for number in range(10)) == 100
    assert [len(lines(curves_figure, "JSAE", number)) for number in range(5)] == [10, 10, 10, 0, 0]


def test_at_first_the_first_page_is_seen(curves_figure):
    seen = [trace for trace in curves_figure.data if trace.visible]
    assert seen == shown(curves_figure, 0)


def test_every_trace_is_on_exactly_one_page(curves_figure):
    visible = np.array([step.args[0]["visible"] for step in curves_figure.layout.sliders[0].steps])
    assert (visible.sum(axis=0) == 1).all() and visible.shape[1] == len(curves_figure.data)


def test_the_last_page_says_where_it_ends():
    figure = function_curves_figure({JSAE: many(20, 13)}, SUBTITLE)
    assert [step.label for step in figure.layout.sliders[0].steps] == ["1–10", "11–13"]


def test_a_single_page_has_no_slider():
    assert not function_curves_figure({JSAE: many(20, 10)}, SUBTITLE).layout.sliders


def test_charts_do_not_overlap_and_those_of_a_variant_are_below_its_name(curves_figure):
    boxes = frames(curves_figure)
    assert len(boxes) == 20
    for place, (left, top, right, bottom) in enumerate(boxes):
        for other_left, other_top, other_right, other_bottom in boxes[:place]:
            assert left > other_right or other_left > right or top > other_bottom or other_top > bottom
    traditional, jsae = curves_figure.layout.annotations
    assert traditional.y < min(top for _, top, _, _ in boxes[:10])
    assert max(bottom for *_, bottom in boxes[:10]) < jsae.y < min(top for _, top, _, _ in boxes[10:])
    assert max(right for _, _, right, _ in boxes) < curves_figure.layout.xaxis.range[1]
    assert max(bottom for *_, bottom in boxes) < curves_figure.layout.yaxis.range[0]


def test_curves_of_a_variant_that_kept_none_are_refused():
    with pytest.raises(ValueError, match="no sample of 'JSAE' has its curve"):
        function_curves_figure({TRADITIONAL: ONE_OF_EACH, JSAE: table(sample(outputs=None))}, SUBTITLE)


def test_no_curve_at_all_cannot_be_asked_for():
    with pytest.raises(ValueError, match="n_curves is 0"):
        function_curves_figure({JSAE: ONE_OF_EACH}, SUBTITLE, n_curves=0)


# shapes


def test_examples_stand_below_the_name_of_their_shape_and_beside_those_of_their_variant(shapes_figure):
    headings = {note.text: note for note in shapes_figure.layout.annotations}
    assert [f"<b>{shape}</b>" in headings for shape in ("linear", "jumprelu", "other")] == [True] * 3
    for dot_x, text in zip(dots(shapes_figure, "Traditional").x, dots(shapes_figure, "Traditional").text, strict=True):
        nearest = min(headings.values(), key=lambda note: abs(note.x - dot_x) if note.xanchor == "center" else np.inf)
        assert nearest.text == f"<b>{text.split('<br>')[0]}</b>"
    assert max(dots(shapes_figure, "Traditional").y) < min(dots(shapes_figure, "JSAE").y)


def test_examples_are_the_curves_of_a_shape_drawn_first_flat_ones_last():
    flat = sample(outputs=RISING * 0 + 1, flat=True)
    samples = table(flat, *[sample(input_latent=place) for place in range(3)], flat | {"input_latent": 99})
    assert latents(function_shapes_figure({JSAE: samples}, SUBTITLE)) == [f"{i} → 345" for i in (0, 1, 2, 12)]
    samples = table(flat, *[sample(input_latent=place) for place in range(9)])
    assert latents(function_shapes_figure({JSAE: samples}, SUBTITLE)) == [f"{i} → 345" for i in range(4)]


def test_a_shape_without_a_kept_curve_is_said_to_have_none():
    samples = table(sample(), sample("other", outputs=None), sample("jumprelu", JUMPING))
    figure = function_shapes_figure({JSAE: samples}, SUBTITLE)
    (missing,) = [note for note in figure.layout.annotations if note.text == NONE]
    (other,) = [note for note in figure.layout.annotations if note.text == "<b>other</b>"]
    assert missing.x == other.x
    figure = function_shapes_figure({JSAE: table(sample(outputs=None))}, SUBTITLE)
    assert notes(figure).count(NONE) == 3
    assert bars(figure)["JSAE"][0].y == (100, 0, 0)


def test_bars_show_the_share_of_each_shape_with_the_number_on_each_and_how_much_is_not_flat():
    figure = function_shapes_figure({TRADITIONAL: ONE_OF_EACH, JSAE: table(sample())}, SUBTITLE)
    every, steep = bars(figure)["Traditional"]
    np.testing.assert_allclose(every.y, [50, 25, 25])
    np.testing.assert_allclose(steep.y, [25, 25, 25])
    assert every.x == steep.x
    assert every.marker.color == "white" and steep.marker.color == every.marker.line.color == TRADITIONAL.colour
    on_bars = numbers_on_bars(figure)
    assert list(on_bars.text) == ["50.0", "25.0", "25.0", "100.0", "0.0", "0.0"]
    assert on_bars.y == (50, 25, 25, 100, 0, 0)
    assert on_bars.x == every.x + bars(figure)["JSAE"][0].x


def test_bars_count_all_samples_not_only_those_with_curves(shapes_figure):
    shares = many(300, 150)["shape"].value_counts(normalize=True)
    every, _ = bars(shapes_figure)["Traditional"]
    np.testing.assert_allclose(every.y, 100 * shares[["linear", "jumprelu", "other"]])


def test_shares_have_error_bars_of_two_standard_errors_and_their_numbers_stand_above_them():
    errors = {JSAE: {"shape": {"linear": 0.02, "jumprelu": 0.01, "other": 0.0}}}
    figure = function_shapes_figure({JSAE: ONE_OF_EACH}, SUBTITLE, errors=errors)
    (trace,) = [trace for trace in figure.data if trace.error_y.array is not None]
    assert list(trace.error_y.array) == [4, 2, 0]
    assert list(trace.y) == list(bars(figure)["JSAE"][0].y) and trace.x == bars(figure)["JSAE"][0].x
    assert list(numbers_on_bars(figure).y) == pytest.approx([54, 27, 25])
    assert "error bars: ± 2 SE, by document" in figure.layout.title.subtitle.text.replace("<br>", " ")


def test_bars_of_a_shape_stand_together_over_its_name(shapes_figure):
    axis = shapes_figure.layout.xaxis2
    assert (axis.tickvals, axis.ticktext) == ((0, 1, 2), ("linear", "jumprelu", "other"))
    (traditional, _), (jsae, _) = bars(shapes_figure).values()
    for place in range(3):
        assert place - 0.5 < traditional.x[place] < place < jsae.x[place] < place + 0.5
        assert jsae.x[place] - traditional.x[place] >= traditional.width


def test_variants_are_told_apart_in_grey(shapes_figure):
    assert len({steep.marker.pattern.shape for _, steep in bars(shapes_figure).values()}) == 2


def test_the_answers_are_the_shares_of_all_samples(curves_figure, shapes_figure):
    samples = many(300, 150)
    linear = f"{100 * (samples['shape'] == 'linear').mean():.0f}%"
    simple = f"{100 * samples['shape'].isin(['linear', 'jumprelu']).mean():.0f}%"
    assert answer(shapes_figure) == f"By the paper's rule {linear} (Traditional), 50% (JSAE)."
    assert answer(curves_figure).startswith(f"{simple} (Traditional), ")


def test_the_legend_names_each_variant_once_and_the_hollow(shapes_figure):
    names = [trace.name for trace in shapes_figure.data if trace.showlegend is not False]
    assert names == ["Traditional", "JSAE", "flat: range below 0.01"]
    assert shapes_figure.layout.yaxis2.title.text == "sampled functions (%)"


def test_reported_shares_are_open_diamonds_on_the_bars_of_their_variant():
    reported = {JSAE: {"other": 0.25, "linear": 0.55}}
    figure = function_shapes_figure({TRADITIONAL: ONE_OF_EACH, JSAE: ONE_OF_EACH}, SUBTITLE, reported)
    (drawn,) = diamonds(figure)
    every, _ = bars(figure)["JSAE"]
    assert drawn.x == (every.x[2], every.x[0])
    np.testing.assert_allclose(drawn.y, [25, 55])
    assert drawn.name == "reported (Farnik et al., 2025)" and drawn.showlegend is not False
    assert (drawn.marker.color, drawn.marker.line.color) == ("white", "#222222")
    assert figure.layout.yaxis2.range[1] > 55
    assert "numbers as measured here" in details(figure)


@pytest.mark.parametrize("reported", [None, {}, {JSAE: {}}])
def test_without_reported_shares_there_is_no_word_of_them(reported):
    figure = function_shapes_figure({JSAE: ONE_OF_EACH}, SUBTITLE, reported)
    assert not diamonds(figure) and "reported" not in figure.to_json()
    assert "measured here" not in details(figure)


@pytest.mark.parametrize(("reported", "covers"), [(0.5, True), (0.55, True), (0.3, False), (0.8, False)])
def test_a_number_that_a_diamond_would_cover_is_above_the_diamond(reported, covers):
    figure = function_shapes_figure({JSAE: ONE_OF_EACH}, SUBTITLE, {JSAE: {"linear": reported}})
    height = numbers_on_bars(figure).y[0]
    assert height > 100 * reported if covers else height == 50


@pytest.mark.parametrize("bad", [-0.1, 55.0, float("nan")])
def test_reported_shares_outside_zero_to_one_are_refused(bad):
    with pytest.raises(ValueError, match="reported share of 'linear' of 'JSAE'.*between 0 and 1"):
        function_shapes_figure({JSAE: ONE_OF_EACH}, SUBTITLE, {JSAE: {"linear": bad}})


def test_reported_shares_of_an_unknown_shape_or_of_what_is_not_drawn_are_refused():
    with pytest.raises(ValueError, match="'wavy'.*one of linear, jumprelu, other"):
        function_shapes_figure({JSAE: ONE_OF_EACH}, SUBTITLE, {JSAE: {"wavy": 0.1}})
    with pytest.raises(ValueError, match="'Traditional', which is not drawn"):
        function_shapes_figure({JSAE: ONE_OF_EACH}, SUBTITLE, {TRADITIONAL: {"linear": 0.1}})


def test_a_legend_of_many_variants_has_room_below_the_bars(shapes_figure):
    many_variants = {Variant(f"Traditional, randomised {place}", "#D55E00"): ONE_OF_EACH for place in range(4)}
    reported = {next(iter(many_variants)): {"linear": 0.5}}
    figure = function_shapes_figure(many_variants, SUBTITLE, reported)
    assert figure.layout.margin.b == shapes_figure.layout.margin.b + 60


# both


def test_figures_say_what_they_are_made_from_and_how_to_read_them(curves_figure, shapes_figure):
    for figure in (curves_figure, shapes_figure):
        subtitle = details(figure)
        assert subtitle.startswith(SUBTITLE)
        assert "input → output latent" in subtitle and "dot: where the token was" in subtitle
    assert "linear: within 0.01" in subtitle


def test_a_variant_has_its_colour_in_curves_bars_and_name(curves_figure, shapes_figure):
    for variant in (TRADITIONAL, JSAE):
        for figure in (curves_figure, shapes_figure):
            drawn = [t for t in figure.data if t.type == "scatter" and t.mode == "lines" and t.name == variant.label]
            assert {trace.line.color for trace in drawn} == {variant.colour}
            assert notes(figure).count(f'<b style="color:{variant.colour}">{variant.label}</b>') == 1
        every, steep = bars(shapes_figure)[variant.label]
        assert every.marker.line.color == steep.marker.color == variant.colour


def test_text_that_looks_like_markup_is_drawn_as_it_stands(draw):
    figure = draw({Variant("<b>J</b>", "#D55E00"): ONE_OF_EACH}, "a < b & c")
    assert details(figure).startswith("a &lt; b &amp; c")
    figure.layout.meta = None  # which is not drawn
    assert "<b>J</b>" not in figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
    assert '<b style="color:#D55E00">&lt;b&gt;J&lt;/b&gt;</b>' in notes(figure)


def test_curves_as_lists_are_drawn_like_arrays(draw):
    listed = ONE_OF_EACH.assign(**{name: ONE_OF_EACH[name].map(list) for name in ("input_values", "output_values")})
    assert draw({JSAE: listed}, SUBTITLE) == draw({JSAE: ONE_OF_EACH}, SUBTITLE)


def test_pages_stay_small(curves_figure, shapes_figure):
    wavy = [sample("other", np.sin(INPUTS * (1 + place / 20)) + 1, at=1.0) for place in range(100)]
    figure = function_curves_figure({TRADITIONAL: table(*wavy), JSAE: table(*wavy)}, SUBTITLE)
    assert len(page(figure, "plotly.min.js", {})) < 250_000
    assert len(page(shapes_figure, "plotly.min.js", {})) < 40_000


@pytest.mark.parametrize(
    "column",
    ["drawn", "shape", "flat", "input_latent", "output_latent", "input_activation", "input_values", "output_values"],
)
def test_samples_without_a_column_are_refused(draw, column):
    with pytest.raises(ValueError, match=f"'JSAE' lack {column}"):
        draw({TRADITIONAL: ONE_OF_EACH, JSAE: ONE_OF_EACH.drop(columns=column)}, SUBTITLE)


@pytest.mark.parametrize("column", ["drawn", "input_activation", "output_activation", "flat"])
def test_missing_values_are_refused(draw, column):
    samples = ONE_OF_EACH.astype({column: object})
    samples.loc[1, column] = float("nan")
    with pytest.raises(ValueError, match="'JSAE' hold NaN or infinite"):
        draw({JSAE: samples}, SUBTITLE)


@pytest.mark.parametrize(
    "curve",
    [
        {"output_values": np.where(INPUTS > 3, np.nan, RISING)},
        {"input_values": np.append(INPUTS[:-1], np.inf)},
        {"input_values": None},
        {"input_values": INPUTS[:50]},
        {"input_values": INPUTS[::-1]},
        {"input_values": INPUTS - 1},
        {"input_values": INPUTS[:1], "output_values": RISING[:1]},
    ],
)
def test_values_that_are_no_curve_are_refused(draw, curve):
    with pytest.raises(ValueError, match="'JSAE' have no curve where drawn is 1; expected"):
        draw({JSAE: table(sample(), sample(**curve))}, SUBTITLE)


@pytest.mark.parametrize("unknown", ["wavy", None])
def test_an_unknown_shape_is_refused(draw, unknown):
    with pytest.raises(ValueError, match="'JSAE' have the shape .*expected one of linear, jumprelu, other"):
        draw({JSAE: table(sample(), sample(unknown))}, SUBTITLE)


def test_a_variant_of_no_sample_is_refused(draw):
    with pytest.raises(ValueError, match="there are no samples of 'JSAE'"):
        draw({TRADITIONAL: ONE_OF_EACH, JSAE: ONE_OF_EACH[:0]}, SUBTITLE)


def test_a_figure_of_no_variant_is_refused(draw):
    with pytest.raises(ValueError, match="no variant"):
        draw({}, SUBTITLE)
