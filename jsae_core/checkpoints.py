"""Checkpoints: the state of a long computation in a file, so that a killed computation continues from there.

Here: writing a state of tensors and plain values whole or not at all, telling which computation it belongs to, when the
next one is due. Not here: what the state of a computation consists of (each computation decides), where the file lies
(whoever makes the `Checkpoint` decides).

    checkpoint = checkpoint.of("what is computed", "with which settings", ...)
    state = checkpoint.load()                    # None: begin at the beginning
    for step in range(state.values["step"] if state else 0, steps):
        ...
        if checkpoint.due():
            checkpoint.save({"sums": sums}, {"step": step + 1})
    # and once the result is stored:
    checkpoint.remove()

Lists of tensors that only grow, such as one result for each token so far, may take many GB. They are not written again
each time: their new tensors go to one more file in a folder beside the checkpoint, and the checkpoint names the files
that are valid.
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

SECONDS = 60.0  # between checkpoints, by default
PIECES_BYTES = 2**28  # about the size of one file with tensors of lists


@dataclass(frozen=True)
class State:
    """The state of a computation.

    Attributes:
        tensors: tensors by name; in a loaded state they are on the CPU.
        values: values by name that JSON can hold.
        lists: lists of tensors by name; from one state of a computation to the next they only grow. In a loaded state,
            a tensor is read from its file when it is asked for.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    lists: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Mapping[str, State]) -> State:
        """Join several named states into one."""
        states = [(f"{name}.", state) for name, state in parts.items()]
        return cls(
            {before + name: tensor for before, state in states for name, tensor in state.tensors.items()},
            {before + name: value for before, state in states for name, value in state.values.items()},
            {before + name: tensors for before, state in states for name, tensors in state.lists.items()},
        )

    def part(self, name: str) -> State:
        """The state of this name, one of those that `joined` put together."""
        return State(*(without_prefix(items, f"{name}.") for items in (self.tensors, self.values, self.lists)))

    def to(self, device: torch.device) -> State:
        """A copy with the tensors on the device; the lists stay where they are."""
        return State({name: tensor.to(device) for name, tensor in self.tensors.items()}, self.values, self.lists)


@dataclass(frozen=True)
class Shards:
    """Which part of a computation a checkpoint is for, where the computation is split over shards of its input.

    Attributes:
        of: how many shards there are.
        number: the shard, from 0; None for the step that merges all of them.
    """

    of: int
    number: int | None = None

    @property
    def name(self) -> str:
        return f"{self.of}_shards_merged" if self.number is None else f"shard_{self.number + 1}_of_{self.of}"


def without_prefix(items: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The items whose names start with the prefix, under their names without it."""
    return {name.removeprefix(prefix): value for name, value in items.items() if name.startswith(prefix)}


class LazyTensors(Sequence[Tensor]):
    """A sequence of tensors, each made from its item by `make` when it is asked for."""

    def __init__(self, items: Sequence[Any], make: Callable[[Any], Tensor]):
        self._items, self._make = items, make

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._make(self._items[index])


class Checkpoint:
    """The file in which a computation keeps its state.

    A stored state belongs to a computation only if everything that the result depends on is the same, which the digest
    tells. A state with another digest and a damaged file are not used: `say` receives a message, and the next `save`
    replaces them.

    Args:
        path: the file; its folder is made if it is missing.
        digest: digest of what the result depends on, as far as the caller knows; the computation adds the rest with
            `of`.
        seconds: the time after which the next checkpoint is due, at least 0. A crash costs at most this time and one
            step.
        say: receives a sentence when a state was found, was not used or could not be written.

    Attributes:
        shards: which part of the computation the checkpoint is for, set by `measures/sharding.py`; None: all of it.
    """

    shards: Shards | None = None

    def __init__(
        self, path: Path, digest: str = "", seconds: float = SECONDS, say: Callable[[str], None] = lambda message: None
    ):
        self.path = path
        self.digest = digest
        self.seconds = seconds
        self.say = say
        self._last_saved = time.monotonic()
        self._piece_digests: list[str] = []  # of the contents of each file that holds tensors of lists
        self._lengths: dict[str, int] = {}  # the number of tensors of each list that are in these files

    def of(self, *parts: str) -> Checkpoint:
        """A checkpoint in the same file whose digest also covers these descriptions of the computation."""
        other = copy(self)
        other.digest = hashlib.sha256(json.dumps([self.digest, *parts]).encode()).hexdigest()
        return other

    def for_one_of(self, computations: int) -> Checkpoint:
        """A checkpoint in the same file for the first of several computations of the same result; each further one uses
        a `part` of it. A computation shorter than `seconds` leaves no checkpoint, so each gets an equal share of
        `seconds`: then a crash costs at most `seconds` over all of them."""
        other = copy(self)
        other.seconds = self.seconds / computations
        return other

    def part(self, name: str) -> Checkpoint:
        """A checkpoint for a further computation of the same result; removing this one removes it too."""
        other = copy(self)
        other.path = self._folder / f"{name}.safetensors"
        other._forget_lists()
        return other

    def exists(self) -> bool:
        """Whether the file exists, whichever computation it belongs to."""
        return self.path.exists()

    def load(self) -> State | None:
        """Return the state to continue from, or None if there is none."""
        try:
            state = self.read()
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            self.refuse(str(error))
            return None
        self.say("going on from the checkpoint")
        return state

    def refuse(self, why: str) -> None:
        """Report that the stored state is not used. Called by `load`, and by a computation to which a state is of no
        use."""
        self._forget_lists()
        self.say(f"the checkpoint {self.path} is not used: {why}. Beginning anew")

    def due(self) -> bool:
        """Whether so much time has passed since the last checkpoint that the state should be saved now."""
        return time.monotonic() - self._last_saved >= self.seconds

    def save(
        self,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        lists: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        """Replace the state in the file. Of the lists, only the tensors that were added since the last `save` are asked
        for and written. If that fails (a full disk), `say` receives a message, the state before stays, and the
        computation can continue: a crash only costs it more."""
        try:
            self.write(tensors, values, lists)
        except OSError as error:
            self.say(f"{error}; going on without it and trying again in {self.seconds:g} s: make room there")
        self._last_saved = time.monotonic()

    def write(
        self,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        lists: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        """As `save`, for a state that the computation cannot do without. Raises OSError, naming the file, if it cannot
        be written; the state before stays."""
        on_cpu = _on_cpu(tensors)
        text, digests = json.dumps(dict(values)), list(self._piece_digests)
        size = sum(tensor.nbytes for tensor in on_cpu.values())
        try:
            for added in self._added_tensors(lists or {}):
                size += sum(tensor.nbytes for tensor in added.values())
                with self._replaced(self._piece(len(digests))) as path:
                    write_tensors(added, path)
                digests.append(content_digest(added))
            header = {"digest": self.digest, "values": text, "pieces": json.dumps(digests)}
            header["lists"] = json.dumps(list(lists or {}))
            with self._replaced(self.path) as path:
                write_tensors(on_cpu, path, header | {"content": _file_digest(on_cpu, header)})
            self._piece_digests = digests
            self._lengths = {name: len(tensors) for name, tensors in (lists or {}).items()}
        except (OSError, SafetensorError) as error:  # safetensors does not raise the system's own errors
            for number in range(len(self._piece_digests), len(digests) + 1):
                self._piece(number).unlink(missing_ok=True)
            raise OSError(f"the checkpoint {self.path} of {size:,} bytes could not be written ({error})") from error

    def remove(self) -> None:
        """Delete the stored state. Call it only once the result is stored: until then a crash would need the state."""
        self.path.unlink(missing_ok=True)
        self._remove_folders()

    def _remove_folders(self) -> None:
        for folder in (self._folder, _part(self.path)):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def _folder(self) -> Path:
        """The folder of the files with tensors of lists, and of the checkpoints that `part` gives."""
        return self.path.with_name(f"{self.path.stem}.parts")

    def _piece(self, number: int) -> Path:
        return self._folder / f"{number}.safetensors"

    def _forget_lists(self) -> None:
        """Have the next `save` write the lists from their beginning."""
        self._piece_digests, self._lengths = [], {}

    def _added_tensors(self, lists: Mapping[str, Sequence[Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The tensors that no file holds yet, about PIECES_BYTES at a time, named by their list and their index."""
        added: dict[str, Tensor] = {}
        room = PIECES_BYTES
        written = {name: self._lengths.get(name, 0) for name in lists}
        # index by index, because tensors that were added to several lists together are also read together
        for index in range(min(written.values(), default=0), max(map(len, lists.values()), default=0)):
            for name, tensors in lists.items():
                if not written[name] <= index < len(tensors):
                    continue
                if room <= 0:
                    yield added
                    added, room = {}, PIECES_BYTES
                added |= _on_cpu({f"{name} {index}": tensors[index]})
                room -= added[f"{name} {index}"].nbytes
        if added:
            yield added

    def read(self) -> State:
        """Return the stored state. Raises FileNotFoundError if there is none, ValueError if it belongs to another
        computation or is damaged."""
        with self._local_copy(self.path) as path:
            tensors, header = read_tensors(path)
        if header.get("digest") != self.digest:
            raise ValueError("it was made from other inputs, or with other settings")
        if header.pop("content", None) != _file_digest(tensors, header):
            raise ValueError("its content is damaged")
        digests: list[str] = json.loads(header["pieces"])
        piece_of: dict[str, int] = {}  # the number of the file that holds each tensor of the lists
        for number, digest in enumerate(digests):
            try:
                with self._local_copy(self._piece(number)) as path:
                    piece, _ = read_tensors(path)
            except FileNotFoundError as error:
                raise ValueError(f"{self._piece(number)} is missing") from error
            if content_digest(piece) != digest:
                raise ValueError(f"the content of {self._piece(number)} is damaged")
            piece_of |= dict.fromkeys(piece, number)
        lists: dict[str, dict[int, str]] = {name: {} for name in json.loads(header["lists"])}
        for key in piece_of:
            name, index = key.rsplit(" ", 1)
            lists[name][int(index)] = key
        reader = _Reader(piece_of, lambda number: self._local_copy(self._piece(number)))
        self._piece_digests, self._lengths = digests, {name: len(keys) for name, keys in lists.items()}
        in_order = {name: [keys[index] for index in sorted(keys)] for name, keys in lists.items()}
        return State(
            tensors,
            json.loads(header["values"]),
            {name: LazyTensors(keys, reader.tensor) for name, keys in in_order.items()},
        )

    @contextmanager
    def _local_copy(self, path: Path) -> Iterator[Path]:
        """A copy on this machine of one of the checkpoint's files. Raises FileNotFoundError if it is missing."""
        if not path.exists():
            raise FileNotFoundError(path)
        yield path

    @contextmanager
    def _replaced(self, path: Path) -> Iterator[Path]:
        """A temporary file to write to; it replaces the file at `path` once the block ends without an error."""
        part = _part(path)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            yield part / path.name
            (part / path.name).replace(path)
        finally:
            shutil.rmtree(part)


class _Reader:
    """Reads tensors from several files. The file that was read last stays open.

    Args:
        piece_of: for each tensor, the number of the file that holds it.
        local_copy: opens a local copy of the file with a number.
    """

    def __init__(self, piece_of: Mapping[str, int], local_copy: Callable[[int], AbstractContextManager[Path]]):
        self._piece_of, self._local_copy = piece_of, local_copy
        self._number: int | None = None
        self._open = ExitStack()

    def tensor(self, name: str) -> Tensor:
        if self._number != self._piece_of[name]:
            self._open.close()
            self._number = self._piece_of[name]
            path = self._open.enter_context(self._local_copy(self._number))
            self._file = self._open.enter_context(open_tensors(path))
        return self._file.get_tensor(name)


def _part(path: Path) -> Path:
    """The folder in which a file is written before it is moved to its place, since safetensors writes a further file
    beside it. Its name is always the same, so that the next `save` removes what a killed process left."""
    return path.with_name(f".{path.stem}.part{path.suffix}")


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU copies that share no memory, since safetensors refuses tensors that do (such as slices of one tensor)."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return {
        name: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        for name, tensor in on_cpu.items()
    }


def _file_digest(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    """Digest of the tensors and the header of a checkpoint's file."""
    entries = [header.get(name, "") for name in ("values", "pieces", "lists", "digest")]
    return hashlib.sha256("\0".join([content_digest(tensors), *entries]).encode()).hexdigest()
