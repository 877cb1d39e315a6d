"""What every test shares: no test reaches the network, and hypothesis draws the same examples on every machine."""

import os

# Read by huggingface_hub and datasets when they are first imported, so it is set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import HealthCheck, settings

settings.register_profile(
    "jsae",
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("jsae")
