"""How large the elements of the Jacobian are: histograms of |J| and of the mean |J| of each pair of latents.

Here: the counting, in the published tensor names. Not here: what is drawn of it (`figures/`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from jsae_core.jacobian import run_sandwich
from jsae_core.sae_pair import SAEPair

BIN_WIDTH = 0.001
PLAIN_BINS, NORMED_BINS = 1100, 1500  # [0, 1.1] and [0, 1.5]
NORMS = ("l2t", "l4t", "linft")
MEMORY_BYTES = 9 * 2**29  # 4.5 GiB: with what a batch takes, at most 6 GB
SUM_BYTES = 8
SCANNED_AT_ONCE = 2**21  # sums, 16 MiB


def jacobian_histogram(
    pair: SAEPair, stream: Iterable[Tensor], norm: str | None = None, memory_bytes: int = MEMORY_BYTES
) -> dict[str, Tensor]:
    """Histogram of |J| over the k x k elements of every token, and of mean |J| over all pairs of latents.

    Args:
        stream: MLP inputs, each [n_tokens, d_model]. Read once.
        norm: divide every J by the data's mean of a per-token norm: "l2t" root mean square, "l4t" mean(J^4)^(1/4),
            "linft" maximum. None: plain J.
        memory_bytes: budget for the pair's tables and the d_sae x d_sae sums of |J| (8 bytes each) together. Sums that
            do not fit are taken in blocks of output latents.

    Where `norm` is given or blocks are needed, the Jacobians are kept in a temporary file (4 k^2 + 8 k bytes a token in
    float32; TMPDIR says where), so that nothing is computed twice.

    Returns:
        `hist` int64 [1100] over [0, 1.1], or [1500] over [0, 1.5] if normed; `overflow` int64: elements above that.
        `mean_jac_hist` int64, same bins: for each (output, input) pair of latents the sum of |J| over tokens, divided
        by how often the output latent was active, all d_sae^2 pairs counted (0 where it never was);
        `mean_jac_overflow`. `count_jac` int64 [d_sae]: tokens in which the output latent was active.
        `bin_edges`, `bin_centers` float64; `n_tokens` int64; normed: `mean_norm` float64.

    Raises:
        ValueError: the stream is empty, or J is not finite, or the norm is unknown.
        OSError: the temporary file cannot be written.
    """
    return jacobian_histograms(pair, stream, [norm], memory_bytes)[norm]


def jacobian_histograms(
    pair: SAEPair,
    stream: Iterable[Tensor],
    norms: Sequence[str | None] = (None, *NORMS),
    memory_bytes: int = MEMORY_BYTES,
) -> dict[str | None, dict[str, Tensor]]:
    """`jacobian_histogram` for several norms at once: they share the Jacobians and the sums of |J|."""
    unknown = [norm for norm in norms if norm is not None and norm not in NORMS]
    if unknown:
        raise ValueError(f"unknown norm {unknown[0]!r}; expected None or one of {', '.join(NORMS)}")
    d_sae, device = pair.config.d_sae, pair.device
    wanted = [norm for norm in norms if norm is not None]
    sums = _MeanSums(d_sae, (memory_bytes - pair.tables_bytes) // (SUM_BYTES * d_sae), device)

    counts = _Bins(PLAIN_BINS, device)
    count_jac = torch.zeros(d_sae, dtype=torch.int64, device=device)
    norm_sums = dict.fromkeys(NORMS, 0.0)
    n_tokens = 0
    with _Kept() as kept:
        for magnitude, inputs, outputs in _sandwiches(pair, stream):
            n_tokens += len(magnitude)
            counts.add(magnitude)
            count_jac += torch.bincount(outputs.reshape(-1), minlength=d_sae)
            sums.add(magnitude, inputs, outputs)
            if wanted:
                for name, values in token_norms(magnitude).items():
                    norm_sums[name] += values.double().sum().item()
            if wanted or sums.stop < d_sae:
                kept.append(magnitude, inputs, outputs)
        if not n_tokens:
            raise ValueError("the stream of MLP inputs is empty: there is no token to measure")

        scales = {norm: 1.0 if norm is None else norm_sums[norm] / n_tokens for norm in norms}
        if any(scale == 0 for scale in scales.values()):
            raise ValueError("every element of the Jacobian is zero, so it cannot be divided by its norm")
        normed_counts = {norm: _Bins(NORMED_BINS, device) for norm in wanted}
        for magnitude, _, _ in kept.read(device) if wanted else ():
            for norm in wanted:
                normed_counts[norm].add(magnitude / scales[norm])

        mean_counts = {norm: _Bins(PLAIN_BINS if norm is None else NORMED_BINS, device) for norm in norms}
        while True:
            for means in sums.means(count_jac):
                for norm in norms:
                    mean_counts[norm].add(means / scales[norm])
            if sums.stop == d_sae:
                break
            sums.next_block()
            for jacobians in kept.read(device):
                sums.add(*jacobians)
    for bins in mean_counts.values():
        bins.add_zeros(d_sae**2)

    results = {}
    for norm in norms:
        bins = counts if norm is None else normed_counts[norm]
        edges = torch.arange(bins.n + 1, dtype=torch.float64) * BIN_WIDTH
        results[norm] = {
            "hist": bins.inside,
            "overflow": bins.above,
            "mean_jac_hist": mean_counts[norm].inside,
            "mean_jac_overflow": mean_counts[norm].above,
            "bin_edges": edges,
            "bin_centers": (edges[1:] + edges[:-1]) / 2,
            "count_jac": count_jac.cpu(),
            "n_tokens": torch.tensor(n_tokens),
        }
        if norm is not None:
            results[norm]["mean_norm"] = torch.tensor(scales[norm], dtype=torch.float64)
    return results


def token_norms(magnitude: Tensor) -> dict[str, Tensor]:
    """Per-token norms of |J| [n, k, k]: root mean square, fourth-power mean, maximum; each [n]."""
    squares = magnitude.square()
    return {
        "l2t": squares.mean(dim=(1, 2)).sqrt(),
        "l4t": squares.square().mean(dim=(1, 2)).pow(0.25),
        "linft": magnitude.amax(dim=(1, 2)),
    }


def share_above(histogram: Mapping[str, Tensor], threshold: float) -> float:
    """Share of the elements with |J| at or above a threshold, which must be an edge of the bins.

    Raises:
        ValueError: the threshold is no edge.
    """
    edge = round(threshold / BIN_WIDTH)
    if abs(edge * BIN_WIDTH - threshold) > 1e-9 or not 0 <= edge <= len(histogram["hist"]):
        raise ValueError(f"{threshold} is no edge of the bins, which are {BIN_WIDTH} wide")
    inside, overflow = histogram["hist"], int(histogram["overflow"])
    return (int(inside[edge:].sum()) + overflow) / (int(inside.sum()) + overflow)


def _sandwiches(pair: SAEPair, stream: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """|J| [n, k, k], input latents [n, k], output latents [n, k] of each batch. |J| is at least float32: bfloat16 has
    too few digits to number the bins."""
    for mlp_input in stream:
        if not len(mlp_input):
            continue
        sandwich = run_sandwich(pair, mlp_input)
        if not torch.isfinite(sandwich.jacobian.sum()):
            raise ValueError("the Jacobian holds NaN or infinite values; are the MLP inputs finite?")
        magnitude = sandwich.jacobian.abs_()
        magnitude = magnitude.to(torch.promote_types(magnitude.dtype, torch.float32))
        yield magnitude, sandwich.input_latents, sandwich.output_latents


class _Bins:
    """Counts of non-negative values in bins of BIN_WIDTH, and of those above."""

    def __init__(self, n: int, device: torch.device):
        self.n = n
        self._counts = torch.zeros(n + 1, dtype=torch.int64, device=device)

    def add(self, values: Tensor) -> None:
        index = (values.reshape(-1) / BIN_WIDTH).clamp_(max=self.n).long()
        self._counts += torch.bincount(index, minlength=self.n + 1)

    def add_zeros(self, n: int) -> None:
        """As many zeros as make the counts add up to n."""
        self._counts[0] += n - self._counts.sum()

    @property
    def inside(self) -> Tensor:
        return self._counts[:-1].cpu()

    @property
    def above(self) -> Tensor:
        return self._counts[-1].cpu().clone()


class _MeanSums:
    """Sums of |J| over tokens for a block of output latents, [start, stop), and every input latent."""

    def __init__(self, d_sae: int, rows: int, device: torch.device):
        self.d_sae, self.start, self.stop = d_sae, 0, min(d_sae, max(1, rows))
        if device.type == "cpu":
            # numpy asks for huge pages, which torch does not: in small ones most of the time goes into finding them
            self._sums = torch.from_numpy(np.zeros(self.stop * d_sae))
        else:
            dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
            self._sums = torch.zeros(self.stop * d_sae, dtype=dtype, device=device)

    def next_block(self) -> None:
        rows = self.stop - self.start
        self.start, self.stop = self.stop, min(self.d_sae, self.stop + rows)
        self._sums = self._sums[: (self.stop - self.start) * self.d_sae].zero_()

    def add(self, magnitude: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        """|J| [n, k_out, k_in] between latents [n, k_in] and [n, k_out]."""
        token, rank = ((outputs >= self.start) & (outputs < self.stop)).nonzero(as_tuple=True)
        place = (outputs[token, rank] - self.start)[:, None] * self.d_sae + inputs[token]
        self._sums.scatter_add_(0, place.view(-1), magnitude[token, rank].to(self._sums.dtype).view(-1))

    def means(self, count_jac: Tensor) -> Iterator[Tensor]:
        """The means of |J| that are not zero, some at a time. Most are zero: the rest is found faster than they are
        counted. The sums are used up."""
        counts = count_jac[self.start : self.stop].clamp(min=1)
        rows = max(1, SCANNED_AT_ONCE // self.d_sae)
        for sums, count in zip(self._sums.view(-1, self.d_sae).split(rows), counts.split(rows), strict=True):
            means = sums.div_(count[:, None])
            yield means[means > 0]


class _Kept:
    """Jacobians in a temporary file, to be read again without being computed again."""

    def __enter__(self) -> _Kept:
        self._file = tempfile.TemporaryFile(prefix="jacobians-")
        self._batches: list[tuple[tuple[tuple[int, ...], np.dtype], ...]] = []  # shape and dtype of what was appended
        return self

    def __exit__(self, *exc_info) -> None:
        self._file.close()

    def append(self, magnitude: Tensor, inputs: Tensor, outputs: Tensor) -> None:
        arrays = [tensor.cpu().numpy() for tensor in (magnitude, inputs.int(), outputs.int())]
        try:
            for array in arrays:
                array.tofile(self._file)
        except OSError as error:
            raise OSError(
                f"the Jacobians could not be kept in a temporary file in {tempfile.gettempdir()}, after "
                f"{self._file.tell() / 1e9:.1f} GB: {error}. Name a larger disk in TMPDIR, measure fewer tokens, or "
                "ask for no norm within a larger memory budget"
            ) from error
        self._batches.append(tuple((array.shape, array.dtype) for array in arrays))

    def read(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What was appended, batch by batch."""
        self._file.seek(0)
        for batch in self._batches:
            magnitude, inputs, outputs = (
                torch.from_numpy(np.fromfile(self._file, dtype, math.prod(shape)).reshape(shape)).to(device)
                for shape, dtype in batch
            )
            yield magnitude, inputs.long(), outputs.long()
