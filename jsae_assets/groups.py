"""The groups of the asset graph, in the order of the work: the UI sorts them by name, so each begins with its place."""

CATALOG = "1_catalog"
TEXT = "2_text"
SWEEPS = "4_sweeps"
FIGURES = "5_figures"
SITE = "6_site"


def of_variant(variant: str) -> str:
    """A variant's pairs and what is measured on them."""
    return f"3_{variant}"
