"""Figures: tables and tensors in, `plotly.graph_objects.Figure` out.

Here: one module for each kind of figure, the look that they share (`style`), pages and pictures (`export`). Not here:
measuring (`measures/`), or choosing what to draw (the caller's choice). Imports neither torch nor Dagster.

The public names are listed in `__init__.pyi`. Each is loaded when it is first used, as in `jsae_core`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
