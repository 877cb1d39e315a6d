"""The whole graph on an accelerator that is pretended: no test machine has one."""

import pandas as pd
import torch
from safetensors.torch import load_file

from jsae_assets.resources import Compute
from tests.accelerator import Accelerator
from tests.jsae_assets.conftest import PER_VARIANT, materialised, metadata


class Pretended(Compute):
    def torch_device(self) -> torch.device:
        return Accelerator.device


def test_a_cell_computed_on_an_accelerator_stores_what_the_cpu_does(measured, entries, graph):
    there, on_cpu = graph(entries(), compute=Pretended(device="cpu")), measured.graph
    with Accelerator():
        there.tokenise()
        computed = {f"{variant}/{asset}" for variant in ("traditional", "jsae") for asset in PER_VARIANT}
        result = there.measure(1, *computed, raise_on_error=True)
    assert metadata(result, "jsae/sae_pair")["device"] == str(Accelerator.device)
    assert materialised(result) == computed
    for path in there.storage.rglob("*.safetensors"):
        expected = load_file(on_cpu.storage / path.relative_to(there.storage))
        torch.testing.assert_close(load_file(path), expected, rtol=0, atol=0, equal_nan=True)
    for path in there.storage.rglob("*.parquet"):
        expected = pd.read_parquet(on_cpu.storage / path.relative_to(there.storage))
        pd.testing.assert_frame_equal(pd.read_parquet(path), expected)
