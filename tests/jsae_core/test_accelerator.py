"""Everything that computes, on an accelerator that is pretended: no test machine has one."""

import pandas as pd
import pytest
import torch

from jsae_core import MLPInputs, SAEPair, load_language_model, run_sandwich, train_pair
from jsae_core.measures import ablation_samples, function_curves, function_shapes, jacobian_histogram, pair_quality
from jsae_core.measures.histogram import jacobian_histograms
from jsae_core.measures.moments import Moments
from tests.accelerator import Accelerator, MixedDevices
from tests.jsae_core.builders import ARCHITECTURES, K, random_inputs, random_pair, save_language_model

DOCUMENTS = [torch.tensor([0, 1, 2, 3, 4, 5, 6]), torch.tensor([0, 3, 2])]
RECIPE = {"d_sae": 20, "k": K, "jacobian_coefficient": 1.0, "steps": 6, "batch_tokens": 8}
plain_and_gated = pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])


def pair_on(device: torch.device, gated: bool = False, **sizes) -> SAEPair:
    return random_pair("silu" if gated else "gelu", gated, **sizes).to(device)


def wide_pair_on(device: torch.device) -> SAEPair:
    """So many latents that after an intervention only the rivals of the active ones are looked at."""
    return pair_on(device, d_sae=2048)


def everything(device: torch.device, gated: bool) -> list[torch.Tensor | pd.DataFrame]:
    """What the measures of a pair give, copied to the CPU."""
    pair, x = pair_on(device, gated), random_inputs(12).to(device)
    ranks = torch.arange(12, device=device) % K
    histograms = jacobian_histograms(pair, [x[:5], x[5:]], memory_bytes=2**11)
    return [
        *vars(run_sandwich(pair, x)).values(),
        *(tensor for histogram in histograms.values() for tensor in histogram.values()),
        *function_curves(pair, x, ranks, ranks.flip(0)),
        ablation_samples(pair, [x[:5], x[5:]]),
        ablation_samples(wide_pair_on(device), [x], ranks="all"),
        function_shapes(pair, [x], 40, n_curves=5),
        function_shapes(wide_pair_on(device), [x], 40),
    ]


@plain_and_gated
def test_an_accelerator_measures_what_the_cpu_does(gated):
    on_cpu = everything(torch.device("cpu"), gated)
    with Accelerator() as accelerator:
        there = everything(accelerator.device, gated)
    for ours, expected in zip(there, on_cpu, strict=True):
        if isinstance(expected, pd.DataFrame):
            pd.testing.assert_frame_equal(ours, expected)
        else:
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@plain_and_gated
@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_an_accelerator_trains_the_pair_that_the_cpu_does(gated, coefficient):
    x, recipe = random_inputs(30), RECIPE | {"jacobian_coefficient": coefficient}
    expected = train_pair(x, pair_on(torch.device("cpu"), gated).mlp, recipe).tensors()
    with Accelerator() as accelerator:
        pair = train_pair(x.to(accelerator.device), pair_on(accelerator.device, gated).mlp, recipe)
        assert pair.device == accelerator.device
        tensors = pair.tensors()
    for name, tensor in expected.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)


def quality_on(device: torch.device, directory) -> dict[str, float]:
    lm = load_language_model(directory, device, dtype="float64")
    pair = train_pair(MLPInputs(lm, DOCUMENTS, 1, batch_tokens=8), lm.mlp(1), RECIPE, layer=1)
    return pair_quality(pair, lm, DOCUMENTS, batch_tokens=8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_language_model_on_an_accelerator_gives_the_quality_that_the_cpu_does(architecture, tmp_path):
    directory = save_language_model(tmp_path, architecture)
    expected = quality_on(torch.device("cpu"), directory)
    with Accelerator() as accelerator:
        assert quality_on(accelerator.device, directory) == expected


def test_reading_a_stream_of_mlp_inputs_waits_for_the_accelerator_only_where_transformers_does_once_a_pass(tmp_path):
    directory = save_language_model(tmp_path)
    with Accelerator() as accelerator:
        stream = MLPInputs(load_language_model(directory, accelerator.device), DOCUMENTS, 1, batch_tokens=8)
        batches = len(list(stream))  # the first reading checks the layer, which looks at numbers
        accelerator.waits.clear()
        assert sum(len(mlp_input) for mlp_input in stream) == stream.n_tokens
        # transformers looks for several documents in one row, from the positions, which are on the device
        assert accelerator.waits == {"__bool__": batches}


@pytest.mark.parametrize(
    "measure",
    [
        lambda pair, x: jacobian_histogram(pair, [x]),
        lambda pair, x: ablation_samples(pair, [x], ranks="all"),
        lambda pair, x: function_curves(pair, x, *torch.zeros(2, len(x), dtype=torch.int64, device=x.device)),
    ],
    ids=["histogram", "ablation", "curves"],
)
def test_a_measure_waits_for_the_accelerator_as_often_for_many_tokens_as_for_few(measure):
    with Accelerator() as accelerator:
        pair, waits = wide_pair_on(accelerator.device), []
        pair.tables()
        for n_tokens in (2, 8):
            accelerator.waits.clear()
            measure(pair, random_inputs(n_tokens).to(accelerator.device))
            waits.append(dict(accelerator.waits))
    assert waits[0] == waits[1]


def waits_of(measure, accelerator) -> dict[str, int]:
    accelerator.waits.clear()
    measure()
    return dict(accelerator.waits)


@pytest.mark.parametrize("norm", [None, "l2t"])
def test_a_histogram_waits_as_often_for_many_batches_as_for_few(norm):
    with Accelerator() as accelerator:
        pair, x = wide_pair_on(accelerator.device), random_inputs(40).to(accelerator.device)
        pair.tables()
        few, many = (
            waits_of(lambda n=n: jacobian_histogram(pair, x.split(n), norm, memory_bytes=2**30), accelerator)
            for n in (20, 5)
        )
    # counting takes no waiting on CUDA; the means look once into the latents of each batch, where it is not CUDA
    for name in ("bincount", "tolist"):
        assert few.pop(name) < many.pop(name)
    assert few == many


def test_quality_waits_as_often_for_many_batches_as_for_few(tmp_path, monkeypatch):
    # transformers' own look into each pass, whether its rows hold several documents
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    directory = save_language_model(tmp_path)
    documents = [torch.arange(0, 6)] * 8
    with Accelerator() as accelerator:
        lm = load_language_model(directory, accelerator.device, dtype="float64")
        pair = random_pair(d_model=lm.d_model).to(accelerator.device)
        pair.mlp = lm.mlp(1)
        pair.tables()
        few, many = (
            waits_of(lambda n=n: pair_quality(pair, lm, documents, batch_tokens=n), accelerator) for n in (24, 6)
        )
    assert few == many


def test_means_over_documents_do_not_wait_for_the_accelerator():
    with Accelerator() as accelerator:
        values, documents = torch.ones(2**15, 2, device=accelerator.device), torch.arange(2**15) // 300
        moments = Moments()
        for some, of_document in zip(values.split(2**14), documents.split(2**14), strict=True):
            moments.add(some, of_document)
        assert not accelerator.waits
        assert moments.mean.tolist() == [1.0, 1.0]


def test_a_training_step_waits_for_the_accelerator_as_often_for_many_tokens_as_for_few():
    with Accelerator() as accelerator:
        mlp, waits = pair_on(accelerator.device).mlp, []
        for batch_tokens in (2, 8):
            accelerator.waits.clear()
            train_pair(random_inputs(8).to(accelerator.device), mlp, RECIPE | {"batch_tokens": batch_tokens})
            waits.append(dict(accelerator.waits))
    assert waits[0] == waits[1]


def test_a_pair_that_does_not_fit_the_accelerator_is_named_with_what_to_do(tmp_path):
    random_pair().save(tmp_path)
    with Accelerator(room=100) as accelerator, pytest.raises(MemoryError) as error:
        SAEPair.load(tmp_path, accelerator.device)
    assert f"the pair {tmp_path} does not fit xpu:0" in str(error.value) and "another device" in str(error.value)


def test_a_language_model_that_does_not_fit_the_accelerator_is_named_with_what_to_do(tmp_path):
    directory = save_language_model(tmp_path)
    with Accelerator(room=100) as accelerator, pytest.raises(MemoryError) as error:
        load_language_model(directory, accelerator.device)
    assert f"the language model {directory} does not fit xpu:0" in str(error.value)
    assert "bfloat16" in str(error.value)


def test_the_pretended_accelerator_refuses_what_a_real_one_refuses():
    with Accelerator() as accelerator:
        there, here = torch.ones(3, device=accelerator.device), torch.ones(3)
        assert (there.device, here.device, there[1:].device) == (accelerator.device, here.device, there.device)
        for mixed in (lambda: there + here, lambda: torch.stack([here, there]), lambda: there @ here[:, None]):
            with pytest.raises(MixedDevices):
                mixed()
        with pytest.raises(TypeError):
            there.numpy()
        there[torch.tensor([0])] += torch.tensor(1.0)  # indices and numbers may be on the CPU
        assert not accelerator.waits
        assert there.cpu().tolist() == [2.0, 1.0, 1.0] and there.sum() == 4
        assert accelerator.waits == {"cpu": 1, "__bool__": 1}
