"""Measures that are interrupted go on from their checkpoint and end as if nothing had happened."""

import copy
import inspect
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from jsae_core import MLPInputs, SAEPair, load_language_model
from jsae_core.checkpoints import Checkpoint
from jsae_core.measures import (
    ablation,
    ablation_samples,
    connection_curves,
    function_shapes,
    jacobian_histogram,
    jacobian_measures,
    jacobian_sizes,
    kept_jacobians,
    latent_accountings,
    latent_activity,
    measured_quality,
    stream_contexts,
    strongest_connections,
)
from tests.jsae_core.builders import K, random_inputs, random_pair, save_language_model
from tests.jsae_core.streamed_measures import (
    BATCH_TOKENS,
    KEPT_BYTES,
    MEASURES,
    Ends,
    Fails,
    Interrupted,
    assert_same,
    divide_into_steps,
    pair_on,
    random_documents,
    random_pair_like,
)
from tests.killing import ended_before, killed_again_and_again


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_language_model(save_language_model(tmp_path_factory.mktemp("lm")))


@pytest.fixture(scope="module")
def pair(lm):
    return pair_on(lm)


@pytest.fixture(scope="module")
def stream(lm):
    return MLPInputs(lm, random_documents(lm.n_vocabulary), 1, BATCH_TOKENS)


@pytest.fixture(autouse=True)
def in_many_steps(monkeypatch):
    divide_into_steps(monkeypatch)


@pytest.fixture(params=["sums of pairs", "rows"])
def sums_of_pairs(request, monkeypatch):
    """Both ways in which the histogram takes means of pairs of latents."""
    monkeypatch.setattr(kept_jacobians, "sums_fit", lambda *sizes: request.param == "sums of pairs")


def interrupted(measure, pair, stream, path: Path, seed: int, every: int) -> tuple[object, int]:
    """What a measure gives that ends with an error after one to eight saves, again and again; and how often it did."""
    saves, times = random.Random(seed), 0
    while True:
        checkpoint = Ends(path, saves.randint(1, 8), every)
        try:
            result = measure(pair, stream, checkpoint=checkpoint)
        except Interrupted:
            times += 1
            continue
        checkpoint.remove()
        assert not list(path.parent.iterdir())
        return result, times


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_that_is_interrupted_again_and_again_gives_what_one_that_was_not_gives(
    tmp_path, pair, stream, name, every
):
    whole = MEASURES[name](pair, stream)
    result, times = interrupted(MEASURES[name], pair, stream, tmp_path / "it.safetensors", every, every)
    assert times > 1
    assert_same(result, whole)


@pytest.mark.usefixtures("sums_of_pairs")
def test_a_histogram_goes_on_however_it_takes_the_means_of_pairs(tmp_path, pair, stream):
    whole = MEASURES["jacobian_sizes"](pair, stream)
    result, times = interrupted(MEASURES["jacobian_sizes"], pair, stream, tmp_path / "it.safetensors", 5, 2)
    assert times > 1
    assert_same(result, whole)


def test_a_histogram_goes_on_with_another_budget_of_memory(tmp_path, pair, stream, monkeypatch):
    monkeypatch.setattr(kept_jacobians, "sums_fit", lambda *sizes: False)
    whole = jacobian_sizes(pair, stream)
    with pytest.raises(Interrupted):
        jacobian_sizes(pair, stream, memory_bytes=KEPT_BYTES, checkpoint=Ends(tmp_path / "it", 15))
    said = []
    result = jacobian_sizes(pair, stream, checkpoint=Checkpoint(tmp_path / "it", say=said.append))
    assert said == ["going on from the checkpoint"]
    assert_same(result, whole)


NEED_MORE_THAN_INPUTS = ("measured_quality", "connection_curves", "jacobian_measures, published")


@pytest.mark.parametrize("name", [name for name in MEASURES if name not in NEED_MORE_THAN_INPUTS])
def test_what_was_done_before_a_stream_failed_is_not_computed_again(tmp_path, pair, stream, name):
    n_items = len(list(stream))
    whole = MEASURES[name](pair, stream)
    for at in random.Random(name).sample(range(1, n_items), 3):
        with pytest.raises(Interrupted):
            MEASURES[name](pair, Fails(stream, at), checkpoint=Checkpoint(tmp_path / "it", seconds=0))
        rest = Fails(stream, None)
        checkpoint = Checkpoint(tmp_path / "it", seconds=0)
        assert_same(MEASURES[name](pair, rest, checkpoint=checkpoint), whole)
        assert rest.given == list(range(at, n_items))
        checkpoint.remove()


@pytest.mark.parametrize("given", ["a list", "a generator"])
def test_a_stream_that_cannot_begin_later_is_skipped_through(tmp_path, given):
    pair, items = random_pair(), [random_inputs(n * 7 % 10, seed=n) for n in range(20)]

    def measure(pair, stream, checkpoint=None):
        stream = stream if given == "a list" else (item for item in stream)
        return jacobian_histogram(pair, stream, "l2t", checkpoint=checkpoint)

    result, times = interrupted(measure, pair, items, tmp_path / "it.safetensors", 1, 1)
    assert times > 1
    assert_same(result, measure(pair, items))


OTHERS = {
    "another pair": lambda pair, stream: {"pair": random_pair_like(pair)},
    "another document": lambda pair, stream: {"stream": with_documents(stream, stream.documents[:-1])},
    "other batches": lambda pair, stream: {"stream": MLPInputs(stream.language_model, stream.documents, 1, 30)},
    "another language model": lambda pair, stream: {"stream": of_other_weights(stream)},
    "another layer": lambda pair, stream: {
        "stream": MLPInputs(stream.language_model, stream.documents, 2, BATCH_TOKENS)
    },
    "another seed": lambda pair, stream: {"seed": 1},
    "another order": lambda pair, stream: {"orders": ["random"]},
    "another version": lambda pair, stream: {"digest": "2"},
    "tables of fewer digits": lambda pair, stream: {
        "pair": SAEPair.from_tensors(pair.tensors(), pair.config, table_dtype=torch.bfloat16)
    },
}


def with_documents(stream: MLPInputs, documents: list[Tensor]) -> MLPInputs:
    return MLPInputs(stream.language_model, documents, stream.layer, stream.batch_tokens)


def of_other_weights(stream: MLPInputs) -> MLPInputs:
    other = copy.copy(stream.language_model)
    other.hugging_face = copy.deepcopy(other.hugging_face)
    next(other.hugging_face.parameters()).data[0, 0] += 1e-3
    other.mlp_activations = stream.language_model.mlp_activations  # what matters here is that it is told apart
    return MLPInputs(other, stream.documents, 1, BATCH_TOKENS)


@pytest.mark.parametrize("what", OTHERS)
def test_a_measure_of_something_else_begins_anew_with_a_word(tmp_path, pair, stream, what):
    with pytest.raises(Interrupted):
        latent_accountings(pair, stream, checkpoint=Ends(tmp_path / "it", 4, digest="1"))
    changed, said = OTHERS[what](pair, stream), []
    checkpoint = Checkpoint(tmp_path / "it", changed.pop("digest", "1"), say=said.append)
    of_other = (changed.pop("pair", pair), changed.pop("stream", stream))
    result = latent_accountings(*of_other, **changed, checkpoint=checkpoint)
    assert len(said) == 1 and "Beginning anew" in said[0]
    assert_same(result, latent_accountings(*of_other, **changed))


# of each measure: what it is usually given here, and each of its settings with another value
SETTINGS: dict[Callable[..., Any], tuple[dict[str, Any], dict[str, Any]]] = {
    jacobian_sizes: ({}, {"norms": [None], "at": "reconstruction", "convention": "published"}),
    jacobian_measures: ({}, {"at": "reconstruction", "convention": "published"}),
    ablation_samples: (
        {"n_samples": 90},
        {"n_samples": 91, "ranks": "diagonal", "seed": 1, "doses": ["unit", "whole"]},
    ),
    function_shapes: ({"n_samples": 90}, {"n_samples": 91, "seed": 1, "n_curves": 1, "rules": ["relative"]}),
    latent_accountings: ({}, {"kept": [1], "orders": ["random"], "seed": 1}),
    latent_activity: ({}, {}),
    strongest_connections: ({}, {"n_strongest": 3, "least_active": 2, "n_examples": 1}),
    connection_curves: (
        {"connections": pd.DataFrame({"output_latent": [0], "input_latent": [0], "token": [[0]]}), "n_strongest": 1},
        {
            "connections": pd.DataFrame({"output_latent": [0], "input_latent": [0], "token": [[1]]}),
            "n_strongest": 0,
        },
    ),
    stream_contexts: ({}, {"n_top": 3}),
    measured_quality: ({}, {"batch_tokens": 2 * BATCH_TOKENS, "sources": [0, *range(59)]}),  # of 60 documents
}
NO_SETTINGS = {"pair", "stream", "language_model", "documents", "checkpoint", "memory_bytes"}
EACH_SETTING = [(measure, setting) for measure, (_, others) in SETTINGS.items() for setting in others]


def test_every_setting_of_every_measure_is_among_those_whose_change_is_tested():
    for measure, (_, others) in SETTINGS.items():
        assert inspect.signature(measure).parameters.keys() - NO_SETTINGS == others.keys(), measure.__name__


@pytest.mark.parametrize(
    ("measure", "setting"), EACH_SETTING, ids=[f"{measure.__name__}, {setting}" for measure, setting in EACH_SETTING]
)
def test_a_measure_with_another_value_of_any_setting_begins_anew(tmp_path, pair, stream, measure, setting):
    class Said(Exception):
        pass

    def say(message: str) -> None:
        raise Said(message)

    usual, others = SETTINGS[measure]
    on = [pair, stream.language_model, stream.documents] if measure is measured_quality else [pair, stream]
    with pytest.raises(Interrupted):
        measure(*on, **usual, checkpoint=Ends(tmp_path / "it", 1))
    with pytest.raises(Said, match="going on"):
        measure(*on, **usual, checkpoint=Checkpoint(tmp_path / "it", say=say))
    with pytest.raises(Said, match="Beginning anew"):
        measure(*on, **usual | {setting: others[setting]}, checkpoint=Checkpoint(tmp_path / "it", say=say))


def test_an_item_of_a_list_that_changed_is_noticed_and_of_a_generator_refused(tmp_path):
    pair, items = random_pair(), list(random_inputs(60).split(6))
    with pytest.raises(Interrupted):
        latent_activity(pair, items, Ends(tmp_path / "it", 5))
    said = []
    items[3] = items[3] + 1e-9
    with pytest.raises(ValueError, match="can be read only once; delete the checkpoint"):
        latent_activity(pair, iter(items), Checkpoint(tmp_path / "it"))
    result = latent_activity(pair, items, Checkpoint(tmp_path / "it", say=said.append))
    assert "the stream of MLP inputs is another" in said[-1]
    assert_same(result, latent_activity(pair, items))


def test_what_was_kept_of_all_tokens_is_written_once_and_not_with_each_checkpoint(tmp_path, pair, stream, monkeypatch):
    monkeypatch.setattr(kept_jacobians, "sums_fit", lambda *sizes: False)
    with pytest.raises(Interrupted):
        jacobian_sizes(pair, stream, checkpoint=Ends(tmp_path / "it", 20))
    kept = sum(path.stat().st_size for path in (tmp_path / "it.parts").iterdir())
    rows = sum(len(item) for item, _ in zip(stream, range(20), strict=False)) * K
    assert rows * (4 * K + 4 + 4 + 4) < kept < 1.5 * rows * (4 * K + 4 + 4 + 4) + 20 * 4000
    assert (tmp_path / "it").stat().st_size < 40_000


def test_a_short_measure_writes_no_checkpoint_and_asks_for_no_digest(tmp_path, pair, stream, monkeypatch):
    monkeypatch.setattr(SAEPair, "tensors", lambda self: pytest.fail("all weights were read"))
    for name, measure in MEASURES.items():
        measure(pair, stream, checkpoint=Checkpoint(tmp_path / name, say=pytest.fail))
    assert not list(tmp_path.iterdir())


def test_how_far_a_measure_is_and_how_long_it_still_takes_is_said_every_few_seconds(
    tmp_path, pair, stream, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr("jsae_core.pace.time.monotonic", lambda: now[0])

    class Slow(Fails):
        def starting_at(self, first):
            for item in super().starting_at(first):
                now[0] += 2.0
                yield item

    said = []
    latent_activity(pair, Slow(stream, None), Checkpoint(tmp_path / "it", say=said.append))
    lengths = [len(item) for item in stream]
    assert len(said) == len(lengths) // 3
    done = sum(lengths[:3])
    left = (stream.n_tokens - done) / (done / 6)
    assert said[0].startswith(f"{done:,} of {stream.n_tokens:,} tokens, {done / 6:.0f} tokens/s; about ")
    assert int(said[0].split()[-3]) == pytest.approx(left, abs=1) or left > 99


def measure_and_save(name: str, folder: Path) -> None:
    """In a process of its own, that may be killed."""
    ablation.SAMPLES_AT_ONCE = 1000
    pair, items = random_pair(), list(random_inputs(3000).split(50))
    checkpoint = Checkpoint(folder / "it.safetensors", seconds=0)
    if name == "histogram":
        histogram = jacobian_histogram(pair, items, "l4t", memory_bytes=100_000, checkpoint=checkpoint)
        torch.save(histogram, folder / "result")
    else:
        ablation_samples(pair, items, 40_000, checkpoint=checkpoint).to_parquet(folder / "result")
    checkpoint.remove()


@pytest.mark.parametrize("name", ["histogram", "ablation"])
def test_a_measure_whose_process_is_killed_again_and_again_ends_bit_for_bit_as_one_that_was_not(tmp_path, name):
    for folder in ("before", "whole", "killed"):
        (tmp_path / folder).mkdir()
    ended_before(60, time.sleep, 0)  # the server of processes has started
    for folder in ("before", "whole"):  # the first one takes longer
        began = time.monotonic()
        assert ended_before(60, measure_and_save, name, tmp_path / folder)
    killed_again_and_again(4, (time.monotonic() - began) / 2, 0, measure_and_save, name, tmp_path / "killed")
    assert (tmp_path / "killed" / "result").read_bytes() == (tmp_path / "whole" / "result").read_bytes()
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["result"]
