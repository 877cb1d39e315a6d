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
    "jacobian_sparsity_figure": "sparsity",
    "quality_by_layer_figure": "quality",
    "jacobian_examples_figure": "examples",
    "permute_rows_and_columns": "examples",
    "ablation_figure": "ablation",
    "function_curves_figure": "function_curves",
    "function_shapes_figure": "function_curves",
    "sweep_tradeoff_figure": "sweep",
    "sweep_grid_figure": "sweep",
    "edge_curve_figure": "edge_curve",
}
__all__ = list(_HOMES)
__getattr__ = lazy_names(__name__, _HOMES)
