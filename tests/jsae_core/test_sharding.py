"""Measures whose stream is spread over shards: merged, they give what the whole stream gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from jsae_core import MLPInputs, load_language_model
from jsae_core.checkpoints import Checkpoint, Shards
from jsae_core.measures import (
    connection_curves,
    jacobian_histogram,
    jacobian_sizes,
    kept_jacobians,
    latent_accounting,
    latent_activity,
    measure_shard,
    merge_shards,
)
from jsae_core.measures.moments import Moments
from jsae_core.measures.resuming import RandomNumbers
from jsae_core.measures.sharding import share_of
from tests.jsae_core.builders import random_inputs, random_pair, save_language_model
from tests.jsae_core.streamed_measures import (
    BATCH_TOKENS,
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

MORE = 30  # shards than the stream has items
EXACT = (
    "jacobian_sizes",
    "jacobian_measures",
    "jacobian_measures, published",
    "function_shapes",
    "latent_activity",
    "strongest_connections",
    "stream_contexts",
)
# of the others, the largest difference that sums of floating-point numbers in another order may make
ROUNDING = {"latent_accountings": 1e-12, "measured_quality": 1e-12, "ablation_samples": 1e-6}
ROUNDED_COLUMN = "typical_activation"  # of the ablation samples: a mean of float32 activations


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return load_language_model(save_language_model(tmp_path_factory.mktemp("lm")))


@pytest.fixture(scope="module")
def pair(lm):
    return pair_on(lm)


@pytest.fixture(scope="module")
def stream(lm):
    return MLPInputs(lm, random_documents(lm.n_vocabulary, 30), 1, BATCH_TOKENS)


@pytest.fixture(scope="module")
def whole(pair, stream):
    """What a measure gives of the whole stream, computed once."""
    found: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in found:
            found[name] = MEASURES[name](pair, stream)
        return found[name]

    return of


@pytest.fixture(autouse=True)
def in_many_steps(monkeypatch):
    divide_into_steps(monkeypatch)


def call(name: str, pair, stream) -> Callable[[Checkpoint], Any]:
    return lambda checkpoint: MEASURES[name](pair, stream, checkpoint=checkpoint)


def spread(measure: Callable[[Checkpoint], Any], place: Checkpoint, of: int) -> Any:
    """The last shard first."""
    for number in reversed(range(of)):
        measure_shard(measure, place, number, of)
    return merge_shards(measure, place, of)


def assert_close(one, other, rounding: float) -> None:
    """All that is no floating-point number is the same, and those are close, in the order of their own size."""
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name, value in one.items():
            assert_close(value, other[name], rounding)
    elif isinstance(one, tuple):
        for value, of_other in zip(one, other, strict=True):
            assert_close(value, of_other, rounding)
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, rtol=rounding, atol=rounding)
    elif isinstance(one, Tensor) and one.is_floating_point():
        torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)
    elif isinstance(one, float):
        assert math.isclose(one, other, rel_tol=rounding, abs_tol=rounding)
    else:
        assert_same(one, other)


@pytest.mark.parametrize("of", [1, 2, 3, 7, MORE])
@pytest.mark.parametrize("name", EXACT)
def test_merged_shards_are_to_the_last_bit_what_the_whole_stream_gives(tmp_path, pair, stream, whole, name, of):
    merged = spread(call(name, pair, stream), Checkpoint(tmp_path / "it.safetensors"), of)
    assert_same(merged, whole(name))


@pytest.mark.parametrize("of", [2, 3, 7, MORE])
@pytest.mark.parametrize("name", ROUNDING)
def test_sums_of_floating_point_numbers_are_those_of_the_whole_stream_to_rounding(
    tmp_path, pair, stream, whole, name, of
):
    merged = spread(call(name, pair, stream), Checkpoint(tmp_path / "it.safetensors"), of)
    assert_close(merged, whole(name), ROUNDING[name])
    if name == "ablation_samples":
        assert_same(merged.drop(columns=ROUNDED_COLUMN), whole(name).drop(columns=ROUNDED_COLUMN))


@pytest.mark.parametrize("name", ROUNDING)
def test_one_shard_is_the_whole_stream(tmp_path, pair, stream, whole, name):
    merged = spread(call(name, pair, stream), Checkpoint(tmp_path / "it.safetensors"), 1)
    assert_same(merged, whole(name))


def test_every_measure_of_a_stream_can_be_spread_but_curves_which_belong_to_a_result(tmp_path, pair, stream):
    assert {*EXACT, *ROUNDING} == set(MEASURES) - {"connection_curves"}
    none = pd.DataFrame({"output_latent": [0], "input_latent": [0], "token": [[0]]})
    with pytest.raises(TypeError, match="connection_curves cannot be split into shards"):
        measure_shard(
            lambda checkpoint: connection_curves(pair, stream, none, 1, checkpoint), Checkpoint(tmp_path / "it"), 0, 2
        )


@pytest.mark.parametrize("sums", ["in all shards", "in no shard", "in the second shard", "in all but the second"])
def test_means_of_pairs_of_latents_are_the_same_wherever_there_was_room_for_sums(tmp_path, monkeypatch, sums):
    pair, items = random_pair(), list(random_inputs(300, seed=5).split(17))
    rooms = {
        "in all shards": [True, True, True],
        "in no shard": [False, False, False],
        "in the second shard": [False, True, False],
        "in all but the second": [True, False, True],
    }[sums]
    place = Checkpoint(tmp_path / "it.safetensors")

    def sizes(checkpoint=None):
        return jacobian_sizes(pair, items, checkpoint=checkpoint)

    for number, room in enumerate(rooms):
        monkeypatch.setattr(kept_jacobians, "sums_fit", lambda *sizes, room=room: room)
        measure_shard(sizes, place, number, 3)
    merged = merge_shards(sizes, place, 3)
    monkeypatch.setattr(kept_jacobians, "sums_fit", lambda *sizes: any(rooms))
    assert_same(merged, sizes())


@pytest.mark.parametrize("at", [0, 1, 4])
def test_a_shard_that_failed_goes_on_from_where_it_was_and_one_that_is_done_computes_nothing(
    tmp_path, pair, stream, whole, at
):
    share = share_of(stream, Shards(3, 1))
    place = Checkpoint(tmp_path / "it.safetensors", seconds=0)
    with pytest.raises(Interrupted):
        measure_shard(call("jacobian_sizes", pair, Fails(stream, share.first + at)), place, 1, 3)
    rest = Fails(stream, None)
    measure_shard(call("jacobian_sizes", pair, rest), place, 1, 3)
    # the stream's first item says what sums are relative to
    assert rest.given == [0, *range(share.first + at, share.end)]
    measure_shard(call("jacobian_sizes", pair, Fails(stream, 0)), place, 1, 3)
    for number in (0, 2):
        measure_shard(call("jacobian_sizes", pair, stream), place, number, 3)
    merged = merge_shards(call("jacobian_sizes", pair, Fails(stream, 0)), place, 3)
    assert_same(merged, whole("jacobian_sizes"))


@pytest.mark.parametrize("name", ["jacobian_sizes", "ablation_samples", "stream_contexts"])
def test_merging_that_is_interrupted_goes_on(tmp_path, pair, stream, whole, name):
    path, measure = tmp_path / "it.safetensors", call(name, pair, stream)
    for number in range(3):
        measure_shard(measure, Checkpoint(path), number, 3)
    times = 0
    while True:
        try:
            merged = merge_shards(measure, Ends(path, saves=3), 3)
            break
        except Interrupted:
            times += 1
    assert times > 1
    if name in ROUNDING:
        assert_close(merged, whole(name), ROUNDING[name])
    else:
        assert_same(merged, whole(name))
    Checkpoint(path).remove()
    assert not list(tmp_path.iterdir())


def test_what_a_shard_kept_is_refused_where_it_belongs_to_something_else(tmp_path, pair, stream):
    measure, place = call("latent_activity", pair, stream), Checkpoint(tmp_path / "it.safetensors")
    measure_shard(measure, place, 0, 2)
    with pytest.raises(ValueError, match="shard 2 of 2 cannot be merged: .*is not there; measure that shard first"):
        merge_shards(measure, place, 2)
    measure_shard(call("latent_activity", random_pair_like(pair), stream), place, 1, 2)
    with pytest.raises(ValueError, match="shard 2 of 2 cannot be merged: .*other inputs.*measure that shard again"):
        merge_shards(measure, place, 2)
    with pytest.raises(Interrupted):
        measure_shard(measure, Ends(place.path, saves=1), 1, 2)
    with pytest.raises(ValueError, match="it is not finished"):
        merge_shards(measure, place, 2)
    measure_shard(measure, place, 1, 2)
    merge_shards(measure, place, 2)
    (file,) = tmp_path.rglob("shard_2_of_2.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="shard 2 of 2 cannot be merged: .*damaged"):
        merge_shards(measure, place, 2)


def test_what_a_shard_of_a_list_kept_is_refused_where_an_item_has_changed(tmp_path):
    pair, items = random_pair(), list(random_inputs(60).split(6))
    place = Checkpoint(tmp_path / "it.safetensors")
    merged = spread(lambda checkpoint: latent_activity(pair, items, checkpoint), place, 3)
    assert_same(merged, latent_activity(pair, items))
    items[5] = items[5] + 1e-9
    with pytest.raises(ValueError, match="shard 2 of 3 cannot be merged: it was measured on another stream"):
        merge_shards(lambda checkpoint: latent_activity(pair, items, checkpoint), place, 3)


def test_a_full_disk_fails_the_shard_instead_of_going_on_without_it(tmp_path, pair, stream, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jsae_core.checkpoints.write_tensors", full)
    with pytest.raises(OSError, match=r"shard_1_of_2.safetensors of [\d,]+ bytes could not be written .*No space left"):
        measure_shard(call("latent_activity", pair, stream), Checkpoint(tmp_path / "it.safetensors"), 0, 2)


@pytest.mark.parametrize(("number", "of"), [(-1, 3), (3, 3), (0, 0)])
def test_a_shard_that_there_is_not_is_refused(tmp_path, number, of):
    with pytest.raises(ValueError, match=f"there is no shard {number} of {of}"):
        measure_shard(pytest.fail, Checkpoint(tmp_path / "it"), number, of)


def test_what_cannot_be_spread_is_refused(tmp_path, pair, stream):
    place = Checkpoint(tmp_path / "it")
    with pytest.raises(
        ValueError, match="a generator cannot be split into shards.*expected an MLPInputs, or a list of tensors"
    ):
        measure_shard(lambda checkpoint: latent_activity(pair, iter(stream), checkpoint), place, 0, 2)
    with pytest.raises(TypeError, match="measured no shard"):
        measure_shard(lambda checkpoint: latent_activity(pair, stream), place, 0, 2)
    with pytest.raises(ValueError, match="the stream of MLP inputs is empty"):
        spread(lambda checkpoint: jacobian_histogram(pair, [], checkpoint=checkpoint), place, 2)


class InPieces:
    """Documents whose tokens are spread over items wherever these end."""

    def __init__(self, x: Tensor, document_lengths: list[int], items: list[int]):
        self.document_lengths, self._items = document_lengths, x.split(items)

    def __iter__(self):
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


@given(
    documents=st.lists(st.integers(0, 7), min_size=1, max_size=12),
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    of=st.integers(1, 15),
)
def test_shards_have_every_item_once_in_order_and_whole_documents(documents, sizes, of):
    n = sum(documents)
    items = [min(size, n - sum(sizes[:number])) if n > sum(sizes[:number]) else 0 for number, size in enumerate(sizes)]
    items.append(n - sum(items))
    stream = InPieces(random_inputs(n), documents, items)
    shares = [share_of(stream, Shards(of, number)) for number in range(of)]
    assert [shares[0].first, *(share.end for share in shares)] == [*(share.first for share in shares), len(items)]
    ends = {sum(documents[:number]) for number in range(len(documents) + 1)}
    for share in shares:
        assert share.place == sum(items[: share.first])
        assert share.place in ends


@given(data=st.data(), n_tokens=st.integers(1, 40), of=st.integers(1, 5))
def test_a_measure_of_documents_in_any_pieces_is_that_of_their_shards(tmp_path_factory, data, n_tokens, of):
    items = data.draw(st.lists(st.integers(0, n_tokens), max_size=6))
    cuts = sorted({min(n_tokens, sum(items[:number])) for number in range(len(items) + 1)} | {n_tokens})
    lengths = [b - a for a, b in zip([0, *cuts[:-1]], cuts, strict=True)]
    documents = data.draw(st.sampled_from([[n_tokens], [1] * n_tokens, lengths]))
    stream, pair = InPieces(random_inputs(n_tokens), documents, lengths), random_pair()
    place = Checkpoint(tmp_path_factory.mktemp("shards") / "it.safetensors")
    accounting = spread(lambda checkpoint: latent_accounting(pair, stream, checkpoint=checkpoint), place, of)
    assert_close(accounting, latent_accounting(pair, stream), 1e-12)


@given(
    n_tokens=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    cut=st.integers(0, 8),
    named=st.booleans(),
    far=st.sampled_from([0.0, 1e6]),
)
def test_moments_of_parts_are_those_of_the_whole(n_tokens, cut, named, far):
    parts, whole = [Moments(), Moments()], Moments()
    x = far + random_inputs(sum(n_tokens) + 1, seed=len(n_tokens))
    for number, part in enumerate(x.split([*n_tokens, 1])):
        documents = torch.full((len(part),), number) if named else None
        parts[number >= cut].add(part, documents)
        whole.add(part, documents)
    merged = Moments()
    for part in parts:
        merged.take_in(part.state())
    weights = torch.arange(x.shape[1], dtype=torch.float64)
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(merged.standard_error(weights), whole.standard_error(weights), rtol=1e-7, atol=1e-8)
    assert (merged.influence(weights) is None) == (not named)
    if named:
        torch.testing.assert_close(merged.influence(weights), whole.influence(weights), rtol=1e-7, atol=1e-8)


@given(places=st.lists(st.integers(0, 6000), min_size=1, max_size=4, unique=True))
def test_the_random_numbers_of_a_token_are_the_same_wherever_reading_begins(places):
    every = RandomNumbers(3, 2, 5).of(0, 6001)
    numbers = RandomNumbers(3, 2, 5)
    for place in sorted(places):
        assert torch.equal(numbers.of(place, 1)[0], every[place])
