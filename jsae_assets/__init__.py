"""The platform: jsae_core as a Dagster asset graph. Thin: each asset's body is a few lines that call jsae_core."""

import warnings

from dagster import BetaWarning, PreviewWarning

# Partition mappings, data versions and partitioned checks are used on purpose; Dagster is pinned, tests watch them.
for category in (BetaWarning, PreviewWarning):
    warnings.filterwarnings("ignore", category=category)
