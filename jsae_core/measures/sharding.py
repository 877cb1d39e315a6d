"""A measure whose stream is spread: shards of the stream are measured by themselves, anywhere and in any order, and
then merged.

    place = Checkpoint(Path("histogram.safetensors"))
    histogram = lambda checkpoint: jacobian_histogram(pair, stream, checkpoint=checkpoint)
    for number in range(3):  # each in a process or on a machine of its own, if they reach the same files
        measure_shard(histogram, place, number, 3)
    result = merge_shards(histogram, place, 3)
    place.remove()  # once the result is stored

What a measure has kept of a shard, once it has gone through it, is its checkpoint; merging is taking in those of all
shards, one after the other, and going on from there. So there is one way to compute, of which the whole stream is the
case of one shard. Shards are runs of whole items of the stream, so that what is computed of an item is the same.

Here: measuring a shard, merging, which items a shard has. Not here: the loops (`resuming.py`), what a measure keeps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sized
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from jsae_core.checkpoints import Checkpoint, Shards

T = TypeVar("T")


class ShardMeasured(Exception):
    """How a measure ends that goes through one shard: only what merges all of them has a result."""


def measure_shard(measure: Callable[[Checkpoint], Any], checkpoint: Checkpoint, number: int, of: int) -> None:
    """Go through one shard of a measure's stream, and keep what merging needs beside a checkpoint. Where that was
    interrupted it goes on, and where it is done nothing is computed again.

    Args:
        measure: given a checkpoint, calls one of the measures that say that they can be spread, with a stream that can
            be read again and has a length: an `MLPInputs`, or a list of tensors.
        checkpoint: of the measure, where nothing needs to be; the same for all shards, and for merging them.
        number: of the shard, from 0 on.
        of: how many shards there are; more than the stream has items leave some with nothing to do.

    Raises:
        ValueError: there is no such shard, or the stream has no length, or as the measure does.
        TypeError: the measure cannot be spread.
        OSError: what is kept cannot be written.
    """
    if not 0 <= number < of:
        raise ValueError(f"there is no shard {number} of {of}: expected a number from 0 to {of - 1}")
    try:
        measure(_for(checkpoint, Shards(of, number)))
    except ShardMeasured:
        return
    raise TypeError("what was called has a result of its own, so it went through no shard; expected a single measure")


def merge_shards(measure: Callable[[Checkpoint], T], checkpoint: Checkpoint, of: int) -> T:
    """What a measure gives, of shards that were measured.

    It is the result for the whole stream: to the last bit on a CPU, but for those sums of floating-point numbers that a
    measure's documentation names, which are those to rounding.

    Args:
        measure, checkpoint, of: as they were for `measure_shard`.

    Raises:
        ValueError: a shard was not measured, or not with the same pair, stream and settings, or is damaged.
    """
    return measure(_for(checkpoint, Shards(of)))


def _for(checkpoint: Checkpoint, shards: Shards) -> Checkpoint:
    other = checkpoint.of()
    other.shards = shards
    return other


class Share(NamedTuple):
    """What a shard has of a stream: items [first, end), which hold the tokens [place, stop)."""

    first: int
    end: int
    place: int
    stop: int


def share_of(stream: Iterable[Tensor], shards: Shards) -> Share:
    """The share of a shard: about as many items as others have, and whole documents.

    Raises:
        ValueError: the stream says neither its `item_lengths` nor how many items it has.
    """
    assert shards.number is not None
    starts = [0, *itertools.accumulate(_item_lengths(stream))]
    documents = getattr(stream, "document_lengths", None)
    ends = None if documents is None else {0, *itertools.accumulate(documents)}
    cuts = [number for number, start in enumerate(starts) if ends is None or start in ends]
    first, end = (cuts[(len(cuts) - 1) * number // shards.of] for number in (shards.number, shards.number + 1))
    return Share(first, end, starts[first], starts[end])


def _item_lengths(stream: Iterable[Tensor]) -> list[int]:
    if hasattr(stream, "item_lengths"):
        return stream.item_lengths
    if not isinstance(stream, Sized):
        raise ValueError(
            f"a {type(stream).__name__} cannot be spread: how many items it has is not known, nor can one begin within "
            "it; expected an MLPInputs, or a list of tensors"
        )
    return [len(item) for item in stream]
