"""How the magnitudes of Jacobian elements are distributed: histogram and cumulative distribution, variants together.

Here: drawing counted bins. Not here: counting (`measures.histogram`) and the share above single thresholds
(`thresholds`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from jsae_core.figures.style import MAGNITUDE, Variant, apply_style, plain, require_variants

VISIBLE = 95  # per cent of every variant's elements that the axes show at first; the rest is reached by zooming out


@dataclass(frozen=True)
class _Distribution:
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
    require_variants(variants)
    counts = {variant: _checked_counts(variant, histogram) for variant, histogram in variants.items()}
    bin_edges = _common_edges(variants)
    starts = _merged_starts(bin_edges.size - 1)
    edges = bin_edges[[*starts, -1]]
    distributions = {variant: _distribution(*count, starts, edges) for variant, count in counts.items()}
    visible = _visible_bins(distributions)
    densities = np.concatenate([d.density[:visible] for d in distributions.values()])
    bottom, top = np.log10([densities[densities > 0].min(), densities.max()])

    figure = make_subplots(1, 2, horizontal_spacing=0.16)
    for variant, distribution in distributions.items():
        figure.add_trace(_histogram_line(variant, distribution), row=1, col=1)
        figure.add_trace(_cumulative_line(variant, distribution), row=1, col=2)
    # just short of the edge, where the step to the next bin would stand on the border
    figure.update_xaxes(title_text=MAGNITUDE, range=[0, 0.99 * edges[visible]], nticks=6)
    figure.update_xaxes(matches="x", col=2)
    figure.update_yaxes(
        title_text=f"elements per {edges[1] - edges[0]:.3g} (%)",
        type="log",
        dtick=1,
        range=[bottom - 0.1, top + 0.1],
        col=1,
    )
    figure.update_yaxes(title_text="elements below |J| (%)", range=[0, 101], col=2)
    return apply_style(figure, "Size of the elements of the Jacobian", subtitle + _beyond(distributions), height=440)


def _checked_counts(variant: Variant, histogram: Mapping[str, ArrayLike]) -> tuple[np.ndarray, float]:
    """Counts in the bins and above them."""
    where = f"the histogram of {variant.label!r}"
    missing = {"hist", "overflow", "bin_edges"} - set(histogram)
    if missing:
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}")
    counts, overflow, edges = (np.asarray(histogram[name], dtype=float) for name in ("hist", "overflow", "bin_edges"))
    if counts.ndim != 1 or edges.shape != (counts.size + 1,) or overflow.size != 1:
        raise ValueError(
            f"{where} has hist {list(counts.shape)}, bin_edges {list(edges.shape)} and overflow "
            f"{list(overflow.shape)}; expected [n], [n + 1] and a single number"
        )
    everything = np.append(counts, overflow)
    if not np.isfinite(everything).all() or (everything < 0).any():
        raise ValueError(f"{where} holds counts that are negative or not finite")
    if not counts.any():
        raise ValueError(f"{where} counts no element inside its bins")
    return counts, float(everything[-1])


def _common_edges(variants: Mapping[Variant, Mapping[str, ArrayLike]]) -> np.ndarray:
    """The edges of the bins, which must be the same for all."""
    first, *others = variants
    edges = np.asarray(variants[first]["bin_edges"], dtype=float)
    if not (np.diff(edges) > 0).all():
        raise ValueError(f"the bin_edges of {first.label!r} do not increase")
    for variant in others:
        if not np.array_equal(edges, np.asarray(variants[variant]["bin_edges"])):
            raise ValueError(f"the bin_edges of {variant.label!r} differ from those of {first.label!r}")
    return edges


def _merged_starts(n_bins: int) -> list[int]:
    """The bins at which the merged bins start."""
    starts, stop = [], 0
    while stop < n_bins:
        starts.append(stop)
        stop += max(1, stop // 10)
    return starts


def _distribution(counts: np.ndarray, overflow: float, starts: list[int], edges: np.ndarray) -> _Distribution:
    total = counts.sum() + overflow
    return _Distribution(edges, 100 * np.add.reduceat(counts, starts) / total, 100 * overflow / total)


def _visible_bins(distributions: Mapping[Variant, _Distribution]) -> int:
    """How many bins it takes to see the visible share of every variant."""
    return max(min(np.searchsorted(d.below, VISIBLE), d.percent.size) for d in distributions.values())


def _histogram_line(variant: Variant, distribution: _Distribution) -> go.Scatter:
    density = distribution.density
    return go.Scatter(
        x=distribution.edges,
        y=np.append(density, density[-1]),  # from edge to edge: the last bin, too, ends at an edge
        name=plain(variant.label),
        legendgroup=variant.label,
        line={"color": variant.colour, "width": 2.5, "shape": "hv"},
        hovertemplate="|J| from %{x:.3~f}: %{y:.3~g} %",
    )


def _cumulative_line(variant: Variant, distribution: _Distribution) -> go.Scatter:
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


def _beyond(distributions: Mapping[Variant, _Distribution]) -> str:
    """A remark on the elements above the last edge, which no line can show; empty if there are none."""
    largest = max(distributions.values(), key=lambda distribution: distribution.overflow)
    if not largest.overflow:
        return ""
    return f" · at most {largest.overflow:.2g} % above {largest.edges[-1]:.4g}"
