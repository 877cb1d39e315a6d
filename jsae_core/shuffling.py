"""Batches in random order from a stream of MLP inputs, through a buffer of bounded size.

Here: the buffer, what is served from it and when it is filled again, and its state, from which serving goes on in
another process. Not here: where activations come from (`activations.py`), what is done with a batch (`training.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from jsae_core.checkpoints import State
from jsae_core.memory import moved
from jsae_core.tensor_files import content_digest


class ShuffledBatches(Iterator[Tensor]):
    """Batches [batch_tokens, d_model] in random order.

    What fits the buffer is gone through in epochs, without end. A longer stream is mixed through the buffer, half of
    which is refilled at a time, and ends when the stream does.

    What is served goes by rounds: an epoch, or what is served between two refills. The state is the buffer and the
    generator as they were when the round began (a buffer that holds all is read again instead), and how much of the
    round was served.

    Args:
        mlp_inputs: [n_tokens, d_model], or a stream of such. If a stream has `starting_at`, as `MLPInputs` does, what
            was read before is not computed again to go on.

    Raises:
        ValueError: when first read: the stream holds no token.
    """

    # from the first batch on
    _buffer: Tensor
    _holds_all: bool
    _following: Tensor | None  # the piece after what the buffer holds

    def __init__(
        self,
        mlp_inputs: Tensor | Iterable[Tensor],
        batch_tokens: int,
        buffer_tokens: int,
        generator: torch.Generator,
    ):
        self._pieces = _Pieces([mlp_inputs] if isinstance(mlp_inputs, Tensor) else mlp_inputs)
        self._batch_tokens, self._buffer_tokens = batch_tokens, buffer_tokens
        self._generator = generator
        self._begun = False

    def __next__(self) -> Tensor:
        if not self._begun:
            self._read_all_that_fits()
            self._begin_round()
        while self._served == len(self._order):
            if not self._holds_all:
                self._refill()
            self._begin_round()
        batch = self._order[self._served : self._served + self._batch_tokens]
        self._served += self._batch_tokens
        return self._buffer[batch]

    def first_digest(self) -> str:
        """Of the stream's first tokens (of all, if they come in one tensor); to be asked before a batch is."""
        return content_digest({"first": self._pieces.first()})

    def state(self) -> State:
        """To be taken after a batch was served."""
        values = {"served": self._served, "holds_all": self._holds_all}
        if self._holds_all:
            return State({"generator": self._generator_then}, values | {"content": self._content})
        unread = self._pieces.read - (self._following is not None)
        return State({"generator": self._generator_then, "buffer": self._buffer}, values | {"unread": unread})

    def restore(self, state: State) -> bool:
        """Serve what followed the state; nothing may have been served before. Where the stream is seen to hold other
        tokens than then, serving starts at its beginning and the answer is False."""
        values = state.values
        if values["holds_all"]:
            self._read_all_that_fits()
            same = self._holds_all and self._content == values["content"]
        else:
            self._holds_all, same = False, True
            self._buffer = state.tensors["buffer"].to(self._pieces.first().device)
            self._following = self._pieces.starting_at(values["unread"])
        if same:
            self._generator.set_state(state.tensors["generator"])
        self._begin_round()
        self._served = values["served"] if same else 0
        return same

    @cached_property
    def _content(self) -> str:
        """Of a buffer that holds all."""
        return content_digest({"buffer": self._buffer})

    def _read_all_that_fits(self) -> None:
        self._pieces.first()  # or raises
        self._fill([])
        self._holds_all = self._following is None

    def _begin_round(self) -> None:
        self._begun, self._generator_then = True, self._generator.get_state()
        n, batch_tokens = len(self._buffer), self._batch_tokens
        if self._holds_all:
            # a batch larger than the data holds some tokens twice
            rounds, keep = -(-batch_tokens // n), 0
        else:
            rounds, keep = 1, n // 2 if self._following is not None else n % batch_tokens
        order = torch.cat([torch.randperm(n, generator=self._generator) for _ in range(rounds)])
        order = moved(order, self._buffer.device)
        whole = keep + (len(order) - keep) // batch_tokens * batch_tokens
        self._order, self._left = order[keep:whole], torch.cat([order[:keep], order[whole:]])
        self._served = 0

    def _refill(self) -> None:
        if self._following is None:
            raise StopIteration
        self._fill([self._buffer[self._left], self._following])

    def _fill(self, parts: list[Tensor]) -> None:
        """These, and of the stream as much as fits with them, or all it has left; and one piece beyond."""
        missing = self._buffer_tokens - sum(map(len, parts))
        while missing > 0 and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            missing -= len(piece)
        self._buffer = torch.cat(parts)
        self._following = next(self._pieces, None)


class _Pieces(Iterator[Tensor]):
    """The pieces of a stream that hold a token. `read`: how many were read, those without a token counted."""

    def __init__(self, stream: Iterable[Tensor]):
        self._stream = stream
        self._iterator = iter(stream)
        self.read = 0

    def __next__(self) -> Tensor:
        while True:
            piece = next(self._iterator)
            self.read += 1
            if len(piece):
                return piece

    def first(self) -> Tensor:
        """The next piece, which stays the next one. Raises ValueError where there is none."""
        piece = next(self, None)
        if piece is None:
            raise ValueError("the stream of MLP inputs is empty: there is nothing to train on")
        self._iterator = itertools.chain([piece], self._iterator)
        self.read -= 1
        return piece

    def starting_at(self, number: int) -> Tensor | None:
        """Skip to the stream's piece of this number; gives that piece, or None where the stream ends before."""
        if hasattr(self._stream, "starting_at"):
            self._iterator = self._stream.starting_at(number)
        else:
            self._iterator = itertools.islice(self._iterator, number - self.read, None)
        self.read = number
        return next(self, None)
