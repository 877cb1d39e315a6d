"""Figures: tables and tensors in, `plotly.graph_objects.Figure` out.

Here: one module for each subject that is drawn, and how all of them look (`style`). Not here: measuring (`measures/`),
writing a figure to a file, or choosing what to draw (the caller's). Knows neither torch nor Dagster.

The public names stand in `__init__.pyi`, and each is loaded when first used, as in `jsae_core`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
