"""Figures: tables and tensors in, `plotly.graph_objects.Figure` out.

Here: one module for each subject that is drawn, and how all of them look (`style`). Not here: measuring (`measures/`),
writing a figure to a file, or choosing what to draw (the caller's). Knows neither torch nor Dagster.

Names are loaded when first used, as in `jsae_core`.
"""

from importlib import import_module

_HOMES = {
    "Variant": "style",
    "jacobian_histogram_figure": "histogram",
    "jacobian_thresholds_figure": "thresholds",
    "jacobian_examples_figure": "examples",
    "permute_rows_and_columns": "examples",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'jsae_core.figures' has no attribute {name!r}")
    return getattr(import_module(f"jsae_core.figures.{_HOMES[name]}"), name)
