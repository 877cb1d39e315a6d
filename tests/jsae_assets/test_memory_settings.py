"""What an asset's run says where memory or disk did not suffice."""

import tempfile

import pytest
import torch

from jsae_core.measures import histogram, kept_jacobians
from tests.jsae_assets.conftest import failures

JSAE = ("jsae/sae_pair", "jsae/jacobian_histogram")


def histogram_failure(graph, entries) -> str:
    tiny = graph(entries())
    tiny.tokenise()
    return failures(tiny.measure(1, *JSAE))["jsae/jacobian_histogram"]


def test_a_full_disk_names_the_setting_for_more_memory(entries, graph, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **kwargs: open("/dev/full", "w+b", buffering=0))
    keep = kept_jacobians.KeptJacobians
    monkeypatch.setattr(histogram, "KeptJacobians", lambda d_sae, _, *rest, **more: keep(d_sae, 0, *rest, **more))
    message = histogram_failure(graph, entries)
    assert "TMPDIR" in message and "JSAE_MEMORY_GIB" in message


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError], ids=lambda error: error.__name__)
def test_what_does_not_fit_names_the_settings_that_take_less(entries, graph, monkeypatch, error):
    def fails(*arguments):
        raise error("the tables take 9 GB")

    monkeypatch.setattr(histogram, "run_sandwich", fails)
    message = histogram_failure(graph, entries)
    assert "the tables take 9 GB" in message
    for setting in ("JSAE_DEVICE", "JSAE_DTYPE=bfloat16", "JSAE_MEMORY_GIB", "JSAE_BATCH_TOKENS"):
        assert setting in message


def test_other_errors_name_no_settings(entries, graph, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(histogram, "run_sandwich", fails)
    assert "JSAE_" not in histogram_failure(graph, entries)
