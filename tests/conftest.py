"""What every test shares: no test reaches the network or needs a GPU, and hypothesis draws the same examples on every
machine."""

import os

# Read by huggingface_hub and datasets when they are first imported, so it is set before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
# Read by Triton: kernels run in its interpreter, on CPU tensors. On a machine with a GPU, 0 has them compiled for it.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A user's instance is neither read nor written.
os.environ.pop("DAGSTER_HOME", None)

import pytest
import wandb
from hypothesis import HealthCheck, settings

settings.register_profile(
    "jsae",
    deadline=None,
    derandomize=True,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("jsae")

LONGEST = ("test_ui.py", "test_written.py", "test_at_once.py")


def pytest_collection_modifyitems(items):
    """The longest begin first: where processes share the tests, none is left alone with them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def nothing_known_of_servers(monkeypatch):
    """A server of another test, at the same port, may have been silent."""
    monkeypatch.setattr("jsae_core.silence._silent_at", {})


@pytest.fixture(scope="module")
def no_wandb_process_left():
    """The client's helper process takes its settings from the first use in a process, and would live on to its end."""
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture
def point_client_at(monkeypatch, tmp_path):
    """Has wandb's client speak to a server alone, as impatiently as it can."""

    def point(server) -> None:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", server.api_key)
        monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
        monkeypatch.setenv("WANDB__GRAPHQL_RETRY_MAX", "1")
        monkeypatch.setenv("WANDB__GRAPHQL_RETRY_WAIT_MAX_SECONDS", "1")

    return point


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on loopback, which is the only one that the Hugging Face hub's client speaks to. The client read its
    environment when it was imported."""
    from tests.hub_server import HubServer

    with HubServer() as server:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield server
