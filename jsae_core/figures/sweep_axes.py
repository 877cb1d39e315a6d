"""The axes of a sweep's charts: how each measure of a run is drawn, and the colours of λ.

Here: titles, units and ranges of the measures, ticks, the colour bar. Not here: what is drawn on the axes (`sweep.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from plotly.colors import sample_colorscale

from jsae_core.figures.labels import SMALL
from jsae_core.figures.style import plain

ROOM = 0.07  # free space at each end of an axis, as a share of the range of the values
LARGEST_KURTOSIS = 12  # its decimal logarithm; no number of elements that was ever measured allows more
NO_PENALTY = "#BBBBBB"  # λ = 0, which has no logarithm


class Measure(NamedTuple):
    """A measure that can be drawn on an axis. The axis ends at `least` and `most` even if there are values beyond."""

    name: str
    hint: str = ""  # added to the title
    least: float = -np.inf
    most: float = np.inf
    narrowest: float = 0  # the least range of the axis
    unit: float = 1  # factor from the number in the table to the drawn one
    log: bool = False  # a logarithmic axis; then `least`, `most` and `narrowest` are decimal logarithms

    def scaled(self, values: pd.Series) -> np.ndarray:
        numbers = self.unit * values.to_numpy(dtype=float)
        return np.log10(np.maximum(numbers, 1e-300)) if self.log else numbers


class Axis(NamedTuple):
    """The range of a measure that an axis shows, in scaled numbers (see `Measure.scaled`)."""

    measure: Measure
    low: float
    high: float

    def beyond(self, values: pd.Series) -> np.ndarray:
        """-1 for values below the range, 1 for values above it, otherwise 0."""
        scaled = self.measure.scaled(values)
        return (scaled > self.high).astype(int) - (scaled < self.low).astype(int)

    def places(self, values: pd.Series) -> np.ndarray:
        """The positions at which values are drawn; values beyond the axis are drawn at its end."""
        scaled = self.measure.scaled(values)
        inset = ROOM / 2 * (self.high - self.low)
        ends = scaled.clip(self.low + inset, self.high - inset)
        inside = np.where(self.beyond(values) == 0, scaled, ends)
        return 10**inside if self.measure.log else inside

    def pixels(self, places: np.ndarray, length: float) -> np.ndarray:
        """Px from the lower end of an axis of this length; the axis must not be logarithmic."""
        return (places - self.low) / (self.high - self.low) * length

    def layout(self, nticks: int = 6) -> dict:
        layout = {"range": [self.low, self.high], "nticks": nticks}
        return layout | {"type": "log", **_log_ticks(self.low, self.high)} if self.measure.log else layout


def measure_of(name: str) -> Measure:
    """How a column of the table is drawn."""
    if name.startswith("above_"):
        return Measure(f"|J| ≥ {name.removeprefix('above_')}", "(%)", 0, 100, narrowest=2, unit=100)
    if name == "kurtosis":
        return Measure("kurtosis", "↑ sparser", least=0, most=LARGEST_KURTOSIS, narrowest=0.3, log=True)
    if name == "l1_over_l2":
        return Measure("L1/L2", "↓ sparser", 0, 1, narrowest=0.02)
    if name == "accounted_share":
        return Measure("accounted share", "by the input latents", -1, 1.5, narrowest=0.02)
    scores = {"ce_score": "CE score", "kl_score": "KL score", "explained_variance": "explained variance"}
    sides = {"": "mean of both SAEs", "_input": "input SAE", "_output": "output SAE"}
    for score, title in scores.items():
        for side, hint in sides.items():
            if name == score + side:
                return Measure(title, hint, 0, 1, narrowest=0.02)
    return Measure(name)


def title_of(name: str) -> str:
    measure = measure_of(name)
    small = f'<span style="font-size:{SMALL - 2}px">{plain(measure.hint)}</span>'
    return plain(measure.name) + (f"<br>{small}" if measure.hint else "")


def axis_of(measure: Measure, values: pd.Series) -> Axis:
    """The axis that shows these values, of which at least one is not NaN."""
    inside = measure.scaled(values.dropna()).clip(measure.least, measure.most)
    low, high = inside.min(), inside.max()
    reach = max(high - low, measure.narrowest) or 1
    middle, half = (low + high) / 2, (0.5 + ROOM) * reach
    return Axis(measure, float(middle - half), float(middle + half))


def _log_ticks(low: float, high: float) -> dict:
    """Ticks for an axis or a colour bar from 10**low to 10**high: powers of ten; if these are few, also 2 and 5 times
    them; if even these are few, all multiples, of which only 1, 2 and 5 are written if there are many."""
    decades = 10.0 ** np.arange(np.floor(low), np.ceil(high) + 1)
    for steps in ([1], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]):
        ticks = np.outer(decades, steps).ravel()
        ticks = ticks[(ticks >= 10**low) & (ticks <= 10**high)]
        if ticks.size > 2:
            break
    round_ones = np.isin([f"{tick:.0e}"[0] for tick in ticks], ["1", "2", "5"])
    written = round_ones if ticks.size > 3 and round_ones.sum() > 1 else np.ones_like(round_ones)
    return {
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" if shown else "" for tick, shown in zip(ticks, written, strict=True)],
    }


def colour_axis(coefficients: pd.Series) -> dict:
    """Perceptually uniform over the logarithm of λ, with a block of another colour at the lower end for zero."""
    positive = coefficients[coefficients > 0]
    low, high = np.log10([positive.min(), positive.max()]) if positive.size else (0.0, 0.0)
    if low == high:
        low, high = low - 0.5, high + 0.5
    ticks = _log_ticks(low, high)
    values, texts = np.log10(ticks["tickvals"]), ticks["ticktext"]
    zeros = (coefficients == 0).any()
    block = 0.1 * (high - low) if zeros else 0
    share = block / (high - low + block)
    # without the light end of the scale, which would not be visible on white
    colours = sample_colorscale("viridis", np.linspace(0, 0.93, 24))
    scale = [[float(place), colour] for place, colour in zip(np.linspace(share, 1, 24), colours, strict=True)]
    if zeros:
        edge = 0.99 * share  # so that rounding does not put the smallest λ into the block
        scale = [[0, NO_PENALTY], [edge, NO_PENALTY], [edge, colours[0]], *scale]
        values, texts = [low - block / 2, *values], ["0", *texts]
    return {
        "colorscale": scale,
        "cmin": low - block,
        "cmax": high,
        "showscale": coefficients.nunique() > 1,
        "colorbar": {
            "title": {"text": "λ", "side": "top"},
            "tickvals": values,
            "ticktext": texts,
            "tickfont": {"size": SMALL},
            "x": 1,
            "xpad": 14,
            "thickness": 18,
            "len": 1,
            "ypad": 0,
            "outlinewidth": 1,
        },
    }
