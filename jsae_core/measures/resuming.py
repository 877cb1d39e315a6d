"""Loops of a measure that may take hours: they say how far they are, and go on where a checkpoint left them.

Here: the loops, what kinds of things they keep, and what a checkpoint belongs to. Not here: the checkpoint itself
(`jsae_core.checkpoints`), what a measure keeps.

    work = Computation(checkpoint, "what is measured 1", pair, stream, {"seed": seed})
    for x, documents, start in work.tokens(stream, {"sums": sums}):  # whatever changes in the loop is named here
        sums.add(x, documents)

What is kept between items of a loop is the same as if nothing had happened, and so are the items that follow: so is the
result, bit for bit where the items are (as on a CPU).
"""

from __future__ import annotations

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
from jsae_core.checkpoints import Checkpoint, LazyTensors, State
from jsae_core.pace import Pace
from jsae_core.sae_pair import SAEPair
from jsae_core.tensor_files import content_digest

T = TypeVar("T")


class Resumable(Protocol):
    """What a loop changes, and can be given back as it was."""

    def state(self) -> State: ...

    def restore(self, state: State) -> None:
        """Become what gave this state, from what this was when its loop began. The tensors are on the pair's device,
        those of lists on the CPU."""


@dataclass
class _Loop:
    kept: Mapping[str, Resumable]
    n_items: int = 0  # that were done
    amount: int = 0  # of what is counted
    read: str = ""  # digest of a stream's items so far, where the stream has none of its own
    went_on: bool = False


class Computation:
    """The loops of one measure, in order.

    Args:
        checkpoint: None: nothing is kept and nothing is said.
        name: of the measure, with a number to be raised when what it keeps or computes changes.
        stream: what is measured on. What its `digest()` says, if it has one, is part of what the checkpoint belongs to;
            such a stream can also begin at any of its items (`starting_at`). Of any other, all items are looked at
            again to go on.
        settings: whatever else the result depends on, as JSON can hold it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        name: str,
        pair: SAEPair,
        stream: Any,
        settings: Mapping[str, Any] | None = None,
    ):
        self._checkpoint, self._device = checkpoint, pair.device
        self._loops: list[_Loop] = []
        self._before: State | None = None  # until all of it is restored
        self._is_kept = self._is_own = False

        def belongs_to() -> list[str]:
            known = stream.digest() if hasattr(stream, "digest") else ""
            tables = [] if pair.table_dtype is None else [str(pair.table_dtype)]
            of_pair = [repr(pair.config), content_digest(pair.tensors()), *tables]
            return [name, json.dumps(dict(settings or {})), *of_pair, known]

        self._belongs_to = belongs_to
        if checkpoint is not None and checkpoint.exists():
            self._before = self._own.load()
            self._is_kept = self._before is not None

    def tokens(
        self, stream: Iterable[Tensor], kept: Mapping[str, Resumable]
    ) -> Iterator[tuple[Tensor, Tensor | None, int]]:
        """The items of a stream [n_tokens, d_model], each with the documents that its tokens are from, as
        `with_documents` gives them, and the place of its first token.

        Args:
            kept: whatever changes in the loop.

        Raises:
            ValueError: a stream that can be read only once is not the one that the checkpoint is of.
        """
        loop = self._next_loop(kept)
        items = self._items(stream, loop)
        pace = Pace(getattr(stream, "n_tokens", None), loop.amount)
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
    ) -> Iterator[T]:
        """Items that follow from what is known before the loop begins, and are the same each time.

        Args:
            kept: whatever changes in the loop.
            unit, total, size: what is counted to say how far it is: in the plural, how much there is, how much an item
                is.
        """
        loop = self._next_loop(kept)
        self._restore(loop)
        pace = Pace(total, loop.amount)
        for item in itertools.islice(items, loop.n_items, None):
            yield item
            self._done(loop, size(item), pace, unit)
        self._ended(loop)

    def _next_loop(self, kept: Mapping[str, Resumable]) -> _Loop:
        """As far as it is known to have come; nothing is restored yet."""
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
                one.restore(self._before.part(f"{number}.{name}").to(self._device))
        if number + 1 >= len(self._before.values["loops"]):
            self._before = None

    def _items(self, stream: Any, loop: _Loop) -> Iterator[Tensor]:
        """Those of a stream that are to come; what was kept of the others is restored."""
        if hasattr(stream, "digest"):
            self._restore(loop)
            return stream.starting_at(loop.n_items)
        items, read = iter(stream), ""
        for item in itertools.islice(items, loop.n_items):
            read = self._read(read, item)
        if read != loop.read:
            if items is stream:
                raise ValueError(
                    f"the stream of MLP inputs is not the one that the checkpoint {self._own.path} is of, and it can "
                    "be read only once; delete the checkpoint, or give a stream that can be read again"
                )
            self._own.refuse("the stream of MLP inputs is another")
            self._before, self._is_kept = None, False
            loop.n_items, loop.amount, loop.read = 0, 0, ""
            return iter(stream)
        self._restore(loop)
        return items

    def _read(self, before: str, item: Tensor) -> str:
        if self._checkpoint is None:
            return ""
        return hashlib.sha256(f"{before}{content_digest({'item': item})}".encode()).hexdigest()

    def _done(self, loop: _Loop, amount: int, pace: Pace, unit: str) -> None:
        """To be called between two items."""
        loop.n_items, loop.amount, loop.went_on = loop.n_items + 1, loop.amount + amount, True
        if self._checkpoint is None:
            return
        if pace.due():
            self._checkpoint.say(pace.report(loop.amount, unit))
        if self._checkpoint.due():
            self._save()

    def _ended(self, loop: _Loop) -> None:
        """A loop that came to its end is kept as a whole, if it takes so long that anything is kept at all."""
        if self._is_kept and loop.went_on:
            self._save()

    def _save(self) -> None:
        kept = {
            f"{number}.{name}": one.state()
            for number, loop in enumerate(self._loops)
            for name, one in loop.kept.items()
        }
        state, loops = State.joined(kept), [[loop.n_items, loop.amount, loop.read] for loop in self._loops]
        self._own.save(state.tensors, {**state.values, "loops": loops}, state.lists)
        self._is_kept = True

    @property
    def _own(self) -> Checkpoint:
        """The checkpoint of this computation. Whose it is takes time to say, and most computations end before one is
        due."""
        assert self._checkpoint is not None
        if not self._is_own:
            self._checkpoint, self._is_own = self._checkpoint.of(*self._belongs_to()), True
        return self._checkpoint


class Tensors(dict[str, Tensor]):
    """Tensors of fixed shapes that a loop changes or replaces, by name."""

    def state(self) -> State:
        return State(dict(self))

    def restore(self, state: State) -> None:
        self.update(state.tensors)


class Parts(list[dict[str, Tensor]]):
    """Tensors on a device that a loop appends, under the same names each time."""

    def __init__(self, device: torch.device):
        super().__init__()
        self._device = device

    def joined(self) -> dict[str, Tensor]:
        """One after the other."""
        return {name: torch.cat([part[name] for part in self]) for name in self[0]}

    def state(self) -> State:
        return State(lists={name: [part[name] for part in self] for name in (self[0] if self else ())})

    def restore(self, state: State) -> None:
        for tensors in zip(*state.lists.values(), strict=True):
            self.append({name: tensor.to(self._device) for name, tensor in zip(state.lists, tensors, strict=True)})


class Frames(list[pd.DataFrame]):
    """Tables that a loop appends: columns of numbers and texts, and of arrays of numbers and lists of texts."""

    def state(self) -> State:
        return State(lists={"frames": LazyTensors(self, _packed)})

    def restore(self, state: State) -> None:
        self += [_unpacked(packed) for packed in state.lists["frames"]]


class RandomNumbers:
    """Where a generator stands from which a loop draws."""

    def __init__(self, generator: torch.Generator):
        self._generator = generator

    def state(self) -> State:
        return State({"generator": self._generator.get_state()})

    def restore(self, state: State) -> None:
        self._generator.set_state(state.tensors["generator"].cpu())


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
