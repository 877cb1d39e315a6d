"""The groups of the asset graph. The UI sorts them by name, so each name begins with its position in the workflow."""

CATALOG = "1_catalog"
TEXT = "2_text"
SWEEPS = "4_sweeps"
FIGURES = "5_figures"
SITE = "6_site"


def of_variant(variant: str) -> str:
    """Return the group of a variant's pairs and of the measures on them."""
    return f"3_{variant}"
