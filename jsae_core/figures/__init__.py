"""Figures: tables and tensors in, `plotly.graph_objects.Figure` out.

Here: one module for each subject that is drawn, and how all of them look (`style`). Not here: measuring (`measures/`),
writing a figure to a file, or choosing what to draw (the caller's). Knows neither torch nor Dagster.

Names are loaded when first used, as in `jsae_core`.
"""

from jsae_core.lazy import lazy_names

_HOMES = {
    "Variant": "style",
    "jacobian_histogram_figure": "histogram",
    "jacobian_thresholds_figure": "thresholds",
    "jacobian_examples_figure": "examples",
    "permute_rows_and_columns": "examples",
}
__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
