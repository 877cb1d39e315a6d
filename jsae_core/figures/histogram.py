"""How the magnitudes of Jacobian elements are distributed: histogram and cumulative distribution, variants together.

Here: drawing histograms, also for `sparsity`. Not here: counting elements (`measures.histogram`) and the shares above
single thresholds (`thresholds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from jsae_core.figures.style import (
    MAGNITUDE,
    Look,
    Variant,
    apply_style,
    decade_numbers,
    looks,
    of_each,
    plain,
    require_variants,
)

VISIBLE = 95  # per cent of every variant's elements that the axes show at first; zooming out shows the rest
FEWEST_BINS = 10  # if fewer linear bins show them, these bins are too wide for the measured values
RARE = 0.1  # per cent of the elements that a logarithmic axis may leave out at each end
DOUBLING = 4  # so many logarithmic bins of the measure are merged into one of the figure
LOGARITHMIC = ("log_hist", "log_edges")
SHARE_AXIS = {"title_text": "elements below |J| (%)", "range": [0, 101]}


@dataclass(frozen=True)
class Distribution:
    """A histogram in per cent of all elements: in each bin (`percent`), and above the last one (`overflow`)."""

    edges: np.ndarray
    percent: np.ndarray
    overflow: float

    @property
    def density(self) -> np.ndarray:
        """Per cent of elements per width of the first bin."""
        widths = np.diff(self.edges)
        return self.percent * widths[0] / widths

    @property
    def below(self) -> np.ndarray:
        """Per cent of elements below each edge."""
        return np.append(0.0, np.cumsum(self.percent))

    @property
    def median(self) -> float:
        """The median of |J|; infinite if it is above the last edge."""
        return float(np.interp(50, self.below, self.edges, right=np.inf))

    @property
    def above(self) -> np.ndarray:
        """Per cent of elements above each edge."""
        return np.cumsum([self.overflow, *self.percent[::-1]])[::-1]


def jacobian_histogram_figure(variants: Mapping[Variant, Mapping[str, ArrayLike]], subtitle: str) -> go.Figure:
    """Histogram (left, logarithmic) and cumulative distribution (right) of |J|. The |J| axis is linear with the paper's
    bins of 0.001 if these bins fit the measured values; otherwise it is logarithmic with doublings of |J|, and the
    subtitle says so.

    The paper's bins fit if they cover 95% of every variant's elements, and if this takes at least 10 bins for some
    variant. Bins are merged such that a drawn bin is a single one or at most a tenth as wide as the |J| where it
    begins. This keeps the detail near zero, smooths the tail, where counts are low, and makes the figure small.

    Args:
        variants: for each variant `hist`, `overflow` and `bin_edges` as `jacobian_histogram` returns them, and, to
            allow a logarithmic axis, `log_hist` and `log_edges` as `jacobian_sizes` returns them.
        subtitle: model, layer, tokens and settings. The share of elements above the last bin is added, if there are
            any.

    Raises:
        ValueError: no variant; counts missing, negative, not finite, or all zero; bins that do not fit the counts or
            differ between variants.
    """
    panels = size_panels(variants)
    figure = make_subplots(1, 2, horizontal_spacing=0.16)
    for column, panel in enumerate((panels.density, panels.cumulative), start=1):
        for trace in panel.traces:
            figure.add_trace(trace, row=1, col=column)
        figure.update_xaxes(panel.x, col=column)
        figure.update_yaxes(panel.y, col=column)
    figure.update_xaxes(matches="x", col=2)
    return apply_style(
        figure, "How large are the elements of the Jacobian?", panels.answer, subtitle + panels.remark, height=440
    )


class Panel(NamedTuple):
    """Lines and their axes."""

    traces: list[go.Scatter]
    x: dict
    y: dict


class SizePanels(NamedTuple):
    """Histogram and cumulative distribution of |J|, their result in a sentence, and a remark on the bins for the
    subtitle."""

    density: Panel
    cumulative: Panel
    answer: str
    remark: str


def size_panels(variants: Mapping[Variant, Mapping[str, ArrayLike]]) -> SizePanels:
    """The panels of `jacobian_histogram_figure`, with the same errors."""
    drawn, look = distributions(variants), looks(variants)
    if paper_bins_fit(variants, drawn):
        x = {"title_text": MAGNITUDE, "range": visible_range(drawn), "nticks": 6}
        return SizePanels(
            Panel([histogram_line(*item, look[item[0]]) for item in drawn.items()], x, density_axis([drawn])),
            Panel([cumulative_line(*item, look[item[0]]) for item in drawn.items()], x, SHARE_AXIS),
            _median(drawn),
            _beyond(drawn),
        )
    scaled = {variant: _logarithmic(histogram) for variant, histogram in variants.items()}
    x = logarithmic_axis(scaled)
    y = {"title_text": "elements per doubling (%)", "rangemode": "tozero"}
    return SizePanels(
        Panel([_doublings_line(*item, look[item[0]]) for item in scaled.items()], x, y),
        Panel([cumulative_line(*item, look[item[0]]) for item in scaled.items()], x, SHARE_AXIS),
        _median(scaled),
        " · the paper's bins do not fit this scale: doublings of |J|",
    )


def _median(drawn: Mapping[Variant, Distribution]) -> str:
    return f"Half of the elements are below {of_each({v: f'{d.median:.2g}' for v, d in drawn.items()})}."


def paper_bins_fit(variants: Mapping[Variant, Mapping[str, ArrayLike]], drawn: Mapping[Variant, Distribution]) -> bool:
    """Whether the paper's linear bins fit the measured values, or are the only ones that were counted."""
    if not all(set(LOGARITHMIC) <= set(histogram) for histogram in variants.values()):
        return True
    edges = next(iter(drawn.values())).edges
    inside = all(distribution.overflow <= 100 - VISIBLE for distribution in drawn.values())
    return inside and edges[_visible_bins(drawn)] >= FEWEST_BINS * edges[1]


def _logarithmic(histogram: Mapping[str, ArrayLike]) -> Distribution:
    counts, edges = (np.asarray(histogram[name], dtype=float) for name in LOGARITHMIC)
    return Distribution(edges, 100 * counts / counts.sum(), 0.0)


def logarithmic_axis(distributions: Mapping[Variant, Distribution], title: str = MAGNITUDE) -> dict:
    """A logarithmic axis that holds nearly all elements of every variant except those that are exactly zero. Its
    numbers do not overlap, however many decades it has."""
    ends = []
    for distribution in distributions.values():
        above_zero = distribution.percent * (distribution.edges[:-1] > 0)
        shares = np.cumsum(above_zero) if above_zero.any() else np.cumsum(distribution.percent)
        first, last = np.searchsorted(shares, [RARE * shares[-1] / 100, (1 - RARE / 100) * shares[-1]])
        ends += [max(distribution.edges[first], distribution.edges[1]), distribution.edges[last + 1]]
    low, high = (np.log10(end) for end in (min(ends), max(end for end in ends if np.isfinite(end))))
    return {
        "title_text": title,
        "type": "log",
        "range": [low, max(high, low + 1)],
        "dtick": int(np.ceil(max(high - low, 1) / 4)),
        **decade_numbers(low, high),
    }


def _doublings_line(variant: Variant, distribution: Distribution, look: Look) -> go.Scatter:
    edges, percent = (
        distribution.edges[::DOUBLING],
        np.add.reduceat(distribution.percent, range(0, distribution.percent.size, DOUBLING)),
    )
    shown = np.flatnonzero(percent)
    # one more bin at each end, where the steps go down to zero; zero and infinity cannot be drawn on this axis
    shown = np.arange(max(shown[0] - 1, 1), min(shown[-1] + 2, percent.size)) if shown[-1] else np.array([1])
    return go.Scatter(
        x=edges[shown],
        y=percent[shown],
        name=plain(variant.label),
        legendgroup=variant.label,
        line={"color": variant.colour, "width": 2.5, "shape": "hv", "dash": look.dash},
        hovertemplate="|J| from %{x:.3~g} to twice that: %{y:.3~g}%",
    )


def distributions(
    variants: Mapping[Variant, Mapping[str, ArrayLike]], names: tuple[str, str, str] = ("hist", "overflow", "bin_edges")
) -> dict[Variant, Distribution]:
    """The distributions to draw, from counts, overflow and edges under these names, with bins merged as in
    `jacobian_histogram_figure`.

    Raises:
        ValueError: as `jacobian_histogram_figure`.
    """
    require_variants(variants)
    counts = {variant: _checked_counts(variant, histogram, names) for variant, histogram in variants.items()}
    bin_edges = _common_edges(variants, names[-1])
    starts = _merged_starts(bin_edges.size - 1)
    edges = bin_edges[[*starts, -1]]
    return {variant: _distribution(*count, starts, edges) for variant, count in counts.items()}


def _checked_counts(
    variant: Variant, histogram: Mapping[str, ArrayLike], names: tuple[str, str, str]
) -> tuple[np.ndarray, float]:
    """The counts in the bins, and the count above them. Raises ValueError if they cannot be drawn."""
    where = f"the histogram of {variant.label!r}"
    missing = set(names) - set(histogram)
    if missing:
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    counts, overflow, edges = (np.asarray(histogram[name], dtype=float) for name in names)
    if counts.ndim != 1 or edges.shape != (counts.size + 1,) or overflow.size != 1:
        raise ValueError(
            f"{where} has {names[0]} {list(counts.shape)}, {names[2]} {list(edges.shape)} and {names[1]} "
            f"{list(overflow.shape)}; expected [n], [n + 1] and a single number"
        )
    everything = np.append(counts, overflow)
    if not np.isfinite(everything).all() or (everything < 0).any():
        raise ValueError(f"{where} holds counts in {names[0]} or {names[1]} that are negative or not finite")
    if not counts.any():
        raise ValueError(f"{where} counts no element inside its bins of {names[0]}")
    return counts, float(everything[-1])


def _common_edges(variants: Mapping[Variant, Mapping[str, ArrayLike]], name: str) -> np.ndarray:
    """The edges of the bins. Raises ValueError unless all variants have the same."""
    first, *others = variants
    edges = np.asarray(variants[first][name], dtype=float)
    if not (np.diff(edges) > 0).all():
        raise ValueError(f"the {name} of {first.label!r} do not increase")
    for variant in others:
        if not np.array_equal(edges, np.asarray(variants[variant][name])):
            raise ValueError(f"the {name} of {variant.label!r} differ from those of {first.label!r}")
    return edges


def _merged_starts(n_bins: int) -> list[int]:
    """The bins at which the merged bins start."""
    starts, stop = [], 0
    while stop < n_bins:
        starts.append(stop)
        stop += max(1, stop // 10)
    return starts


def _distribution(counts: np.ndarray, overflow: float, starts: list[int], edges: np.ndarray) -> Distribution:
    total = counts.sum() + overflow
    return Distribution(edges, 100 * np.add.reduceat(counts, starts) / total, 100 * overflow / total)


def visible_range(distributions: Mapping[Variant, Distribution]) -> list[float]:
    """The |J| at which the axes start and end, to show the visible share of every variant."""
    edges = next(iter(distributions.values())).edges
    # just short of the edge, since the step to the next bin would lie on the border
    return [0, 0.99 * edges[_visible_bins(distributions)]]


def density_axis(groups: Sequence[Mapping[Variant, Distribution]]) -> dict:
    """The logarithmic axis of densities that shows the visible bins of all groups."""
    densities = np.concatenate([d.density[: _visible_bins(group)] for group in groups for d in group.values()])
    bottom, top = np.log10([densities[densities > 0].min(), densities.max()])
    first, second = next(iter(groups[0].values())).edges[:2]
    return {
        "title_text": f"elements per {second - first:.3g} (%)",
        "type": "log",
        "dtick": 1,
        **decade_numbers(bottom, top),
        "range": [bottom - 0.1, top + 0.1],
    }


def _visible_bins(distributions: Mapping[Variant, Distribution]) -> int:
    return max(min(int(np.searchsorted(d.below, VISIBLE)), d.percent.size) for d in distributions.values())


def histogram_line(variant: Variant, distribution: Distribution, look: Look) -> go.Scatter:
    density = distribution.density
    return go.Scatter(
        x=distribution.edges,
        y=np.append(density, density[-1]),  # repeated, so that the last bin reaches its right edge
        name=plain(variant.label),
        legendgroup=variant.label,
        line={"color": variant.colour, "width": 2.5, "shape": "hv", "dash": look.dash},
        hovertemplate="|J| from %{x:.3~g}: %{y:.3~g}%",
    )


def cumulative_line(variant: Variant, distribution: Distribution, look: Look) -> go.Scatter:
    # without empty bins, which are the most, and without infinity, which no axis can show
    below = distribution.below
    drawn = np.isfinite(distribution.edges) & (np.diff(below, prepend=-1) + np.diff(below, append=101) > 0)
    return go.Scatter(
        x=distribution.edges[drawn],
        y=below[drawn],
        name=plain(variant.label),
        legendgroup=variant.label,
        showlegend=False,
        line={"color": variant.colour, "width": 2.5, "simplify": False, "dash": look.dash},
        hovertemplate="|J| below %{x:.3~g}: %{y:.4~g}%",
    )


def _beyond(distributions: Mapping[Variant, Distribution]) -> str:
    """A remark on the elements above the last edge, which no line can show; empty if there are none."""
    largest = max(distributions.values(), key=lambda distribution: distribution.overflow)
    if not largest.overflow:
        return ""
    return f" · at most {largest.overflow:.2g}% above {largest.edges[-1]:.4g}"
