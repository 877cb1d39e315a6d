"""Batches in random order from a stream of MLP inputs, through a buffer of bounded size.

Here: the buffer, the order in which its rows are served, when it is refilled, and a state from which another process
can continue. Not here: where activations come from (`activations.py`), what is done with a batch (`training.py`).
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

    A stream that fits the buffer is repeated in epochs, without end. A longer stream is mixed through the buffer, half
    of which is refilled at a time, and the batches end when the stream does.

    Batches are served in rounds. A round is an epoch, or the batches between two refills. The state consists of the
    buffer and the generator as they were when the round began, and of the number of rows served since. (A buffer that
    holds the whole stream is not stored but read again.)

    Args:
        mlp_inputs: [n_tokens, d_model], or a stream of such tensors. If a stream has `starting_at`, as `MLPInputs`
            does, continuing from a state does not compute again what was read before.

    Raises:
        ValueError: when the first batch is asked for: the stream holds no token.
    """

    # set when the first batch is asked for
    _buffer: Tensor
    _holds_whole_stream: bool
    _next_piece: Tensor | None  # the piece of the stream that follows the buffer's

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
            self._fill_from_beginning()
            self._begin_round()
        while self._served == len(self._order):
            if not self._holds_whole_stream:
                self._refill()
            self._begin_round()
        batch = self._order[self._served : self._served + self._batch_tokens]
        self._served += self._batch_tokens
        return self._buffer[batch]

    def first_digest(self) -> str:
        """Digest of the stream's first piece (of all tokens, if they come in one tensor); call it before the first
        batch is taken."""
        return content_digest({"first": self._pieces.first()})

    def state(self) -> State:
        """The state after the last batch that was served; call it between two batches."""
        values = {"served": self._served, "holds_all": self._holds_whole_stream}
        if self._holds_whole_stream:
            return State({"generator": self._generator_at_start}, values | {"content": self._content_digest})
        first_unread = self._pieces.n_read - (self._next_piece is not None)
        return State({"generator": self._generator_at_start, "buffer": self._buffer}, values | {"unread": first_unread})

    def restore(self, state: State) -> bool:
        """Continue after the state's last batch; call it before any batch is taken. Return False, and start from the
        beginning, if the stream is found to hold other tokens than when the state was taken."""
        values = state.values
        if values["holds_all"]:
            self._fill_from_beginning()
            same = self._holds_whole_stream and self._content_digest == values["content"]
        else:
            self._holds_whole_stream, same = False, True
            self._buffer = state.tensors["buffer"].to(self._pieces.first().device)
            self._next_piece = self._pieces.starting_at(values["unread"])
        if same:
            self._generator.set_state(state.tensors["generator"])
        self._begin_round()
        self._served = values["served"] if same else 0
        return same

    @cached_property
    def _content_digest(self) -> str:
        """Digest of a buffer that holds the whole stream."""
        return content_digest({"buffer": self._buffer})

    def _fill_from_beginning(self) -> None:
        self._pieces.first()  # raises ValueError if the stream is empty
        self._fill([])
        self._holds_whole_stream = self._next_piece is None

    def _begin_round(self) -> None:
        self._begun, self._generator_at_start = True, self._generator.get_state()
        n, batch_tokens = len(self._buffer), self._batch_tokens
        if self._holds_whole_stream:
            # a batch larger than the data holds some tokens twice
            n_permutations, n_held_back = -(-batch_tokens // n), 0
        else:
            n_permutations, n_held_back = 1, n // 2 if self._next_piece is not None else n % batch_tokens
        order = torch.cat([torch.randperm(n, generator=self._generator) for _ in range(n_permutations)])
        order = moved(order, self._buffer.device)
        end = n_held_back + (len(order) - n_held_back) // batch_tokens * batch_tokens  # only whole batches are served
        self._order, self._not_served = order[n_held_back:end], torch.cat([order[:n_held_back], order[end:]])
        self._served = 0

    def _refill(self) -> None:
        if self._next_piece is None:
            raise StopIteration
        self._fill([self._buffer[self._not_served], self._next_piece])

    def _fill(self, parts: list[Tensor]) -> None:
        """Fill the buffer with these rows and as much of the stream as fits, and read one piece ahead."""
        missing = self._buffer_tokens - sum(map(len, parts))
        while missing > 0 and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            missing -= len(piece)
        self._buffer = torch.cat(parts)
        self._next_piece = next(self._pieces, None)


class _Pieces(Iterator[Tensor]):
    """The pieces of a stream that hold at least one token. `n_read` counts the pieces read, empty ones included."""

    def __init__(self, stream: Iterable[Tensor]):
        self._stream = stream
        self._iterator = iter(stream)
        self.n_read = 0

    def __next__(self) -> Tensor:
        while True:
            piece = next(self._iterator)
            self.n_read += 1
            if len(piece):
                return piece

    def first(self) -> Tensor:
        """Return the next piece without consuming it. Raises ValueError if there is none."""
        piece = next(self, None)
        if piece is None:
            raise ValueError("the stream of MLP inputs is empty: there is nothing to train on")
        self._iterator = itertools.chain([piece], self._iterator)
        self.n_read -= 1
        return piece

    def starting_at(self, number: int) -> Tensor | None:
        """Skip to the piece with this number and return it; None if the stream ends before."""
        if hasattr(self._stream, "starting_at"):
            self._iterator = self._stream.starting_at(number)
        else:
            self._iterator = itertools.islice(self._iterator, number - self.n_read, None)
        self.n_read = number
        return next(self, None)
