"""How the magnitudes of Jacobian elements are distributed: histogram and cumulative distribution, variants together.

Here: drawing counted bins, also for `sparsity`. Not here: counting (`measures.histogram`) and the share above single
thresholds (`thresholds`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from jsae_core.figures.style import MAGNITUDE, Variant, apply_style, plain, require_variants

VISIBLE = 95  # per cent of every variant's elements that the axes show at first; the rest is reached by zooming out
SHARE_AXIS = {"title_text": "elements below |J| (%)", "range": [0, 101]}


@dataclass(frozen=True)
class Distribution:
    """Per cent of all elements: in each bin, and above the last one."""

    edges: np.ndarray
    percent: np.ndarray
    overflow: float

    @property
    def density(self) -> np.ndarray:
        """Per cent of elements in as much of each bin as the first bin is wide."""
        widths = np.diff(self.edges)
        return self.percent * widths[0] / widths

    @property
    def below(self) -> np.ndarray:
        """Per cent of elements below each edge."""
        return np.append(0.0, np.cumsum(self.percent))

    @property
    def above(self) -> np.ndarray:
        """Per cent of elements above each edge."""
        return np.cumsum([self.overflow, *self.percent[::-1]])[::-1]


def jacobian_histogram_figure(variants: Mapping[Variant, Mapping[str, ArrayLike]], subtitle: str) -> go.Figure:
    """Histogram (left, logarithmic) and cumulative distribution (right) of |J|.

    Bins are merged so that a drawn bin is never wider than a tenth of the |J| where it begins, or is a single bin:
    that keeps the detail near zero, smooths the tail, where counts are low, and makes the figure small.

    Args:
        variants: for each variant `hist`, `overflow` and `bin_edges` as `jacobian_histogram` returns them.
        subtitle: model, layer, tokens and settings. The share of elements above the last bin is added, if any are.

    Raises:
        ValueError: no variant; counts missing, negative, not finite, or all zero; bins that do not fit the counts or
            differ between variants.
    """
    drawn = distributions(variants)
    figure = make_subplots(1, 2, horizontal_spacing=0.16)
    for variant, distribution in drawn.items():
        figure.add_trace(histogram_line(variant, distribution), row=1, col=1)
        figure.add_trace(cumulative_line(variant, distribution), row=1, col=2)
    figure.update_xaxes(title_text=MAGNITUDE, range=visible_range(drawn), nticks=6)
    figure.update_xaxes(matches="x", col=2)
    figure.update_yaxes(**density_axis([drawn]), col=1)
    figure.update_yaxes(**SHARE_AXIS, col=2)
    return apply_style(figure, "Size of the elements of the Jacobian", subtitle + _beyond(drawn), height=440)


def distributions(
    variants: Mapping[Variant, Mapping[str, ArrayLike]], names: tuple[str, str, str] = ("hist", "overflow", "bin_edges")
) -> dict[Variant, Distribution]:
    """What is drawn of counts, overflow and edges of those names, bins merged as in `jacobian_histogram_figure`.

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
    """Counts in the bins and above them."""
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
    """The edges of the bins, which must be the same for all."""
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
    # just short of the edge, where the step to the next bin would stand on the border
    return [0, 0.99 * edges[_visible_bins(distributions)]]


def density_axis(groups: Sequence[Mapping[Variant, Distribution]]) -> dict:
    """The logarithmic axis that shows what is visible of each of the groups."""
    densities = np.concatenate([d.density[: _visible_bins(group)] for group in groups for d in group.values()])
    bottom, top = np.log10([densities[densities > 0].min(), densities.max()])
    first, second = next(iter(groups[0].values())).edges[:2]
    return {
        "title_text": f"elements per {second - first:.3g} (%)",
        "type": "log",
        "dtick": 1,
        "exponentformat": "e",
        "range": [bottom - 0.1, top + 0.1],
    }


def _visible_bins(distributions: Mapping[Variant, Distribution]) -> int:
    return max(min(int(np.searchsorted(d.below, VISIBLE)), d.percent.size) for d in distributions.values())


def histogram_line(variant: Variant, distribution: Distribution) -> go.Scatter:
    density = distribution.density
    return go.Scatter(
        x=distribution.edges,
        y=np.append(density, density[-1]),  # from edge to edge: the last bin, too, ends at an edge
        name=plain(variant.label),
        legendgroup=variant.label,
        line={"color": variant.colour, "width": 2.5, "shape": "hv"},
        hovertemplate="|J| from %{x:.3~f}: %{y:.3~g} %",
    )


def cumulative_line(variant: Variant, distribution: Distribution) -> go.Scatter:
    return go.Scatter(
        x=distribution.edges,
        y=distribution.below,
        name=plain(variant.label),
        legendgroup=variant.label,
        showlegend=False,
        line={"color": variant.colour, "width": 2.5, "simplify": False},
        hovertemplate=(
            "|J| below %{x:.3~f}: %{y:.4~g} %<br>"
            f"above {distribution.edges[-1]:.4g}: {distribution.overflow:.2g} %<extra>{plain(variant.label)}</extra>"
        ),
    )


def _beyond(distributions: Mapping[Variant, Distribution]) -> str:
    """A remark on the elements above the last edge, which no line can show; empty if there are none."""
    largest = max(distributions.values(), key=lambda distribution: distribution.overflow)
    if not largest.overflow:
        return ""
    return f" · at most {largest.overflow:.2g} % above {largest.edges[-1]:.4g}"
