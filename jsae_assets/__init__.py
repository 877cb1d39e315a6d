"""The platform: jsae_core as a Dagster asset graph. Each asset's body is a few lines that call jsae_core."""

import warnings

from dagster import BetaWarning, PreviewWarning

# Dagster warns that partition mappings, data versions and partitioned checks may change. They are used on purpose: its
# version is pinned, and tests/jsae_assets/test_dagster_itself.py fails if they behave differently.
for category in (BetaWarning, PreviewWarning):
    warnings.filterwarnings("ignore", category=category)
