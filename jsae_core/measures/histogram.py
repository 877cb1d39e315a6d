"""How large the elements of the Jacobian are: histograms of |J| and of the mean |J| of each pair of latents.

Here: the counts, under the original's tensor names, and everything else that the same pass over the tokens gives. Not
here: means of pairs of latents (`kept_jacobians.py`), measures of a single token's Jacobian (`token_jacobians.py`),
figures (`figures/`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from jsae_core.checkpoints import Checkpoint, State
from jsae_core.jacobian import run_sandwich
from jsae_core.measures.conventions import under
from jsae_core.measures.kept_jacobians import KeptJacobians
from jsae_core.measures.moments import Estimate, NamedMoments
from jsae_core.measures.resuming import Computation, Maxima, Resumable, Sums
from jsae_core.measures.token_jacobians import (
    LOGARITHMIC_BINS,
    logarithmic_counts,
    logarithmic_edges,
    token_measures,
)
from jsae_core.memory import piece_factor
from jsae_core.sae_pair import SAEPair
from jsae_core.terms import NORMS

BIN_WIDTH = 0.001
PLAIN_BINS, NORMED_BINS = 1100, 1500  # [0, 1.1] and [0, 1.5]
MEMORY_BYTES = 2**29  # on a CPU
CACHED_ELEMENTS = 2**17  # half a MiB of float32
OFTEN = 20  # tokens; the mean |J| of an output latent that was active in fewer is too uncertain


class JacobianSizes(NamedTuple):
    """The measures of |J| from one pass over the tokens.

    Attributes:
        histograms: by norm, what `jacobian_histogram` returns.
        estimates: means over tokens of what `token_measures` gives, with their errors over documents.
        logarithmic: counts in logarithmic bins. `log_edges` float64; `log_hist` int64, the elements in each bin;
            `log_mean_hist`, the pairs of latents by their mean |J|, if the output latent was active in at least `often`
            (20) tokens. `n_often` of the d_sae output latents were; `share_often` of all activity is theirs.
    """

    histograms: dict[str | None, dict[str, Tensor]]
    estimates: dict[str, Estimate]
    logarithmic: dict[str, Tensor]


def jacobian_histogram(
    pair: SAEPair,
    stream: Iterable[Tensor],
    norm: str | None = None,
    memory_bytes: int | None = None,
    at: str = "input",
    checkpoint: Checkpoint | None = None,
    convention: str = "true",
) -> dict[str, Tensor]:
    """Histogram of |J| over the k x k elements of every token, and of mean |J| over all pairs of latents.

    Args:
        stream: MLP inputs, each [n_tokens, d_model]. Read once.
        norm: every J is divided by the mean over tokens of a per-token norm: "l2t" root mean square, "l4t"
            mean(J^4)^(1/4), "linft" maximum. None: plain J.
        memory_bytes: budget for the Jacobians, which are kept until all are computed (4 k^2 + 12 k bytes a token in
            float32). Those that do not fit go to a temporary file (TMPDIR says where), and mean |J| is computed in
            blocks of output latents. None: 512 MiB on a CPU, up to 8 GiB on a CUDA device that has the room.
        at: where J is evaluated: "input", at the MLP's true input; or "reconstruction", at the input SAE's
            reconstruction of it, as in the numbers that the paper's training runs logged.
        checkpoint: where the state is kept. If it holds a state of the same pair, stream and settings, measuring
            continues from there, with the result of an uninterrupted measurement (on a CPU, bit for bit). Remove it
            once the result is stored. It takes as much disk space as the kept Jacobians, besides the temporary file.
        convention: "true", or "published": on folded inputs and weights, as the paper's histograms of pairs on
            pretrained models (`conventions.under`, which needs a stream that is an `MLPInputs`).

    Returns:
        `hist` int64 [1100] over [0, 1.1], or [1500] over [0, 1.5] if a norm is given; `overflow` int64: elements above.
        `mean_jac_hist` int64, same bins: all d_sae^2 (output, input) pairs of latents by their mean |J|, the sum of |J|
        over tokens divided by the number of tokens in which the output latent was active (0 if it never was);
        `mean_jac_overflow`. `count_jac` int64 [d_sae]: tokens in which the output latent was active.
        `bin_edges`, `bin_centers` float64; `n_tokens` int64; if a norm is given, `mean_norm` float64.

    Raises:
        ValueError: the stream is empty, J is not finite, the norm or the convention is unknown, or the published
            convention is wanted of a stream that is not an `MLPInputs`.
        OSError: the temporary file cannot be written.
        OverflowError: on a CUDA device, for more than a thousand million tokens.
    """
    return jacobian_histograms(pair, stream, [norm], memory_bytes, at, checkpoint, convention)[norm]


def jacobian_histograms(
    pair: SAEPair,
    stream: Iterable[Tensor],
    norms: Sequence[str | None] = (None, *NORMS),
    memory_bytes: int | None = None,
    at: str = "input",
    checkpoint: Checkpoint | None = None,
    convention: str = "true",
) -> dict[str | None, dict[str, Tensor]]:
    """`jacobian_histogram` for several norms at once: they share the Jacobians and the sums of |J|."""
    return jacobian_sizes(pair, stream, norms, memory_bytes, at, checkpoint, convention).histograms


def jacobian_sizes(
    pair: SAEPair,
    stream: Iterable[Tensor],
    norms: Sequence[str | None] = (None, *NORMS),
    memory_bytes: int | None = None,
    at: str = "input",
    checkpoint: Checkpoint | None = None,
    convention: str = "true",
) -> JacobianSizes:
    """`jacobian_histograms`, and everything else that the same pass over the tokens gives. Raises as
    `jacobian_histogram` does."""
    unknown = [norm for norm in norms if norm is not None and norm not in NORMS]
    if unknown:
        raise ValueError(f"unknown norm {unknown[0]!r}; expected None or one of {', '.join(NORMS)}")
    pair, stream = under(convention, pair, stream)
    d_sae, device = pair.config.d_sae, pair.device
    memory_bytes = piece_factor(device) * MEMORY_BYTES if memory_bytes is None else memory_bytes
    wanted = [norm for norm in norms if norm is not None]

    work = Computation(checkpoint, "jacobian_sizes 1", pair, stream, {"norms": list(norms), "at": at}, shardable=True)
    counts, moments = _Bins(PLAIN_BINS, device), NamedMoments()
    log_counts, log_means = (
        Sums(bins=torch.zeros(LOGARITHMIC_BINS, dtype=torch.int64, device=device)) for _ in range(2)
    )
    largest = Maxima(largest=torch.zeros((), device=device))
    with KeptJacobians(d_sae, memory_bytes, device, again=bool(wanted)) as kept:
        sums: dict[str, Resumable] = {
            "counts": counts,
            "moments": moments,
            "log_counts": log_counts,
            "largest": largest,
            "kept": kept,
        }
        if (first := work.first(stream)) is not None:
            magnitude, _, _ = _sandwich(pair, first, at)
            moments.begin_at(_joined([token_measures(part) for part in _parts(magnitude)]))
            kept.begin_at(magnitude)
        for x, documents, _ in work.tokens(stream, sums):
            if not len(x):
                continue
            magnitude, inputs, outputs = _sandwich(pair, x, at)
            of_parts = []
            for part in _parts(magnitude):
                of_parts.append(token_measures(part))
                largest["largest"] = torch.maximum(largest["largest"], of_parts[-1]["norm_linft"].amax())
                if device.type == "cpu":  # on other devices this would wait
                    _check_finite(largest["largest"])
                counts.add(part)
                log_counts["bins"] += logarithmic_counts(part)
            moments.add(_joined(of_parts), documents)
            kept.append(magnitude, inputs, outputs)
        work.merge_shards()
        n_tokens = moments.n_tokens
        if not n_tokens:
            raise ValueError("the stream of MLP inputs is empty: there is no token to measure")
        _check_finite(largest["largest"])

        estimates = moments.estimates()
        scales: dict[str | None, float] = {
            norm: 1.0 if norm is None else estimates[f"norm_{norm}"].value for norm in norms
        }
        if any(scale == 0 for scale in scales.values()):
            raise ValueError("every element of the Jacobian is zero, so it cannot be divided by its norm")
        normed_counts = {str(norm): _Bins(NORMED_BINS, device) for norm in wanted}
        batches = range(kept.n_batches if wanted else 0)
        for number in work.steps(batches, normed_counts, "batches of Jacobians", len(batches)):
            for name, bins in normed_counts.items():
                bins.add(kept.magnitude(number) / scales[name])

        mean_counts = {norm: _Bins(PLAIN_BINS if norm is None else NORMED_BINS, device) for norm in norms}
        sums = {"log_means": log_means, **{f"mean_{norm}": bins for norm, bins in mean_counts.items()}}
        for block in work.steps(kept.blocks(), sums, "output latents", d_sae, len):
            for means, occurrences in kept.pair_means(block, float(largest["largest"])):
                for norm in norms:
                    mean_counts[norm].add(means / scales[norm])
                log_means["bins"] += logarithmic_counts(torch.where(occurrences >= OFTEN, means, 0))
    for bins in mean_counts.values():
        bins.add_zeros(d_sae**2)
    often = kept.counts >= OFTEN
    # zeros for the pairs that never occurred, less those counted above for output latents that are seldom active
    log_means["bins"][0] += often.sum() * d_sae - log_means["bins"].sum()

    histograms = {
        norm: _histogram(counts if norm is None else normed_counts[norm], mean_counts[norm], kept.counts, n_tokens)
        | ({} if norm is None else {"mean_norm": torch.tensor(scales[norm], dtype=torch.float64)})
        for norm in norms
    }
    logarithmic = {
        "log_edges": logarithmic_edges(),
        "log_hist": log_counts["bins"].cpu(),
        "log_mean_hist": log_means["bins"].cpu(),
        "often": torch.tensor(OFTEN),
        "n_often": often.sum().cpu(),
        "share_often": (kept.counts[often].sum().double() / kept.counts.sum()).cpu(),
    }
    return JacobianSizes(histograms, estimates, logarithmic)


def _histogram(elements: _Bins, means: _Bins, occurrences: Tensor, n_tokens: int) -> dict[str, Tensor]:
    """The tensors of one histogram, under the names that `jacobian_histogram` gives; `occurrences` [d_sae] are the
    tokens in which each output latent was active."""
    edges = torch.arange(elements.n + 1, dtype=torch.float64) * BIN_WIDTH
    return {
        "hist": elements.inside,
        "overflow": elements.above,
        "mean_jac_hist": means.inside,
        "mean_jac_overflow": means.above,
        "bin_edges": edges,
        "bin_centers": (edges[1:] + edges[:-1]) / 2,
        "count_jac": occurrences.cpu(),
        "n_tokens": torch.tensor(n_tokens),
    }


@torch.no_grad()
def jacobian_measures(
    pair: SAEPair,
    stream: Iterable[Tensor],
    at: str = "input",
    checkpoint: Checkpoint | None = None,
    convention: str = "true",
) -> dict[str, Estimate]:
    """The `estimates` of `jacobian_sizes` alone. Raises ValueError as it does."""
    pair, stream = under(convention, pair, stream)
    work = Computation(checkpoint, "jacobian_measures 1", pair, stream, {"at": at}, shardable=True)
    moments = NamedMoments()

    def measured(x: Tensor) -> dict[str, Tensor]:
        magnitude, _, _ = _sandwich(pair, x, at)
        return _joined([token_measures(part) for part in _parts(magnitude)])

    if (first := work.first(stream)) is not None:
        moments.begin_at(measured(first))
    for x, documents, _ in work.tokens(stream, {"moments": moments}):
        if len(x):
            moments.add(measured(x), documents)
    work.merge_shards()
    if not moments.n_tokens:
        raise ValueError("the stream of MLP inputs is empty: there is no token to measure")
    return moments.estimates()


def share_above(histogram: Mapping[str, Tensor], threshold: float) -> float:
    """The share of elements with |J| at or above a threshold, which must be an edge of the bins.

    Raises:
        ValueError: the threshold is no edge.
    """
    edge = round(threshold / BIN_WIDTH)
    if abs(edge * BIN_WIDTH - threshold) > 1e-9 or not 0 <= edge <= len(histogram["hist"]):
        raise ValueError(f"{threshold} is no edge of the bins, which are {BIN_WIDTH} wide")
    inside, overflow = histogram["hist"], int(histogram["overflow"])
    return (int(inside[edge:].sum()) + overflow) / (int(inside.sum()) + overflow)


def _sandwich(pair: SAEPair, x: Tensor, at: str) -> tuple[Tensor, Tensor, Tensor]:
    """|J| [n, k, k], input latents [n, k] and output latents [n, k] of a batch. |J| is in float32 or wider, since
    bfloat16 has too few digits to number the bins."""
    sandwich = run_sandwich(pair, x, at)
    magnitude = sandwich.jacobian.abs_()
    magnitude = magnitude.to(torch.promote_types(magnitude.dtype, torch.float32))
    return magnitude, sandwich.input_latents, sandwich.output_latents


def _parts(magnitude: Tensor) -> Sequence[Tensor]:
    """|J| [n, k, k] in parts small enough for a CPU's cache; on other devices in one part."""
    if magnitude.device.type != "cpu":
        return [magnitude]
    return magnitude.split(max(1, CACHED_ELEMENTS // magnitude[0].numel()))


def _joined(of_parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    if len(of_parts) == 1:
        return dict(of_parts[0])
    return {name: torch.cat([part[name] for part in of_parts]) for name in of_parts[0]}


def _check_finite(largest: Tensor) -> None:
    """Raise ValueError unless the largest |J|, which is NaN if any is, is finite."""
    if not torch.isfinite(largest):
        raise ValueError("the Jacobian holds NaN or infinite values; are the MLP inputs finite?")


class _Bins:
    """Counts of non-negative values in bins of BIN_WIDTH, and of those above."""

    def __init__(self, n: int, device: torch.device):
        self.n = n
        self._counts = torch.zeros(n + 1, dtype=torch.int64, device=device)

    def add(self, values: Tensor) -> None:
        numbers = (values.reshape(-1) / BIN_WIDTH).clamp_(max=self.n)
        if values.device.type == "cuda":  # bincount would wait for the device, and takes three times as long
            counts = torch.histc(numbers.int(), self.n + 1, 0, self.n + 1)
        else:
            counts = torch.bincount(numbers.long(), minlength=self.n + 1)
        self._counts += counts

    def state(self) -> State:
        return State({"counts": self._counts})

    def take_in(self, state: State) -> None:
        self._counts += state.tensors["counts"]

    def add_zeros(self, n: int) -> None:
        """Add as many zeros as make the counts add up to n."""
        self._counts[0] += n - self._counts.sum()

    @property
    def inside(self) -> Tensor:
        return self._counts[:-1].cpu()

    @property
    def above(self) -> Tensor:
        return self._counts[-1].cpu().clone()
