"""What an asset's run says where memory or disk did not suffice."""

import re
import tempfile

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from jsae_assets.resources import Compute
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
    assert re.search(
        r"This run keeps in the memory of cpu: the language model \S+ \([\d.]+ [kM]B\), the pair \([\d.]+ [kM]B\)",
        message,
    )
    for setting in ("JSAE_DEVICE", "JSAE_DTYPE=bfloat16", "JSAE_MEMORY_GIB", "JSAE_BATCH_TOKENS"):
        assert setting in message


@pytest.fixture
def memory_for():
    """A device on which the model has memory for so many tokens at once and no more: its first layer refuses them."""
    hooks = []

    def limit(n_tokens: int | None) -> None:
        def refuse(module, inputs):
            if isinstance(module, torch.nn.Embedding) and inputs[0].shape[-1] > 1 and inputs[0].numel() > n_tokens:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

        for hook in hooks:
            hook.remove()
        if n_tokens is not None:
            hooks.append(torch.nn.modules.module.register_module_forward_pre_hook(refuse))

    yield limit
    limit(None)


MEASURED = {
    "jsae/jacobian_histogram": "safetensors",
    "jsae/pair_quality": "parquet",
    "jsae/ablation_samples": "parquet",
}


def measured(tiny) -> dict[str, pd.DataFrame | dict[str, torch.Tensor]]:
    result = tiny.measure(1, *MEASURED, raise_on_error=True)
    halved = "out of memory on cpu with 512 tokens at once: beginning again with 256" in tiny.messages(result)
    files = {name: tiny.file(name, extension=extension) for name, extension in MEASURED.items()}
    read = {"safetensors": load_file, "parquet": pd.read_parquet}
    return {"halved": halved} | {name: read[MEASURED[name]](path) for name, path in files.items()}


def test_where_memory_runs_out_the_batch_is_halved_and_the_result_is_that_of_the_smaller_batch(
    entries, graph, memory_for
):
    tiny = graph(entries(), compute=Compute(device="cpu", batch_tokens=512))
    tiny.tokenise()
    tiny.measure(1, "jsae/sae_pair", raise_on_error=True)
    large = measured(tiny)
    memory_for(300)
    found = measured(tiny)
    memory_for(None)
    small = measured(graph(entries(), compute=Compute(device="cpu", batch_tokens=256)))
    assert [one.pop("halved") for one in (large, found, small)] == [False, True, False]
    for name, values in found.items():
        if isinstance(values, pd.DataFrame):
            pd.testing.assert_frame_equal(values, small[name])
            pd.testing.assert_frame_equal(values, large[name], rtol=1e-4, atol=1e-6)
        else:
            assert all(torch.equal(tensor, small[name][key]) for key, tensor in values.items())
            torch.testing.assert_close(values["hist"], large[name]["hist"], atol=5, rtol=0)


def test_who_runs_out_of_memory_with_few_tokens_too_is_told_the_settings(entries, graph, memory_for):
    tiny = graph(entries(), compute=Compute(device="cpu", batch_tokens=256))
    tiny.tokenise()
    tiny.measure(1, "jsae/sae_pair", raise_on_error=True)
    memory_for(0)
    message = failures(tiny.measure(1, "jsae/jacobian_histogram"))["jsae/jacobian_histogram"]
    assert "CUDA out of memory (simulated)" in message and "JSAE_DTYPE=bfloat16" in message


def test_other_errors_name_no_settings(entries, graph, monkeypatch):
    def fails(*arguments):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(histogram, "run_sandwich", fails)
    assert "JSAE_" not in histogram_failure(graph, entries)
