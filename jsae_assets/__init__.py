"""The platform: jsae_core as a Dagster asset graph. Each asset's body is a few lines that call jsae_core."""

import warnings

# Dagster warns that partition mappings, data versions and partitioned checks may change. They are used on purpose: its
# version is pinned, and tests/jsae_assets/test_dagster_itself.py fails if they behave differently. The warnings are
# named by their words, because importing their classes imports Dagster, which takes seconds.
warnings.filterwarnings("ignore", message=r".* is currently in (beta|preview), ")
