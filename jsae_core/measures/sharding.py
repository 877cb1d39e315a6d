"""A measure in shards: each shard of the stream is measured by itself, on any machine and in any order, and the results
are then merged.

    place = Checkpoint(Path("histogram.safetensors"))
    histogram = lambda checkpoint: jacobian_histogram(pair, stream, checkpoint=checkpoint)
    for number in range(3):  # each in a process or on a machine of its own, if they reach the same files
        measure_shard(histogram, place, number, 3)
    result = merge_shards(histogram, place, 3)
    place.remove()  # once the result is stored

The result of a shard is the measure's checkpoint at its end. Merging adds up the checkpoints of all shards, in order,
and computes the rest. So there is one way to compute, and the whole stream is the case of one shard.
A shard is a range of whole items of the stream, so that each item is computed as in the whole stream.

Here: measuring a shard, merging, which items a shard has. Not here: the loops (`resuming.py`), what a measure keeps.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Sized
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from jsae_core.checkpoints import Checkpoint, Shards

T = TypeVar("T")


class ShardMeasured(Exception):
    """Raised at the end of a shard: only merging gives a result."""


def measure_shard(measure: Callable[[Checkpoint], Any], checkpoint: Checkpoint, number: int, of: int) -> None:
    """Measure one shard of a stream, and keep what merging needs in a file beside a checkpoint. A shard that was
    interrupted is continued, and one that is done is not computed again.

    Args:
        measure: a function of a checkpoint that calls one shardable measure, with a stream that can be read again and
            has a length: an `MLPInputs`, or a list of tensors.
        checkpoint: the checkpoint of the measure, the same for all shards and for merging. Its file need not exist.
        number: the number of the shard, from 0.
        of: how many shards there are. If there are more than items in the stream, some have nothing to do.

    Raises:
        ValueError: there is no such shard, or the stream has no length, or as the measure does.
        TypeError: the measure cannot be split into shards.
        OSError: the shard's file cannot be written.
    """
    if not 0 <= number < of:
        raise ValueError(f"there is no shard {number} of {of}: expected a number from 0 to {of - 1}")
    try:
        measure(_for(checkpoint, Shards(of, number)))
    except ShardMeasured:
        return
    raise TypeError("the function that was given measured no shard; expected one that calls one measure in shards")


def merge_shards(measure: Callable[[Checkpoint], T], checkpoint: Checkpoint, of: int) -> T:
    """Return the result of a measure from shards that were measured.

    It is the result for the whole stream: to the last bit on a CPU, except for the sums of floating-point numbers that
    the measure's documentation names, which agree up to rounding.

    Args:
        measure, checkpoint, of: as they were for `measure_shard`.

    Raises:
        ValueError: a shard was not measured, was measured with another pair, stream or settings, or is damaged.
    """
    return measure(_for(checkpoint, Shards(of)))


def _for(checkpoint: Checkpoint, shards: Shards) -> Checkpoint:
    other = checkpoint.of()
    other.shards = shards
    return other


class Share(NamedTuple):
    """The items [first, end) of a stream that a shard has, and their tokens [place, stop)."""

    first: int
    end: int
    place: int
    stop: int


def share_of(stream: Iterable[Tensor], shards: Shards) -> Share:
    """Return the share of a shard: about as many items as each other shard has, and whole documents. (A document that
    is cut into pieces may fill several items; its shard then has them all.)

    Raises:
        ValueError: the stream says neither its `item_lengths` nor how many items it has.
    """
    assert shards.number is not None
    starts = [0, *itertools.accumulate(_item_lengths(stream))]
    documents = getattr(stream, "document_lengths", None)
    ends = None if documents is None else {0, *itertools.accumulate(documents)}
    cuts = [number for number, start in enumerate(starts) if ends is None or start in ends]
    fair = ((len(starts) - 1) * number // shards.of for number in (shards.number, shards.number + 1))
    first, end = (cuts[bisect.bisect_left(cuts, place)] for place in fair)
    return Share(first, end, starts[first], starts[end])


def _item_lengths(stream: Iterable[Tensor]) -> list[int]:
    if hasattr(stream, "item_lengths"):
        return stream.item_lengths
    if not isinstance(stream, Sized):
        raise ValueError(
            f"a {type(stream).__name__} cannot be split into shards, since it does not say how many items it has; "
            "expected an MLPInputs, or a list of tensors"
        )
    return [len(item) for item in stream]
