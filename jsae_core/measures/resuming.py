"""Loops of a measure that may take hours: they report progress, and continue where a checkpoint left them.

Here: the loops, what kinds of things they keep, and what a checkpoint belongs to. Not here: the checkpoint itself
(`jsae_core.checkpoints`), what a measure keeps.

    work = Computation(checkpoint, "what is measured 1", pair, stream, {"seed": seed})
    for x, documents, start in work.tokens(stream, {"sums": sums}):  # whatever changes in the loop is named here
        sums.add(x, documents)

After an interruption, the kept state and the remaining items are the same as without it. So the result is the same, bit
for bit if the items are (as on a CPU).
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from jsae_core.activations import with_documents
from jsae_core.checkpoints import Checkpoint, LazyTensors, Shards, State
from jsae_core.measures.sharding import ShardMeasured, Share, share_of
from jsae_core.pace import Pace
from jsae_core.sae_pair import SAEPair
from jsae_core.tensor_files import content_digest

T = TypeVar("T")
MEASURED = "measured"  # marks the checkpoint of a shard that was measured to its end
PASSED_AT_ONCE = 2**12  # tokens whose random numbers are drawn and thrown away at once


class Resumable(Protocol):
    """State that a loop changes and a checkpoint can restore."""

    def state(self) -> State: ...

    def take_in(self, state: State) -> None:
        """Add a stored state to this object. A loop that is continued adds it to what the object was when the loop
        began; merging adds each shard's state to those of the shards before. The tensors are on the pair's device,
        those of lists on the CPU."""


@dataclass(eq=False)
class _Loop:
    kept: Mapping[str, Resumable]
    n_items: int = 0  # items that are done, or that belong to earlier shards
    amount: int = 0  # tokens, or whatever is counted, in these items
    read: str = ""  # digest of a stream's items so far, where the stream has none of its own
    went_on: bool = False
    stream: Any = None  # the stream that the loop reads, if it reads one


class Computation:
    """The loops of one measure, in order.

    A measure that can be split into shards of its stream (`sharding.py`) calls `merge_shards` after its loops over
    tokens. Up to that call, a shard's loops read the tokens of the shard alone, and those of the merging step none.

    Args:
        checkpoint: where the state is kept; with None, nothing is kept and no progress is reported.
        name: of the measure, with a number to be raised when what it keeps or computes changes.
        stream: what is measured on. If it has a `digest()`, the checkpoint belongs to streams of that digest alone, and
            reading can begin at any item (`starting_at`). Any other stream is read again from its first item to
            continue.
        settings: whatever else the result depends on, as JSON can hold it.
        shardable: whether the measure calls `merge_shards`.

    Raises:
        TypeError: the checkpoint is for a shard, but the measure is not shardable.
        ShardMeasured: this shard was measured before.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        name: str,
        pair: SAEPair,
        stream: Any,
        settings: Mapping[str, Any] | None = None,
        shardable: bool = False,
    ):
        self._given, self._device = checkpoint, pair.device
        self._loops: list[_Loop] = []
        self._before: State | None = None  # until all of it is restored
        self._is_kept = self._is_own = False
        self._shards = None if checkpoint is None else checkpoint.shards
        if self._shards is not None and not shardable:
            raise TypeError(f"{name.split()[0]} cannot be split into shards of its stream")

        @functools.cache
        def belongs_to() -> list[str]:
            known = stream.digest() if hasattr(stream, "digest") else ""
            tables = [] if pair.table_dtype is None else [str(pair.table_dtype)]
            of_pair = [repr(pair.config), content_digest(pair.tensors()), *tables]
            return [name, json.dumps(dict(settings or {})), *of_pair, known]

        self._belongs_to = belongs_to
        self._checkpoint = checkpoint
        if checkpoint is not None and self._shards is not None and self._shards.number is not None:
            self._checkpoint = checkpoint.part(self._shards.name)
        if self._checkpoint is not None and self._checkpoint.exists():
            self._before = self._own.load()
            self._is_kept = self._before is not None
            if self._before is not None and MEASURED in self._before.values:
                raise ShardMeasured

    def tokens(
        self, stream: Iterable[Tensor], kept: Mapping[str, Resumable]
    ) -> Iterator[tuple[Tensor, Tensor | None, int]]:
        """The items of a stream [n_tokens, d_model], each with the documents of its tokens, as `with_documents` gives
        them, and the place of its first token.

        Args:
            kept: everything that changes in the loop.

        Raises:
            ValueError: the stream can be read only once, and its items differ from those the checkpoint was made of.
        """
        loop = self._next_loop(kept)
        loop.stream = stream
        if self._merges:
            return
        share = self._share(stream)
        if share is None:
            items, total = self._items(stream, loop, 0, 0), getattr(stream, "n_tokens", None)
        else:
            items, total = self._items(stream, loop, share.first, share.place), share.stop
            items = itertools.islice(items, share.end - loop.n_items)
        pace = Pace(total, loop.amount)
        for item, documents in with_documents(stream, items, loop.amount):
            yield item, documents, loop.amount
            if not hasattr(stream, "digest"):
                loop.read = self._read(loop.read, item)
            self._done(loop, len(item), pace, "tokens")
        self._ended(loop)

    def steps(
        self,
        items: Iterable[T],
        kept: Mapping[str, Resumable],
        unit: str,
        total: int | None = None,
        size: Callable[[T], int] = lambda item: 1,
        stream: Iterable[Tensor] | None = None,
    ) -> Iterator[T]:
        """Items that are determined before the loop begins, and the same each time.

        Args:
            kept: everything that changes in the loop.
            unit, total, size: for the progress report: what is counted (a plural), how many there are in all, and how
                many an item has.
            stream: the stream to whose items these correspond one to one, so that a shard has its share of both.
        """
        loop = self._next_loop(kept)
        if self._merges:
            return
        share = None if stream is None else self._share(stream)
        if share is not None and not loop.n_items:
            loop.n_items, loop.amount = share.first, share.place
        self._restore(loop)
        pace = Pace(total if share is None else share.stop, loop.amount)
        for item in itertools.islice(items, loop.n_items, None if share is None else share.end):
            yield item
            self._done(loop, size(item), pace, unit)
        self._ended(loop)

    def first(self, stream: Iterable[Tensor]) -> Tensor | None:
        """Return the first tokens of a stream if another shard has them, else None. Sums are taken relative to these
        tokens, which must be the same in all shards."""
        share = self._share(stream)
        return next((item for item in stream if len(item)), None) if share is not None and share.place else None

    def merge_shards(self) -> None:
        """Call this once, after the loops that are split into shards. A shard ends here, and the merging step adds up
        the states of all shards. Without shards it does nothing.

        Raises:
            ShardMeasured: as `sharding.measure_shard` expects.
            ValueError, OSError: as `sharding.merge_shards` and `sharding.measure_shard` say.
        """
        if self._shards is None:
            return
        if self._shards.number is not None:
            state = self._state()
            self._own.write(state.tensors, {**state.values, MEASURED: True}, state.lists)
            raise ShardMeasured
        for number in range(self._shards.of):
            state = self._of_shard(Shards(self._shards.of, number))
            for place, loop in enumerate(self._loops):
                for kept, one in loop.kept.items():
                    one.take_in(state.part(f"{place}.{kept}").to(self._device))
        for loop in self._loops:
            loop.kept = {}  # it is in the shards' files
        self._shards = None

    @property
    def _merges(self) -> bool:
        """Whether there are shards still to be merged."""
        return self._shards is not None and self._shards.number is None

    def _share(self, stream: Iterable[Tensor]) -> Share | None:
        """Return the share of a stream that this shard has; None if this is no shard."""
        if self._shards is None or self._shards.number is None:
            return None
        return share_of(stream, self._shards)

    def _of_shard(self, shard: Shards) -> State:
        """Return the state at the end of a shard. Raises ValueError if it is missing, unfinished or another's."""
        assert self._given is not None
        checkpoint = self._given.part(shard.name).of(*self._belongs_to(), shard.name)
        what = f"{shard.name.replace('_', ' ')} cannot be merged"
        try:
            state = checkpoint.read()
        except FileNotFoundError as error:
            raise ValueError(f"{what}: {checkpoint.path} is not there; measure that shard first") from error
        except ValueError as error:
            raise ValueError(f"{what}: {checkpoint.path}: {error}; measure that shard again") from error
        if MEASURED not in state.values:
            raise ValueError(f"{what}: it is not finished; measure that shard first")
        for loop, (_, _, read) in zip(self._loops, state.values["loops"], strict=True):
            if loop.stream is None or hasattr(loop.stream, "digest"):
                continue
            share, expected = share_of(loop.stream, shard), ""
            for item in itertools.islice(loop.stream, share.first, share.end):
                expected = self._read(expected, item)
            if read != expected:
                raise ValueError(f"{what}: it was measured on another stream; measure that shard again")
        return state

    def _next_loop(self, kept: Mapping[str, Resumable]) -> _Loop:
        """The next loop, as far as the checkpoint says it came; nothing is restored yet."""
        number = len(self._loops)
        before = [] if self._before is None else self._before.values["loops"]
        loop = _Loop(kept, *before[number]) if number < len(before) else _Loop(kept)
        self._loops.append(loop)
        return loop

    def _restore(self, loop: _Loop) -> None:
        if self._before is None:
            return
        number = self._loops.index(loop)
        if number < len(self._before.values["loops"]):
            for name, one in loop.kept.items():
                one.take_in(self._before.part(f"{number}.{name}").to(self._device))
        if number + 1 >= len(self._before.values["loops"]):
            self._before = None

    def _items(self, stream: Any, loop: _Loop, first: int, place: int) -> Iterator[Tensor]:
        """The remaining items of a stream, from number `first` on, whose first token is at `place`. The state after the
        items before them is restored."""
        if not loop.n_items:
            loop.n_items, loop.amount = first, place
        if hasattr(stream, "digest"):
            self._restore(loop)
            return stream.starting_at(loop.n_items)
        items, read = itertools.islice(iter(stream), first, None), ""
        for item in itertools.islice(items, loop.n_items - first):
            read = self._read(read, item)
        if read != loop.read:
            if iter(stream) is stream:
                raise ValueError(
                    f"the stream of MLP inputs is not the one that the checkpoint {self._own.path} is of, and it can "
                    "be read only once; delete the checkpoint, or give a stream that can be read again"
                )
            self._own.refuse("the stream of MLP inputs is another")
            self._before, self._is_kept = None, False
            loop.n_items, loop.amount, loop.read = first, place, ""
            return itertools.islice(iter(stream), first, None)
        self._restore(loop)
        return items

    def _read(self, before: str, item: Tensor) -> str:
        if self._checkpoint is None:
            return ""
        return hashlib.sha256(f"{before}{content_digest({'item': item})}".encode()).hexdigest()

    def _done(self, loop: _Loop, amount: int, pace: Pace, unit: str) -> None:
        """Called between two items."""
        loop.n_items, loop.amount, loop.went_on = loop.n_items + 1, loop.amount + amount, True
        if self._checkpoint is None:
            return
        if pace.due():
            self._checkpoint.say(pace.report(loop.amount, unit))
        if self._checkpoint.due():
            self._save()

    def _ended(self, loop: _Loop) -> None:
        """Keep the state after a loop that ended, if it took long enough for anything to be kept."""
        if self._is_kept and loop.went_on:
            self._save()

    def _save(self) -> None:
        state = self._state()
        self._own.save(state.tensors, state.values, state.lists)
        self._is_kept = True

    def _state(self) -> State:
        """The state of all loops so far."""
        kept = {
            f"{number}.{name}": one.state()
            for number, loop in enumerate(self._loops)
            for name, one in loop.kept.items()
        }
        state, loops = State.joined(kept), [[loop.n_items, loop.amount, loop.read] for loop in self._loops]
        return State(state.tensors, {**state.values, "loops": loops}, state.lists)

    @property
    def _own(self) -> Checkpoint:
        """The checkpoint of this computation. It is made at first use, since describing what it belongs to takes time,
        and most computations end before a checkpoint is due."""
        assert self._checkpoint is not None
        if not self._is_own:
            shards = self._checkpoint.shards
            whose = [] if shards is None else [shards.name]
            self._checkpoint, self._is_own = self._checkpoint.of(*self._belongs_to(), *whose), True
        return self._checkpoint


class Sums(dict[str, Tensor]):
    """Tensors of fixed shapes, by name, to which a loop adds."""

    def state(self) -> State:
        return State(dict(self))

    def take_in(self, state: State) -> None:
        self.update({name: self[name] + tensor for name, tensor in state.tensors.items()})


class Maxima(dict[str, Tensor]):
    """Tensors of fixed shapes, by name, of which a loop keeps the largest."""

    def state(self) -> State:
        return State(dict(self))

    def take_in(self, state: State) -> None:
        self.update({name: torch.maximum(self[name], tensor) for name, tensor in state.tensors.items()})


class Parts(list[dict[str, Tensor]]):
    """Tensors on a device that a loop appends, under the same names each time."""

    def __init__(self, device: torch.device):
        super().__init__()
        self._device = device
        self._joined: tuple[int, dict[str, Tensor]] = (0, {})  # of so many

    def joined(self) -> dict[str, Tensor]:
        """All parts, joined one after the other under each name; empty if there are none."""
        if self._joined[0] != len(self):
            self._joined = len(self), {name: torch.cat([part[name] for part in self]) for name in self[0]}
        return self._joined[1]

    def state(self) -> State:
        return State(lists={name: [part[name] for part in self] for name in (self[0] if self else ())})

    def take_in(self, state: State) -> None:
        for tensors in zip(*state.lists.values(), strict=True):
            self.append({name: tensor.to(self._device) for name, tensor in zip(state.lists, tensors, strict=True)})


class Frames(list[pd.DataFrame]):
    """Tables that a loop appends: columns of numbers and texts, and of arrays of numbers and lists of texts."""

    def state(self) -> State:
        return State(lists={"frames": LazyTensors(self, _packed)})

    def take_in(self, state: State) -> None:
        self += [_unpacked(packed) for packed in state.lists["frames"]]


class RandomNumbers:
    """Random numbers that belong to tokens: they depend only on the token's place in the stream, wherever a loop
    begins. Tokens must be asked for in order.

    Args:
        per_token: the shape of one token's numbers.
    """

    def __init__(self, seed: int, *per_token: int):
        self._generator, self._per_token = torch.Generator().manual_seed(seed), per_token
        self._place = 0  # of the token whose numbers come next

    def of(self, place: int, n_tokens: int) -> Tensor:
        """The numbers of `n_tokens` tokens from a place on, uniform on [0, 1): [n_tokens, *per_token] float32 on the
        CPU."""
        while left := place - self._place:  # this generator cannot skip ahead
            self._draw(min(left, PASSED_AT_ONCE))
        return self._draw(n_tokens)

    def _draw(self, n_tokens: int) -> Tensor:
        self._place += n_tokens
        return torch.rand(n_tokens, *self._per_token, generator=self._generator)

    def state(self) -> State:
        return State({"generator": self._generator.get_state()}, {"place": self._place})

    def take_in(self, state: State) -> None:
        self._generator.set_state(state.tensors["generator"].cpu())
        self._place = state.values["place"]


def _packed(frame: pd.DataFrame) -> Tensor:
    """Bytes in Arrow's format."""
    table, sink = pa.Table.from_pandas(frame), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as file:
        file.write_table(table)
    return torch.frombuffer(bytearray(sink.getvalue()), dtype=torch.uint8)


def _unpacked(packed: Tensor) -> pd.DataFrame:
    frame = pa.ipc.open_stream(pa.py_buffer(packed.numpy())).read_all().to_pandas()
    # Arrow gives lists of texts back as arrays
    return frame.assign(**{name: frame[name].map(_as_list) for name in frame.columns if frame[name].dtype == object})


def _as_list(cell: Any) -> Any:
    return cell.tolist() if isinstance(cell, np.ndarray) and cell.dtype == object else cell
