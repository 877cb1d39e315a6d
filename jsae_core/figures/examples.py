"""Examples of Jacobians: heat maps of |J| at a few tokens, one variant below the other.

Here: shuffling, scaling and drawing given Jacobians. Not here: computing them, or choosing the tokens.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from jsae_core.figures.style import (
    FONT_SIZE,
    MAGNITUDE,
    WIDTH,
    Variant,
    apply_style,
    of_each,
    percent,
    plain,
    require_variants,
)
from jsae_core.terms import NOTEWORTHY

# The colours end at this quantile of all elements, because a few strong ones would leave all others pale.
COLOUR_QUANTILE = 0.99
# Perceptually uniform, nearly white at zero. In bands, which halves the size of a PNG and is hardly visible.
_BANDS = sample_colorscale("dense", 16)
_COLOUR_SCALE = [(edge / len(_BANDS), colour) for band, colour in enumerate(_BANDS) for edge in (band, band + 1)]
COLUMNS = 4  # so many heat maps fill the width; fewer are not enlarged, more are made smaller
TOKEN_CHARACTERS, LABEL_CHARACTERS = 12, 14  # that fit above and beside a heat map
LEFT, RIGHT, ABOVE, BELOW, GAP = 104, 140, 44, 44, 12  # px around and between the heat maps
_WHITESPACE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})

Normalisation = Literal["l1", "l2"] | None
_TITLES = {
    None: "Jacobians at example tokens",
    "l1": "Jacobians at example tokens, each divided by its L1 norm",
    "l2": "Jacobians at example tokens, each divided by its L2 norm",
}
_UNITS = {None: MAGNITUDE, "l1": "|J| / L1 norm of J", "l2": "|J| / L2 norm of J"}


def jacobian_examples_figure(
    variants: Mapping[Variant, Mapping[str, ArrayLike]],
    tokens: Sequence[str],
    subtitle: str,
    normalise: Normalisation,
    seed: int,
) -> go.Figure:
    """Heat maps of |J|: a row for each variant, a column for each token, one colour scale for all.

    Rows and columns of every matrix are shuffled, because their descending order of activations suggests a structure
    that the Jacobian does not have. The order depends on the seed, but not on the normalisation.

    Args:
        variants: for each variant, at the same tokens, `jacobian` [n_tokens, k_out, k_in], `output_latents`
            [n_tokens, k_out] and `input_latents` [n_tokens, k_in], as `run_sandwich` gives them.
        tokens: the text of each token, [n_tokens]; about four are readable.
        subtitle: model, layer, tokens and settings. A remark that rows and columns are shuffled is added.
        normalise: divide each Jacobian by its sum of |J| ("l1") or its root of the sum of J^2 ("l2"), or not (None).
        seed: seed of the shuffling.

    Raises:
        ValueError: no variant or token, Jacobians that are not one finite matrix for each token, latents whose shapes
            do not fit the rows and columns, an unknown normalisation.
    """
    require_variants(variants)
    if not tokens:
        raise ValueError("there is no token to draw; expected at least one")
    if normalise not in _TITLES:
        raise ValueError(f"unknown normalisation {normalise!r}; expected None, 'l1' or 'l2'")
    measured = {variant: _magnitudes(variant, of["jacobian"], len(tokens)) for variant, of in variants.items()}
    latents = {variant: _latents(variant, of, measured[variant].shape) for variant, of in variants.items()}
    magnitudes = {variant: _normalised(of, normalise) for variant, of in measured.items()}
    columns = max(COLUMNS, len(tokens))
    side = (WIDTH - LEFT - RIGHT - GAP * (columns - 1)) / columns
    width, height = (side * n + GAP * (n - 1) for n in (len(tokens), len(variants)))
    figure = make_subplots(
        len(variants),
        len(tokens),
        column_titles=[plain(_visible(token)) for token in tokens],
        horizontal_spacing=GAP / width,
        vertical_spacing=GAP / height,
    )
    generator = np.random.default_rng(seed)
    for row, (variant, matrices) in enumerate(magnitudes.items(), start=1):
        for column, (token, matrix, *of_token) in enumerate(
            zip(tokens, matrices, *latents[variant], strict=True), start=1
        ):
            where = f"{plain(variant.label)}, token {plain(_visible(token))}"
            figure.add_trace(_heat_map(matrix, of_token, where, generator), row=row, col=column)
        figure.update_yaxes(title_text=_row_title(variant), row=row, col=1)
    figure.update_annotations(font_size=FONT_SIZE, yshift=7)
    figure.update_xaxes(title_text="input latents", row=len(variants))
    shuffled = f"{subtitle} · rows and columns shuffled"
    answer = _large(measured) if normalise is None else _concentrated(measured)
    apply_style(figure, _TITLES[normalise], answer, shuffled, height=round(ABOVE + height + BELOW))
    axis = {"type": "category", "showticklabels": False, "ticks": "", "showgrid": False, "mirror": True}
    figure.update_xaxes(axis, title_standoff=6)
    figure.update_yaxes(axis, title_standoff=6, autorange="reversed")
    margin = figure.layout.margin
    return figure.update_layout(
        margin={"l": LEFT, "r": WIDTH - LEFT - width, "t": margin.t + ABOVE, "b": BELOW, "autoexpand": False},
        coloraxis=_colour_axis(np.concatenate([m.ravel() for m in magnitudes.values()]), _UNITS[normalise]),
    )


def permute_rows_and_columns(matrix: ArrayLike, seed: int | np.random.Generator) -> np.ndarray:
    """Shuffle the rows and the columns of a matrix, each as a whole: elements of a row stay in one row."""
    matrix = np.asarray(matrix)
    return matrix[np.ix_(*_orders(matrix, np.random.default_rng(seed)))]


def _orders(matrix: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random orders of the rows and of the columns of a matrix."""
    rows, columns = matrix.shape
    return generator.permutation(rows), generator.permutation(columns)


def _magnitudes(variant: Variant, jacobians: ArrayLike, n_tokens: int) -> np.ndarray:
    magnitudes = np.abs(np.asarray(jacobians, dtype=np.float32))
    if magnitudes.ndim != 3 or len(magnitudes) != n_tokens or not magnitudes.size:
        raise ValueError(
            f"the Jacobians of {variant.label!r} are {list(magnitudes.shape)}; expected [{n_tokens}, k_out, k_in]"
        )
    if not np.isfinite(magnitudes).all():
        raise ValueError(f"the Jacobians of {variant.label!r} hold NaN or infinite values")
    return magnitudes


def _latents(variant: Variant, given: Mapping[str, ArrayLike], shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The latents of the rows and of the columns of each matrix. Raises ValueError if their shapes do not fit."""
    latents = np.asarray(given["output_latents"]), np.asarray(given["input_latents"])
    expected = shape[:2], (shape[0], shape[2])
    for name, values, expected_shape in zip(("output_latents", "input_latents"), latents, expected, strict=True):
        if values.shape != expected_shape:
            raise ValueError(
                f"the {name} of {variant.label!r} are {list(values.shape)}; expected {list(expected_shape)}"
            )
    return latents


def _large(measured: Mapping[Variant, np.ndarray]) -> str:
    shares = of_each({variant: percent(float((of >= NOTEWORTHY).mean())) for variant, of in measured.items()})
    return f"|J| is {NOTEWORTHY:g} or more for {shares} of the elements shown."


def _concentrated(measured: Mapping[Variant, np.ndarray]) -> str:
    """A sentence on how concentrated the Jacobians are; every matrix counts the same, whatever its norm."""
    shares = {}
    for variant, of in measured.items():
        falling = np.sort(of.reshape(len(of), -1), axis=1)[:, ::-1]
        sums = falling.sum(axis=1)
        strongest = falling[:, : max(1, falling.shape[1] // 10)].sum(axis=1)
        shares[variant] = percent(float((strongest / np.where(sums == 0, 1, sums)).mean()))
    return f"The strongest tenth of the elements has {of_each(shares)} of the sum of |J|."


def _normalised(magnitudes: np.ndarray, normalise: Normalisation) -> np.ndarray:
    """Each matrix divided by its norm; a matrix of zeros stays unchanged."""
    if normalise is None:
        return magnitudes
    order = {"l1": 1, "l2": 2}[normalise]
    norms = np.linalg.norm(magnitudes.reshape(len(magnitudes), -1), ord=order, axis=1)
    return magnitudes / np.where(norms == 0, 1, norms)[:, None, None]


def _heat_map(
    matrix: np.ndarray, latents: Sequence[np.ndarray], where: str, generator: np.random.Generator
) -> go.Heatmap:
    """The heat map of a matrix, shuffled as in `permute_rows_and_columns`. The hover text of an element names its two
    latents."""
    orders = _orders(matrix, generator)
    outputs, inputs = (of[order].tolist() for of, order in zip(latents, orders, strict=True))
    return go.Heatmap(
        z=matrix[np.ix_(*orders)],
        x=inputs,
        y=outputs,
        name=where,
        coloraxis="coloraxis",
        hovertemplate=f"{where}<br>input latent %{{x}} → output latent %{{y}}: %{{z:.3~g}}<extra></extra>",
    )


def _colour_axis(values: np.ndarray, unit: str) -> dict:
    limit = float(f"{np.quantile(values, COLOUR_QUANTILE) or values.max() or 1:.2g}")
    return {
        "colorscale": _COLOUR_SCALE,
        "cmin": 0,
        "cmax": limit,
        "colorbar": {
            "title": {"text": unit, "side": "right", "font": {"size": FONT_SIZE}},
            "thickness": 18,
            "tickvals": [0, limit / 2, limit],
            "ticktext": ["0", f"{limit / 2:.2g}", f"≥ {limit:.2g}"],
            "len": 1,
            "x": 1,
            "xpad": 16,
            "ypad": 0,
            "outlinewidth": 0,
        },
    }


def _row_title(variant: Variant) -> str:
    label = "<br>".join(map(plain, textwrap.wrap(variant.label, LABEL_CHARACTERS)))
    return f'<b style="color:{variant.colour}">{label}</b><br>output latents'


def _visible(token: str) -> str:
    """The token with symbols for whitespace and escapes for other control characters, shortened if it is long."""
    drawn = "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in token.translate(_WHITESPACE)
    )
    return drawn if len(drawn) <= TOKEN_CHARACTERS else drawn[: TOKEN_CHARACTERS - 1] + "…"
