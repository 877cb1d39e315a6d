"""What is done on NVIDIA's GPUs alone, on one that is pretended: that it gives what the CPU gives, and how often the
processor and the device wait for each other."""

import pandas as pd
import pytest
import torch

from jsae_core import MLPInputs, SAEPair, load_language_model, train_pair
from jsae_core.measures import (
    ablation_samples,
    array_file,
    function_shapes,
    jacobian_histogram,
    latent_accounting,
    nearby,
    pair_quality,
)
from jsae_core.measures.array_file import ArrayFile
from jsae_core.measures.histogram import jacobian_histograms
from jsae_core.memory import MemoryBudget, usual_batch
from tests.jsae_core.builders import random_inputs, random_pair, save_language_model
from tests.pretended_gpu import PretendedGPU, _Event

RECIPE = {"d_sae": 20, "k": 4, "steps": 4, "batch_tokens": 16}
plain_and_gated = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])


def pair_on(device: torch.device | str = "cpu", gated: bool = False) -> SAEPair:
    return random_pair("silu" if gated else "gelu", gated, dtype=torch.float32, d_sae=2048).to(device)


def inputs_on(device: torch.device | str = "cpu", n: int = 40) -> torch.Tensor:
    return random_inputs(n, dtype=torch.float32).to(device)


def everything(device: torch.device | str, gated: bool) -> list:
    pair, x = pair_on(device, gated), inputs_on(device)
    histograms = jacobian_histograms(pair, [x[:20], x[20:]], memory_bytes=2**11)
    return [
        *(tensor for histogram in histograms.values() for tensor in histogram.values()),
        ablation_samples(pair, [x[:20], x[20:]], doses=["whole"]),
        function_shapes(pair, [x], 100, n_curves=5, rules=("published", "relative")),
        pd.Series(latent_accounting(pair, [x])).to_frame(),
    ]


@plain_and_gated
def test_a_gpu_measures_what_the_cpu_does(gated):
    on_cpu = everything("cpu", gated)
    with PretendedGPU() as gpu:
        there = everything(gpu.device, gated)
    for ours, expected in zip(there, on_cpu, strict=True):
        if isinstance(expected, pd.DataFrame):
            pd.testing.assert_frame_equal(ours, expected, rtol=1e-5)
        else:
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


@plain_and_gated
@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_a_gpu_trains_the_pair_that_the_cpu_does(gated, coefficient):
    recipe = RECIPE | {"jacobian_coefficient": coefficient}
    expected = train_pair(inputs_on(), pair_on(gated=gated).mlp, recipe).tensors()
    with PretendedGPU() as gpu:
        tensors = train_pair(inputs_on(gpu.device), pair_on(gpu.device, gated).mlp, recipe).tensors()
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=1e-6)


def test_what_is_kept_on_the_host_is_copied_while_the_gpu_computes(tmp_path):
    documents = [torch.arange(0, 30)] * 80  # of 16 features: a batch is larger than what a driver takes at once
    with PretendedGPU() as gpu:
        lm = load_language_model(save_language_model(tmp_path), gpu.device)
        budget = MemoryBudget(gpu.device, 100_000)
        stream = MLPInputs(lm, documents, 1, batch_tokens=1300, budget=budget)
        computed = [batch.cpu() for batch in stream]
        assert {batch.device.type for batch in stream._kept_batches.values()} == {"cuda", "cpu"}
        gpu.waits.clear()
        again = list(stream)
        assert not gpu.waits
        assert all(torch.equal(one.cpu(), other) for one, other in zip(again, computed, strict=True))


def waits_of(gpu: PretendedGPU, measure) -> dict[str, int]:
    gpu.waits.clear()
    measure()
    return dict(gpu.waits)


@pytest.mark.parametrize("memory_bytes", [2**30, 0], ids=["in memory", "in a file"])
def test_a_histogram_waits_as_often_for_many_batches_as_for_few(memory_bytes):
    with PretendedGPU() as gpu:
        pair, x = pair_on(gpu.device), inputs_on(gpu.device)
        pair.tables()
        few, many = (
            waits_of(gpu, lambda n=n: jacobian_histogram(pair, x.split(n), "l2t", memory_bytes)) for n in (20, 5)
        )
    assert few == many


@pytest.mark.parametrize("all_done", [True, False], ids=["copied at once", "copied later"])
def test_what_is_written_from_a_gpu_is_read_whenever_it_is_asked_for(all_done, monkeypatch):
    monkeypatch.setattr(_Event, "all_done", all_done)
    monkeypatch.setattr(array_file, "PENDING_BYTES", 100)
    written = [torch.arange(12.0).view(3, 4), torch.ones(2, dtype=torch.int64), torch.full((30,), 0.5).bfloat16()]
    with PretendedGPU() as gpu:
        file = ArrayFile("numbers")
        places = [file.write(tensor.to(gpu.device)) for tensor in written[:2]]
        assert file.read(places[0], 1, 2).tolist() == [[4.0, 5.0, 6.0, 7.0]]
        places.append(file.write(written[2].to(gpu.device)))
        assert [file.read(place).tolist() for place in places] == [tensor.tolist() for tensor in written]
        assert not gpu.waits
        file.close()


@pytest.mark.parametrize(
    "measure",
    [
        lambda pair, x: ablation_samples(pair, [x], ranks="all"),
        lambda pair, x: function_shapes(pair, [x], 200),
        lambda pair, x: latent_accounting(pair, [x]),
    ],
    ids=["ablation", "function shapes", "accounting"],
)
def test_a_larger_gpu_is_asked_for_fewer_and_larger_pieces(measure, monkeypatch):
    monkeypatch.setattr(nearby, "GATHER_BYTES", 2**9)
    monkeypatch.setattr(nearby, "HIDDEN_BYTES", 2**10)
    monkeypatch.setattr("jsae_core.measures.accounting.HIDDEN_BYTES", 2**7)
    launches = []
    for gigabytes in (4, 80):
        with PretendedGPU(gigabytes * 10**9) as gpu:
            pair, x = pair_on(gpu.device), inputs_on(gpu.device)
            pair.tables()
            gpu.launches.clear()
            measure(pair, x)
            launches.append(gpu.launches.total())
    assert launches[1] < launches[0] / 2


@pytest.mark.parametrize(("gigabytes", "tokens"), [(4, 4096), (8, 8192), (80, 16384)])
def test_a_larger_gpu_is_given_more_tokens_at_once(gigabytes, tokens):
    with PretendedGPU(gigabytes * 10**9) as gpu:
        assert usual_batch(gpu.device) == tokens
        assert usual_batch(torch.device("cpu")) == 4096


def refused(gpu: PretendedGPU, load) -> str:
    with gpu, pytest.raises(MemoryError) as error:
        load(gpu.device)
    return str(error.value)


def test_what_does_not_fit_a_small_gpu_is_named_with_how_much_it_takes_and_what_to_do(tmp_path):
    pair, lm = tmp_path / "pair", save_language_model(tmp_path / "lm")
    random_pair(d_sae=2048, d_mlp=100, dtype=torch.float32).save(pair)
    message = refused(PretendedGPU(10_000), lambda device: SAEPair.load(pair, device))
    assert message.startswith(
        f"cuda:0 has no room for the pair {pair}: 285 kB are needed, 10.0 kB are left of 10.0 kB; "
    )
    assert "compute on another device, with fewer digits (bfloat16), or with nothing else beside it" in message
    message = refused(PretendedGPU(10_000), lambda device: load_language_model(lm, device))
    assert message.startswith(f"cuda:0 has no room for the language model {lm}: ")
    message = refused(PretendedGPU(10**6), lambda device: SAEPair.load(pair, device).tables())
    assert "tables that this pair's Jacobians are made of: 1.6 MB are needed, 1.0 MB are left of 1.0 MB" in message
    with PretendedGPU(10**6) as gpu:  # of half as many digits they fit
        rounded = SAEPair.load(pair, gpu.device, table_dtype=torch.bfloat16)
        jacobian_histogram(rounded, [inputs_on(gpu.device, 600)])
        assert rounded.tables_bytes == 2 * 2048 * 100 * 2


def test_quality_on_a_gpu_is_that_on_the_cpu(tmp_path):
    directory, documents = save_language_model(tmp_path), [torch.arange(0, 9)] * 3
    values = []
    for device in (torch.device("cpu"), PretendedGPU.device):
        with PretendedGPU():
            lm = load_language_model(directory, device)
            pair = random_pair(d_model=lm.d_model, dtype=torch.float32).to(device)
            pair.mlp = lm.mlp(1)
            values.append(pair_quality(pair, lm, documents))
    assert values[0] == pytest.approx(values[1], rel=1e-5)
