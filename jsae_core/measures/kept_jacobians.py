"""Jacobians of many tokens, kept so that they are computed once, and the mean |J| of each pair of latents.

Here: where they are kept, and the means. Not here: which Jacobians are kept and what is counted in them
(`histogram.py`); the means if a device has room for a sum for each pair of latents (`pair_sums.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jsae_core.checkpoints import LazyTensors, State
from jsae_core.measures.array_file import ArrayFile, InFile
from jsae_core.measures.pair_sums import PairSums, sums_fit
from jsae_core.memory import moved, piece_factor

SUMS_AT_ONCE = 2**20  # 8 MiB of sums and 4 MiB of numbers, which stay in a CPU's cache
ROWS_AT_ONCE = 2**15  # of k elements: what is made of them takes tens of MiB


class _Places(NamedTuple):
    """The latents and tokens of the rows of n tokens' Jacobians. The rows are ordered by output latent, so that those
    of a range of output latents lie together."""

    latents: Tensor | InFile  # [n k_out]: the row's output latent
    tokens: Tensor | InFile  # [n k_out]: the row's token
    inputs: Tensor | InFile  # [n, k_in]: the token's input latents


class KeptJacobians:
    """|J| of batches of tokens, and the latents of its rows and columns: in memory while they fit, then in a temporary
    file.

    Args:
        memory_bytes: the budget for what is kept in memory together with what `pair_means` needs; the rows of a single
            output latent may exceed it.
        again: whether `magnitude` will be called for every batch.

    Attributes:
        counts: int64 [d_sae], the tokens in which each output latent was active.
    """

    def __init__(self, d_sae: int, memory_bytes: int, device: torch.device, again: bool = True):
        # one part for what is kept, three for the rows of a block of output latents: found, put together, in order
        self._room = self._block_bytes = memory_bytes // 4
        self._device = device
        self._sums = PairSums(d_sae, device) if sums_fit(d_sae, device) else None
        self._again = again
        self._rows_kept: list[Tensor | InFile] = []  # |J| [n k_out, k_in] of a batch
        self._places: list[_Places] = []  # of the same batches, where there are no sums
        self.counts = torch.zeros(d_sae, dtype=torch.int64, device=device)

    def __enter__(self) -> KeptJacobians:
        self._file = ArrayFile("the Jacobians")
        return self

    def __exit__(self, *exc_info) -> None:
        self._rows_kept.clear()
        self._places.clear()
        self._sums = None
        self._file.close()

    def begin_at(self, magnitude: Tensor) -> None:
        """Treat these |J| [n, k_out, k_in], which another shard keeps, as the first ones."""
        if self._sums is not None:
            self._sums.begin_at(magnitude)

    def append(self, magnitude: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        """Keep |J| [n, k_out, k_in] between input latents [n, k_in] and output latents [n, k_out].

        Raises:
            OSError: the temporary file cannot be written.
        """
        self.counts.scatter_add_(0, outputs.reshape(-1), torch.ones_like(outputs).reshape(-1))
        rows = magnitude.flatten(0, 1)
        if self._sums is not None:
            self._sums.add(magnitude, inputs, outputs)
            if self._again:
                self._keep(rows)
            return
        latents, order = outputs.int().view(-1).sort(stable=True)
        self._keep(rows.index_select(0, order), latents, (order // outputs.shape[1]).int(), inputs.int())

    @property
    def n_batches(self) -> int:
        """The number of batches."""
        return len(self._rows_kept)

    def magnitude(self, number: int) -> Tensor:
        """The rows of |J| of a batch, by its number: [n k_out, k_in]."""
        return self._read(self._rows_kept[number])

    def state(self) -> State:
        lists: dict[str, Sequence[Tensor | InFile]] = {"rows": self._rows_kept}
        lists |= {name: [getattr(places, name) for places in self._places] for name in _Places._fields}
        sums = {} if self._sums is None else {"sums": self._sums.state()}
        return State.joined(
            {
                "kept": State(
                    {"counts": self.counts}, {}, {name: LazyTensors(of, self._read) for name, of in lists.items()}
                )
            }
            | sums
        )

    def take_in(self, state: State) -> None:
        kept, sums = state.part("kept"), state.part("sums")
        if not kept.tensors["counts"].any():
            return
        # whether there is room for sums may have changed since: a measure that began without sums goes on without them,
        # and if one shard has sums, all are turned into sums
        is_first = not self.counts.any()
        self.counts += kept.tensors["counts"]
        if is_first:
            self._sums = PairSums(len(self.counts), self._device) if sums.tensors else None
        elif sums.tensors and self._sums is None:
            self._sums = PairSums(len(self.counts), self._device)
            for kept_rows, kept_places in zip(self._rows_kept, self._places, strict=True):
                self._add_to_sums(self._read(kept_rows), *map(self._read, kept_places))
            self._places.clear()
        if sums.tensors and self._sums is not None:
            self._sums.take_in(sums)
        columns = [kept.lists.get(name, []) for name in ("rows", *_Places._fields)]
        for tensors in zip(columns[0], strict=True) if sums.tensors else zip(*columns, strict=True):
            rows, *places = (tensor.to(self._device) for tensor in tensors)
            if places and self._sums is not None:
                self._add_to_sums(rows, *places)
                places = []
            self._keep(rows, *places)

    def _add_to_sums(self, rows: Tensor, latents: Tensor, tokens: Tensor, inputs: Tensor) -> None:
        """Rows of |J| with their `_Places`."""
        assert self._sums is not None
        self._sums.add(rows[:, None], inputs.index_select(0, tokens).long(), latents[:, None].long())

    def blocks(self) -> Sequence[range]:
        """Ranges of output latents whose means are taken together."""
        d_sae = len(self.counts)
        if self._sums is not None:
            return [range(d_sae)]
        most = max(piece_factor(self._device) * ROWS_AT_ONCE, self._block_bytes // self._row_bytes())
        return list(_ranges(self.counts.tolist(), most, d_sae))

    def pair_means(self, block: range, largest: float) -> Iterator[tuple[Tensor, Tensor]]:
        """The mean |J| of each pair of latents whose output latent is in a block: the sum of |J| over tokens, divided
        by the number of tokens in which the output latent was active. Yields the means of some pairs at a time, in no
        particular order, each with that number of tokens in a tensor that broadcasts against it. Pairs that never
        occurred may be among them as zeros. `largest` is the largest |J| of all.

        Raises:
            OverflowError: as `PairSums.means` does.
        """
        yield from self._means_of_rows(block) if self._sums is None else self._sums.means(self.counts, largest)

    def _means_of_rows(self, block: range) -> Iterator[tuple[Tensor, Tensor]]:
        """`pair_means` computed from the kept rows.

        The rows of all Jacobians are grouped by output latent. So a few output latents are summed at a time, in memory
        that stays in the cache, and only pairs that occurred are looked at: a d_sae x d_sae matrix costs the same
        however few tokens there are, and takes 34 GB at d_sae 65536.
        """
        d_sae = len(self.counts)
        factor = piece_factor(self._device)
        latents_at_once, rows_at_once = max(1, factor * SUMS_AT_ONCE // d_sae), factor * ROWS_AT_ONCE
        dtype = torch.float32 if self._device.type == "mps" else torch.float64  # MPS has no float64
        sums = torch.zeros(latents_at_once * d_sae, dtype=dtype, device=self._device)
        last = torch.empty(len(sums), dtype=torch.int32, device=self._device)
        magnitude, inputs, outputs = self._rows(block.start, block.stop)
        counts = self.counts[block.start : block.stop].tolist()
        n_done = 0
        for latents in _ranges(counts, rows_at_once, latents_at_once):
            rows = slice(n_done, n_done := n_done + sum(counts[latents.start : latents.stop]))
            terms = magnitude[rows].to(dtype).div_(self.counts[outputs[rows], None])
            places = ((outputs[rows, None] - (block.start + latents.start)) * d_sae + inputs[rows]).view(-1)
            sums.scatter_add_(0, places, terms.view(-1))
            # a pair that occurs several times is taken once: where its place was written last
            number = torch.arange(len(places), dtype=last.dtype, device=self._device)
            is_last = last.scatter_(0, places, number).index_select(0, places) == number
            taken = places[is_last]
            outputs_taken = taken.div(d_sae, rounding_mode="floor").add_(block.start + latents.start)
            yield sums.index_select(0, taken), self.counts.index_select(0, outputs_taken)
            sums.index_fill_(0, places, 0)

    def _row_bytes(self) -> int:
        rows, inputs = self._rows_kept[0], self._places[0].inputs
        return self._read(rows, 0, 1).nbytes + self._read(inputs, 0, 1).nbytes + 8 + 8  # output latent, and its order

    def _rows(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of |J| of the output latents in [start, stop), in the order of these: |J| [n, k_in], input latents
        [n, k_in], output latent [n]."""
        found = []
        for rows, places in zip(self._rows_kept, self._places, strict=True):
            latents = self._read(places.latents)
            first, end = torch.searchsorted(latents, latents.new_tensor([start, stop])).tolist()
            inputs = self._read(places.inputs).index_select(0, self._read(places.tokens, first, end))
            found.append((self._read(rows, first, end), inputs, latents[first:end].long()))
        magnitude, inputs, outputs = (torch.cat(tensors) for tensors in zip(*found, strict=True))
        outputs, order = outputs.sort(stable=True)
        return magnitude.index_select(0, order), inputs.index_select(0, order), outputs

    def _keep(self, rows: Tensor, *places: Tensor) -> None:
        """Keep the rows of a batch, and their places if there are any: in memory while there is room, then in the
        file."""
        self._room -= rows.nbytes + sum(tensor.nbytes for tensor in places)
        kept_rows, *kept = (tensor if self._room >= 0 else self._file.write(tensor) for tensor in (rows, *places))
        self._rows_kept.append(kept_rows)
        if places:
            self._places.append(_Places(*kept))

    def _read(self, kept: Tensor | InFile, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of what was kept."""
        if isinstance(kept, Tensor):
            return kept[start:stop]
        return moved(torch.from_numpy(self._file.read(kept, start, stop)), self._device)


def _ranges(counts: Sequence[int], most: int, longest: int) -> Iterator[range]:
    """Successive ranges of latents. Each has at most `longest` latents, and counts that add up to at most `most` unless
    it is a single latent."""
    start = total = 0
    for latent, count in enumerate(counts):
        if latent > start and (total + count > most or latent - start == longest):
            yield range(start, latent)
            start, total = latent, 0
        total += count
    yield range(start, len(counts))
