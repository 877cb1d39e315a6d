"""Checkpoints: how far a long computation has come, in one file, so that it goes on from there after it was killed.

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
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from jsae_core.tensor_files import content_digest, read_tensors, write_tensors

SECONDS = 60.0  # between checkpoints, unless said otherwise


@dataclass(frozen=True)
class State:
    """How far a computation had come: tensors on the CPU, and values that JSON can hold."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


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
        self._say = say
        self._last = time.monotonic()

    def of(self, *parts: str) -> Checkpoint:
        """The same file, for the computation that these describe as well."""
        other = copy(self)
        other.digest = hashlib.sha256(json.dumps([self.digest, *parts]).encode()).hexdigest()
        return other

    def load(self) -> State | None:
        """The state to go on from, or None."""
        try:
            state = self._read()
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            self.refuse(str(error))
            return None
        self._say("going on from the checkpoint")
        return state

    def refuse(self, why: str) -> None:
        """Say that the state is not gone on from; what `load` calls, and a computation that finds a state wrong."""
        self._say(f"the checkpoint {self.path} is not used: {why}. Beginning anew")

    def due(self) -> bool:
        """Whether so much time has passed since the last one that the state should be saved now."""
        return time.monotonic() - self._last >= self.seconds

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Replace the state in the file. Where that fails (a full disk), the one before stays, it is said, and the
        computation can go on: it only has more to lose."""
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(dict(values))
        header = {"digest": self.digest, "values": text, "content": _content(on_cpu, text, self.digest)}
        try:
            with self._replaced() as path:
                write_tensors(on_cpu, path, header)
        except (OSError, SafetensorError) as error:  # safetensors does not raise the system's own errors
            size = sum(tensor.nbytes for tensor in on_cpu.values())
            self._say(
                f"the checkpoint {self.path} of {size:,} bytes could not be written ({error}); going on without it and "
                f"trying again in {self.seconds:g} s: make room there"
            )
        self._last = time.monotonic()

    def remove(self) -> None:
        """To be called once the result is stored: until then the state would still be needed."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> State:
        with self._local_copy() as path:
            tensors, header = read_tensors(path)
        if header.get("digest") != self.digest:
            raise ValueError("it was made from other inputs, or with other settings")
        if header.get("content") != _content(tensors, header.get("values", ""), self.digest):
            raise ValueError("its content is damaged")
        return State(tensors, json.loads(header["values"]))

    @contextmanager
    def _local_copy(self) -> Iterator[Path]:
        """The file, on this machine. Raises FileNotFoundError."""
        if not self.path.exists():
            raise FileNotFoundError(self.path)
        yield self.path

    @contextmanager
    def _replaced(self) -> Iterator[Path]:
        """A file of this machine to write to, which becomes the checkpoint once the block ends without an error."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # of one name, so that what a killed process left is written over
        part = self.path.with_name(f".{self.path.stem}.part{self.path.suffix}")
        try:
            yield part
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)


def _content(tensors: Mapping[str, Tensor], values: str, digest: str) -> str:
    """Of all that a file holds."""
    return hashlib.sha256("\0".join([content_digest(tensors), values, digest]).encode()).hexdigest()
