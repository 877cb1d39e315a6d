"""What Jacobians look like: heat maps of |J| at a few tokens, variants below each other.

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

from jsae_core.figures.style import FONT_SIZE, MAGNITUDE, WIDTH, Variant, apply_style, plain, require_variants

# A few strong elements would leave all others pale: the colours end at this quantile of all that is drawn.
COLOUR_QUANTILE = 0.99
# Perceptually uniform, nearly white at zero. In bands, because that halves the size of a PNG and is hardly seen.
_BANDS = sample_colorscale("dense", 16)
_COLOUR_SCALE = [(edge / len(_BANDS), colour) for band, colour in enumerate(_BANDS) for edge in (band, band + 1)]
COLUMNS = 4  # heat maps that fill the width; fewer do not grow, more shrink
TOKEN_CHARACTERS, LABEL_CHARACTERS = 12, 14  # that fit beside a heat map
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
    variants: Mapping[Variant, ArrayLike],
    tokens: Sequence[str],
    subtitle: str,
    normalise: Normalisation,
    seed: int,
) -> go.Figure:
    """Heat maps of |J|: a row for each variant, a column for each token, one colour scale for all.

    Rows and columns of every matrix are shuffled, because the descending order of activations that they come in
    suggests a structure that the Jacobian does not have. A seed shuffles alike whatever the normalisation.

    Args:
        variants: Jacobians [n_tokens, k_out, k_in] of each variant, at the same tokens.
        tokens: the text of each token, [n_tokens]; about four are readable.
        subtitle: model, layer, tokens and settings. It is added that rows and columns are shuffled.
        normalise: divide each Jacobian by its sum of |J| ("l1") or its root of the sum of J^2 ("l2"), or not (None).
        seed: of the shuffling.

    Raises:
        ValueError: no variant or token, Jacobians that are not one finite matrix a token, an unknown normalisation.
    """
    require_variants(variants)
    if not tokens:
        raise ValueError("there is no token to draw; expected at least one")
    if normalise not in _TITLES:
        raise ValueError(f"unknown normalisation {normalise!r}; expected None, 'l1' or 'l2'")
    magnitudes = {
        variant: _normalised(_magnitudes(variant, jacobians, len(tokens)), normalise)
        for variant, jacobians in variants.items()
    }
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
        for column, matrix in enumerate(matrices, start=1):
            figure.add_trace(_heat_map(permute_rows_and_columns(matrix, generator)), row=row, col=column)
        figure.update_yaxes(title_text=_row_title(variant), row=row, col=1)
    figure.update_annotations(font_size=FONT_SIZE, yshift=4)
    figure.update_xaxes(title_text="input latents", row=len(variants))
    shuffled = f"{subtitle} · rows and columns shuffled"
    apply_style(figure, _TITLES[normalise], shuffled, height=round(ABOVE + height + BELOW))
    figure.update_xaxes(showticklabels=False, ticks="", showgrid=False, mirror=True, title_standoff=6)
    figure.update_yaxes(
        showticklabels=False, ticks="", showgrid=False, mirror=True, title_standoff=6, autorange="reversed"
    )
    margin = figure.layout.margin
    return figure.update_layout(
        margin={"l": LEFT, "r": WIDTH - LEFT - width, "t": margin.t + ABOVE, "b": BELOW, "autoexpand": False},
        coloraxis=_colour_axis(np.concatenate([m.ravel() for m in magnitudes.values()]), _UNITS[normalise]),
    )


def permute_rows_and_columns(matrix: ArrayLike, seed: int | np.random.Generator) -> np.ndarray:
    """The matrix with its rows and its columns shuffled, each as a whole: elements of a row stay together."""
    matrix = np.asarray(matrix)
    generator = np.random.default_rng(seed)
    rows, columns = (generator.permutation(size) for size in matrix.shape)
    return matrix[np.ix_(rows, columns)]


def _magnitudes(variant: Variant, jacobians: ArrayLike, n_tokens: int) -> np.ndarray:
    magnitudes = np.abs(np.asarray(jacobians, dtype=np.float32))
    if magnitudes.ndim != 3 or len(magnitudes) != n_tokens or not magnitudes.size:
        raise ValueError(
            f"the Jacobians of {variant.label!r} are {list(magnitudes.shape)}; expected [{n_tokens}, k_out, k_in]"
        )
    if not np.isfinite(magnitudes).all():
        raise ValueError(f"the Jacobians of {variant.label!r} hold NaN or infinite values")
    return magnitudes


def _normalised(magnitudes: np.ndarray, normalise: Normalisation) -> np.ndarray:
    """Each matrix over its norm; a matrix of zeros stays one."""
    if normalise is None:
        return magnitudes
    order = {"l1": 1, "l2": 2}[normalise]
    norms = np.linalg.norm(magnitudes.reshape(len(magnitudes), -1), ord=order, axis=1)
    return magnitudes / np.where(norms == 0, 1, norms)[:, None, None]


def _heat_map(matrix: np.ndarray) -> go.Heatmap:
    return go.Heatmap(z=matrix, coloraxis="coloraxis", hovertemplate="%{z:.3~g}<extra></extra>")


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
    """The token with its whitespace drawn and its other control characters spelled out, cut if it is long."""
    drawn = "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in token.translate(_WHITESPACE)
    )
    return drawn if len(drawn) <= TOKEN_CHARACTERS else drawn[: TOKEN_CHARACTERS - 1] + "…"
