"""Checkpoints: how far a long computation has come, in a file, so that it goes on from there after it was killed.

Here: writing a state of tensors and plain values whole or not at all, whose state it is, when the next one is due. Not
here: what the state of a computation is (each says that itself), where the file lies (whoever makes the `Checkpoint`).

    checkpoint = checkpoint.of("what is computed", "with which settings", ...)
    state = checkpoint.load()                    # None: begin at the beginning
    for step in range(state.values["step"] if state else 0, steps):
        ...
        if checkpoint.due():
            checkpoint.save({"sums": sums}, {"step": step + 1})
    # and once the result is stored:
    checkpoint.remove()

Lists of tensors that only grow, such as what was computed of every token so far, may be many GB. They are not written
again each time: what is new of them goes to one more file in a folder beside the checkpoint, which says what counts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from jsae_core.tensor_files import content_digest, open_tensors, read_tensors, write_tensors

SECONDS = 60.0  # between checkpoints, unless said otherwise
PIECES_BYTES = 2**28  # of lists, in one file


@dataclass(frozen=True)
class State:
    """How far a computation had come.

    Attributes:
        tensors: by name; on the CPU where they were loaded.
        values: by name, what JSON can hold.
        lists: by name, of tensors; from one state of a computation to the next they only grow. Where they were loaded,
            a tensor is read when it is asked for.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    lists: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Mapping[str, State]) -> State:
        """One state of several, by their names."""
        states = [(f"{name}.", state) for name, state in parts.items()]
        return cls(
            {before + name: tensor for before, state in states for name, tensor in state.tensors.items()},
            {before + name: value for before, state in states for name, value in state.values.items()},
            {before + name: tensors for before, state in states for name, tensors in state.lists.items()},
        )

    def part(self, name: str) -> State:
        """One of those that were joined."""
        return State(*(named_below(held, f"{name}.") for held in (self.tensors, self.values, self.lists)))

    def to(self, device: torch.device) -> State:
        """With the tensors there; the lists stay where they are."""
        return State({name: tensor.to(device) for name, tensor in self.tensors.items()}, self.values, self.lists)


def named_below(held: Mapping[str, Any], before: str) -> dict[str, Any]:
    """What has a name that begins so, by the rest of its name."""
    return {name.removeprefix(before): value for name, value in held.items() if name.startswith(before)}


class Made(Sequence[Tensor]):
    """A list of tensors that are made of items when they are asked for."""

    def __init__(self, items: Sequence[Any], make: Callable[[Any], Tensor]):
        self._items, self._make = items, make

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: Any) -> Any:
        return self._make(self._items[place])


class Checkpoint:
    """The file in which a computation keeps its state.

    A state is the computation's own only if all that the result depends on is the same, which the digest tells. One of
    another digest, and a file that is damaged in any way, are ignored with a word and replaced by the next `save`.

    Args:
        path: the file; its folder is made where it is missing.
        digest: of what the result depends on, as far as the caller knows; the computation adds the rest with `of`.
        seconds: at most so much work lies between two checkpoints, plus one step; at least 0.
        say: told, in a sentence, what was found and what could not be written.
    """

    def __init__(
        self, path: Path, digest: str = "", seconds: float = SECONDS, say: Callable[[str], None] = lambda message: None
    ):
        self.path = path
        self.digest = digest
        self.seconds = seconds
        self.say = say
        self._last = time.monotonic()
        self._pieces: list[str] = []  # digests of the contents of the files that lists are in
        self._lengths: dict[str, int] = {}  # of the lists, as far as they are there

    def of(self, *parts: str) -> Checkpoint:
        """The same file, for the computation that these describe as well."""
        other = copy(self)
        other.digest = hashlib.sha256(json.dumps([self.digest, *parts]).encode()).hexdigest()
        return other

    def for_one_of(self, computations: int) -> Checkpoint:
        """The same file, for the first of so many computations of the same result; each further one takes a `part` of
        it. What was computed in less than the seconds leaves no checkpoint, and each may have been: so each has its
        share of them."""
        other = copy(self)
        other.seconds = self.seconds / computations
        return other

    def part(self, name: str) -> Checkpoint:
        """One for a further computation of the same result, which is removed with this one."""
        other = copy(self)
        other.path = self._folder / f"{name}.safetensors"
        other._nothing_written()
        return other

    def exists(self) -> bool:
        """Whether there is a file, of whatever computation."""
        return self.path.exists()

    def load(self) -> State | None:
        """The state to go on from, or None."""
        try:
            state = self._read()
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            self.refuse(str(error))
            return None
        self.say("going on from the checkpoint")
        return state

    def refuse(self, why: str) -> None:
        """Say that the state is not gone on from; what `load` calls, and a computation that finds a state wrong."""
        self._nothing_written()
        self.say(f"the checkpoint {self.path} is not used: {why}. Beginning anew")

    def due(self) -> bool:
        """Whether so much time has passed since the last one that the state should be saved now."""
        return time.monotonic() - self._last >= self.seconds

    def save(
        self,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        lists: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        """Replace the state in the file; of the lists, only tensors that were not there at the last time are asked for
        and written. Where that fails (a full disk), the state before stays, it is said, and the computation can go on:
        it only has more to lose."""
        on_cpu = _on_cpu(tensors)
        text, pieces = json.dumps(dict(values)), list(self._pieces)
        size = sum(tensor.nbytes for tensor in on_cpu.values())
        try:
            for new in self._new_of(lists or {}):
                size += sum(tensor.nbytes for tensor in new.values())
                with self._replaced(self._piece(len(pieces))) as path:
                    write_tensors(new, path)
                pieces.append(content_digest(new))
            header = {"digest": self.digest, "values": text, "pieces": json.dumps(pieces)}
            header["lists"] = json.dumps(list(lists or {}))
            with self._replaced(self.path) as path:
                write_tensors(on_cpu, path, header | {"content": _content(on_cpu, header)})
            self._pieces = pieces
            self._lengths = {name: len(of) for name, of in (lists or {}).items()}
        except (OSError, SafetensorError) as error:  # safetensors does not raise the system's own errors
            self.say(
                f"the checkpoint {self.path} of {size:,} bytes could not be written ({error}); going on without it and "
                f"trying again in {self.seconds:g} s: make room there"
            )
            for number in range(len(self._pieces), len(pieces) + 1):
                self._piece(number).unlink(missing_ok=True)
        self._last = time.monotonic()

    def remove(self) -> None:
        """To be called once the result is stored: until then the state would still be needed."""
        self.path.unlink(missing_ok=True)
        self._remove_folders()

    def _remove_folders(self) -> None:
        for folder in (self._folder, _part(self.path)):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        """Of further files."""
        return self.path.with_name(f"{self.path.stem}.parts")

    def _piece(self, number: int) -> Path:
        return self._folder / f"{number}.safetensors"

    def _nothing_written(self) -> None:
        self._pieces, self._lengths = [], {}

    def _new_of(self, lists: Mapping[str, Sequence[Tensor]]) -> Iterator[dict[str, Tensor]]:
        """What is new of these lists, about PIECES_BYTES at a time: by the name of the list and the place in it."""
        new: dict[str, Tensor] = {}
        room = PIECES_BYTES
        known = {name: self._lengths.get(name, 0) for name in lists}
        # what was added to several lists at once is read at once again
        for place in range(min(known.values(), default=0), max(map(len, lists.values()), default=0)):
            for name, of in lists.items():
                if not known[name] <= place < len(of):
                    continue
                if room <= 0:
                    yield new
                    new, room = {}, PIECES_BYTES
                new |= _on_cpu({f"{name} {place}": of[place]})
                room -= new[f"{name} {place}"].nbytes
        if new:
            yield new

    def _read(self) -> State:
        with self._local_copy(self.path) as path:
            tensors, header = read_tensors(path)
        if header.get("digest") != self.digest:
            raise ValueError("it was made from other inputs, or with other settings")
        if header.pop("content", None) != _content(tensors, header):
            raise ValueError("its content is damaged")
        pieces: list[str] = json.loads(header["pieces"])
        places: dict[str, int] = {}
        for number, digest in enumerate(pieces):
            try:
                with self._local_copy(self._piece(number)) as path:
                    new, _ = read_tensors(path)
            except FileNotFoundError as error:
                raise ValueError(f"{self._piece(number)} is missing") from error
            if content_digest(new) != digest:
                raise ValueError(f"the content of {self._piece(number)} is damaged")
            places |= dict.fromkeys(new, number)
        lists: dict[str, dict[int, str]] = {name: {} for name in json.loads(header["lists"])}
        for key in places:
            name, place = key.rsplit(" ", 1)
            lists[name][int(place)] = key
        reader = _Reader(places, lambda number: self._local_copy(self._piece(number)))
        self._pieces, self._lengths = pieces, {name: len(keys) for name, keys in lists.items()}
        in_order = {name: [keys[place] for place in sorted(keys)] for name, keys in lists.items()}
        return State(
            tensors,
            json.loads(header["values"]),
            {name: Made(keys, reader.tensor) for name, keys in in_order.items()},
        )

    @contextmanager
    def _local_copy(self, path: Path) -> Iterator[Path]:
        """A file of the checkpoint, on this machine. Raises FileNotFoundError."""
        if not path.exists():
            raise FileNotFoundError(path)
        yield path

    @contextmanager
    def _replaced(self, path: Path) -> Iterator[Path]:
        """A file of this machine to write to, which takes its place once the block ends without an error."""
        part = _part(path)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            yield part / path.name
            (part / path.name).replace(path)
        finally:
            shutil.rmtree(part)


class _Reader:
    """Reads tensors from several files, the last one of which stays open.

    Args:
        places: the number of the file that each is in.
        local: gives a file on this machine.
    """

    def __init__(self, places: Mapping[str, int], local: Callable[[int], AbstractContextManager[Path]]):
        self._places, self._local = places, local
        self._number: int | None = None
        self._open = ExitStack()

    def tensor(self, name: str) -> Tensor:
        if self._number != self._places[name]:
            self._open.close()
            self._number = self._places[name]
            path = self._open.enter_context(self._local(self._number))
            self._file = self._open.enter_context(open_tensors(path))
        return self._file.get_tensor(name)


def _part(path: Path) -> Path:
    """The folder in which a file is written before it takes its place (safetensors writes another one beside it); of
    one name, so that what a killed process left goes with the next."""
    return path.with_name(f".{path.stem}.part{path.suffix}")


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each in memory of its own: safetensors writes no two that share it, as parts of a larger one do."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return {
        name: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        for name, tensor in on_cpu.items()
    }


def _content(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Of all that a file holds."""
    said = [header.get(name, "") for name in ("values", "pieces", "lists", "digest")]
    return hashlib.sha256("\0".join([content_digest(tensors), *said]).encode()).hexdigest()
