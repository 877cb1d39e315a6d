"""Which input latents feed an output latent: its strongest connections, the tokens that show them best, and the
functions that they are.

Here: sums over tokens for each (output, input) pair of latents, and the strongest of them. Not here: on what the
latents fire (`contexts.py`), how sparse the Jacobians are altogether (`histogram.py`).

In a token, an input latent i with activation s_i contributes J_oi s_i to the output latent o, to first order: its
attribution. Latents are active in a token where they are in the TopK.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jsae_core.checkpoints import Checkpoint
from jsae_core.jacobian import run_sandwich
from jsae_core.measures.latent_rows import LatentRows
from jsae_core.measures.linearity import function_curves
from jsae_core.measures.resuming import Computation, Frames
from jsae_core.sae_pair import SAEPair
from jsae_core.tensor_files import content_digest

SUMS_AT_ONCE = 2**21  # (output, input) pairs of latents, each with the eight sums below: 128 MiB
ROWS_AT_ONCE = 2**15  # of k elements
COLUMNS = [
    "output_latent",
    "input_latent",
    "n_both",
    "n_output",
    "mean_jacobian",
    "sd_jacobian",
    "mean_abs_jacobian",
    "mean_attribution",
    "share",
    "sign_agreement",
]
EXAMPLES = ["token", "jacobian", "input_activation", "output_activation"]


def latent_connections(
    pair: SAEPair,
    stream: Iterable[Tensor],
    n_strongest: int = 50,
    least_active: int = 20,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """The strongest input latents of each output latent.

    Args:
        stream: MLP inputs, each [n_tokens, d_model]. Read once.
        n_strongest: how many input latents are returned for an output latent, those with the largest sum of |J s| over
            tokens.
        least_active: a connection is left out if its two latents were active together in fewer tokens.
        checkpoint: as for `jacobian_histogram`.

    Returns:
        A row for each connection, those of an output latent together, the strongest first: `output_latent`,
        `input_latent`; `n_both`, the number of tokens in which both were active; `n_output`, that in which the output
        latent was. Over the n_both tokens: `mean_jacobian`, `sd_jacobian` (standard deviation, divided by n_both),
        `mean_abs_jacobian`, `mean_attribution` (of J s), `sign_agreement` (share of tokens in which J has the sign of
        its mean). `share`: this connection's share of the sum of |J s| over all tokens and all input latents of this
        output latent.

    Raises:
        ValueError: the stream is empty or J is not finite.
        OSError: the temporary file cannot be written: it takes about 4 k^2 + 20 k bytes a token in float32.
    """
    return strongest_connections(pair, stream, n_strongest, least_active, 0, checkpoint)[COLUMNS]


def strongest_connections(
    pair: SAEPair,
    stream: Iterable[Tensor],
    n_strongest: int = 50,
    least_active: int = 20,
    n_examples: int = 5,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """`latent_connections`, with the tokens in which each connection contributes most by |J s|, at most `n_examples` of
    them: lists `token` (places in the stream), `jacobian`, `input_activation`, `output_activation`."""
    d_sae = pair.config.d_sae
    settings = {"n_strongest": n_strongest, "least_active": least_active, "n_examples": n_examples}
    work = Computation(checkpoint, "strongest_connections 1", pair, stream, settings, shardable=True)
    with LatentRows(d_sae) as rows:
        _keep(work, rows, pair, stream)
        work.merge_shards()
        if not rows.counts.any():
            raise ValueError("the stream of MLP inputs is empty: there is no token to measure")
        parts = Frames()
        blocks = rows.blocks(most_rows=2**62, most_latents=max(1, SUMS_AT_ONCE // d_sae))
        for latents in work.steps(blocks, {"parts": parts}, "output latents", d_sae, len):
            sums = _sums(_elements(rows, latents, d_sae), len(latents) * d_sae)
            connections = _strongest(sums, latents, rows.counts, d_sae, n_strongest, least_active)
            if n_examples:
                connections = _with_examples(connections, _elements(rows, latents, d_sae), latents, d_sae, n_examples)
            parts.append(connections)
    return pd.concat(parts, ignore_index=True)


def connection_curves(
    pair: SAEPair,
    stream: Iterable[Tensor],
    connections: pd.DataFrame,
    n_strongest: int,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """The output latent as a function of the input latent (`function_curves`) at the token in which the connection
    contributes most, for the first `n_strongest` connections of each output latent.

    Args:
        stream: the one that the connections were found in, read again.
        connections: with examples, as `strongest_connections` gives them.
        checkpoint: as for `jacobian_histogram`.

    Returns:
        Two columns, in the order of the connections: `curve_end`, the largest activation of the input latent, and
        `curve`, the output latent's activations at 100 activations of the input latent evenly spaced from 0 to it;
        both are missing for the other connections.
    """
    wanted = connections[connections.groupby("output_latent").cumcount() < n_strongest]
    wanted = wanted.assign(token=wanted["token"].str[0]).sort_values("token", kind="stable")
    asked = {name: torch.tensor(wanted[name].to_numpy(np.int64)) for name in ("output_latent", "input_latent", "token")}
    work = Computation(checkpoint, "connection_curves 1", pair, stream, {"connections": content_digest(asked)})
    found = Frames()
    for x, _, start in work.tokens(stream, {"found": found}):
        here = wanted[wanted["token"].searchsorted(start) : wanted["token"].searchsorted(start + len(x))]
        if len(here):
            token = torch.tensor((here["token"] - start).tolist(), device=x.device)
            x_there = x[token]
            sandwich = run_sandwich(pair, x_there)
            ranks = [
                (active == torch.tensor(here[name].tolist(), device=x.device)[:, None]).int().argmax(dim=1)
                for name, active in (
                    ("output_latent", sandwich.output_latents),
                    ("input_latent", sandwich.input_latents),
                )
            ]
            input_values, output_values = function_curves(pair, x_there, *ranks)
            values = {
                "curve_end": input_values[:, -1].float().cpu().numpy(),
                "curve": list(output_values.float().cpu().numpy()),
            }
            found.append(pd.DataFrame(values, here.index))
    ends = pd.Series(np.nan, connections.index)
    curves = pd.Series(None, connections.index, dtype=object)
    for part in found:
        ends[part.index] = part["curve_end"]
        curves[part.index] = part["curve"].tolist()
    return pd.DataFrame({"curve_end": ends, "curve": curves})


def _keep(work: Computation, rows: LatentRows, pair: SAEPair, stream: Iterable[Tensor]) -> None:
    """Keep the Jacobians of a stream, row by row."""
    for x, _, start in work.tokens(stream, {"rows": rows}):
        if not len(x):
            continue
        sandwich = run_sandwich(pair, x)
        if not sandwich.jacobian.isfinite().all():
            raise ValueError("the Jacobian holds NaN or infinite values; are the MLP inputs finite?")
        rows.add(
            sandwich.output_latents,
            {"jacobian": sandwich.jacobian, "output_activation": sandwich.output_activations},
            {
                "token": torch.arange(start, start + len(x)),
                "input_latent": sandwich.input_latents.int(),
                "input_activation": sandwich.input_activations,
            },
        )


def _elements(rows: LatentRows, latents: range, d_sae: int) -> Iterator[dict[str, np.ndarray]]:
    """The elements of the Jacobians whose output latents are in a range, flat: `pair`, the number of the element's pair
    of latents; `jacobian`, `attribution`, `input_activation`; `row`, its row in `token` and `output_activation`."""
    for batch in rows.read(latents):
        for start in range(0, len(batch["latent"]), ROWS_AT_ONCE):
            part = {name: column[start : start + ROWS_AT_ONCE] for name, column in batch.items()}
            jacobian, s = part["jacobian"].astype(np.float64), part["input_activation"].astype(np.float64)
            place = (part["latent"].astype(np.int64) - latents.start)[:, None] * d_sae + part["input_latent"]
            yield {
                "pair": place.reshape(-1),
                "jacobian": jacobian.reshape(-1),
                "attribution": (jacobian * s).reshape(-1),
                "input_activation": s.reshape(-1),
                "row": np.arange(len(place)).repeat(place.shape[1]),
                "token": part["token"],
                "output_activation": part["output_activation"],
            }


def _sums(elements: Iterable[Mapping[str, np.ndarray]], n_pairs: int) -> dict[str, np.ndarray]:
    """Sums over tokens for each pair of latents, [n_pairs] each."""
    names = ("n", "jacobian", "squares", "magnitude", "attribution", "absolute", "positive", "negative")
    sums = {name: np.zeros(n_pairs) for name in names}
    for part in elements:
        J, a = part["jacobian"], part["attribution"]
        terms = (None, J, J**2, np.abs(J), a, np.abs(a), J > 0, J < 0)
        for name, term in zip(names, terms, strict=True):
            sums[name] += np.bincount(part["pair"], term, minlength=n_pairs)
    return sums


def _strongest(
    sums: Mapping[str, np.ndarray],
    latents: range,
    counts: np.ndarray,
    d_sae: int,
    n_strongest: int,
    least_active: int,
) -> pd.DataFrame:
    """The connections of a range of output latents."""
    total = sums["absolute"].reshape(-1, d_sae).sum(axis=1)
    pairs = np.flatnonzero(sums["n"] >= max(1, least_active))
    output = pairs // d_sae
    # of equally strong connections, the one with the lower input latent comes first
    pairs = pairs[np.lexsort((pairs, -sums["absolute"][pairs], output))]
    output = pairs // d_sae
    pairs = pairs[pd.Series(output).groupby(output).cumcount().to_numpy() < n_strongest]
    output, n = pairs // d_sae, sums["n"][pairs]
    mean = sums["jacobian"][pairs] / n
    agreeing = np.where(mean > 0, sums["positive"][pairs], np.where(mean < 0, sums["negative"][pairs], 0))
    with np.errstate(invalid="ignore"):
        share = np.nan_to_num(sums["absolute"][pairs] / total[output])
    return pd.DataFrame(
        {
            "output_latent": output + latents.start,
            "input_latent": pairs % d_sae,
            "n_both": n.astype(np.int64),
            "n_output": counts[output + latents.start],
            "mean_jacobian": mean,
            "sd_jacobian": np.sqrt(np.maximum(sums["squares"][pairs] / n - mean**2, 0)),
            "mean_abs_jacobian": sums["magnitude"][pairs] / n,
            "mean_attribution": sums["attribution"][pairs] / n,
            "share": share,
            "sign_agreement": agreeing / n,
        }
    )


def _with_examples(
    connections: pd.DataFrame,
    elements: Iterable[Mapping[str, np.ndarray]],
    latents: range,
    d_sae: int,
    n_examples: int,
) -> pd.DataFrame:
    """The connections with the elements of each that contribute most."""
    pairs = (connections["output_latent"] - latents.start) * d_sae + connections["input_latent"]
    number = np.full(len(latents) * d_sae, -1)
    number[pairs] = np.arange(len(pairs))
    best = pd.DataFrame({name: [] for name in ("connection", *EXAMPLES)})
    least = np.zeros(len(pairs))  # |J s| that an element needs to be among the examples of its connection
    for part in elements:
        connection = number[part["pair"]]
        chosen = np.flatnonzero(connection >= 0)
        chosen = chosen[np.abs(part["attribution"][chosen]) >= least[connection[chosen]]]
        row = part["row"][chosen]
        found = pd.DataFrame(
            {
                "connection": connection[chosen],
                "token": part["token"][row],
                "jacobian": part["jacobian"][chosen],
                "input_activation": part["input_activation"][chosen],
                "output_activation": part["output_activation"][row],
            }
        )
        best = _largest(pd.concat([best, found]) if len(best) else found, n_examples)
        full = best[best.groupby("connection").cumcount() == n_examples - 1]
        least[full["connection"].to_numpy(np.int64)] = np.abs(full["jacobian"] * full["input_activation"])
    best["token"] = best["token"].astype(np.int64)
    best["connection"] = best["connection"].astype(np.int64)
    bounds = np.searchsorted(best["connection"], np.arange(len(connections) + 1)).tolist()
    columns = {}
    for name in EXAMPLES:
        values = best[name].to_numpy(np.int64 if name == "token" else np.float32)
        columns[name] = pd.Series([values[start:stop] for start, stop in pairwise(bounds)], connections.index, object)
    return connections.assign(**columns)


def _largest(found: pd.DataFrame, n: int) -> pd.DataFrame:
    """The n rows of each connection with the largest |J s|, the first one first among equal ones."""
    connection = found["connection"].to_numpy()
    order = np.lexsort((-np.abs(found["jacobian"] * found["input_activation"]), connection))
    in_order = connection[order]
    # a row is one of the first n of its connection if the row n places before it is of another
    return found.iloc[np.concatenate([order[:n], order[n:][in_order[n:] != in_order[:-n]]])]
