"""On what latents fire: how often, in which contexts, on which tokens, and which tokens output latents promote.

Here: the contexts of every latent of both SAEs. Not here: which input latents feed an output latent
(`connections.py`), documents and tokens (`text.py`).

A latent fires at a token where its activation, after TopK and ReLU, is above zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jsae_core.activations import MLPInputs
from jsae_core.checkpoints import Checkpoint
from jsae_core.language_model import LanguageModel
from jsae_core.measures.latent_rows import LatentRows
from jsae_core.measures.resuming import Computation, Frames
from jsae_core.sae import active_latents, inputs_at_once
from jsae_core.sae_pair import SAEPair

SIDES = ("input", "output")
EACH_SIDE = 8  # tokens of a context before and after the one that it is about
QUANTILES = np.arange(0.05, 1, 0.1)
N_TOKENS = 10  # top tokens, and tokens raised and lowered
ROWS_AT_ONCE = 2**21  # firings; with what is computed from them they take about 200 MiB
LOGITS_AT_ONCE = 2**24
COLUMNS = [
    "side",
    "latent",
    "kind",
    "rank",
    "quantile",
    "document",
    "position",
    "activation",
    "tokens",
    "activations",
    "place",
    "density",
    "top_tokens",
    "top_token_shares",
    "raised_tokens",
    "raised_logits",
    "lowered_tokens",
    "lowered_logits",
]


def latent_contexts(
    pair: SAEPair,
    lm: LanguageModel,
    documents: Sequence[Tensor],
    layer: int,
    n_top: int = 20,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """What every latent of both SAEs fires on.

    Args:
        documents: 1-d token tensors, BOS first. The model reads them once, nothing is measured at BOS.
        n_top: how many contexts with the largest activations are kept of each latent, at most one from a document.
        checkpoint: as for `jacobian_histogram`.

    Returns:
        Rows of three kinds (`kind`), those of a latent (`side`, "input" or "output", and `latent`) together.

        `latent`, one row for each latent, whether it fires or not: `density` (share of the tokens at which it fires);
        `top_tokens`, the tokens with the largest shares (`top_token_shares`) of the sum of its activations; for output
        latents `raised_tokens` and `lowered_tokens`, the tokens whose logits its decoder row d moves most, and by how
        much (`raised_logits`, `lowered_logits`). These are half the difference between the logits of the last residual
        streams +d and -d, so that the biases of the final norm drop out.

        `top`, in the order of `rank` from 0 on: the contexts of its largest activations, each the largest of its
        document; of equal ones the earlier token comes first. `quantile`: the contexts at the quantiles .05, .15, ...
        .95 of its activations above zero (column `quantile`), no firing twice.

        A context is about the token at `position` of `document` (BOS is at 0), where the latent has this `activation`:
        `tokens`, the texts of up to 8 tokens before it, of the token and of up to 8 after it; `activations` of the
        latent at each of them; `place`, the place of the token among them.

    Raises:
        ValueError: there is no token to measure, or activations are not finite.
        OSError: a temporary file cannot be written: they take about 32 k bytes a token.
    """
    return stream_contexts(pair, MLPInputs(lm, documents, layer), n_top, checkpoint)


@torch.no_grad()
def stream_contexts(
    pair: SAEPair, stream: MLPInputs, n_top: int = 20, checkpoint: Checkpoint | None = None
) -> pd.DataFrame:
    """`latent_contexts` for a stream of MLP inputs, which other measures may share."""
    lm, d_sae = stream.language_model, pair.config.d_sae
    text = _Text(lm, list(stream.documents))
    if not stream.n_tokens:
        raise ValueError("the documents hold no token to measure: expected at least one after BOS")
    work = Computation(checkpoint, "stream_contexts 1", pair, stream, {"n_top": n_top}, shardable=True)
    frames = []
    with LatentRows(d_sae) as inputs, LatentRows(d_sae) as outputs:
        _fill(work, pair, stream, inputs, outputs)
        for side, rows in zip(SIDES, (inputs, outputs), strict=True):
            logits = _logits(work, pair, lm, text) if side == "output" else pd.DataFrame(index=range(d_sae))
            latents, contexts = Frames(), Frames()
            blocks = rows.blocks(ROWS_AT_ONCE, d_sae)
            for block in work.steps(blocks, {"latents": latents, "contexts": contexts}, f"{side} latents", d_sae, len):
                of_block = _of_block(_Firings.read(rows, block), block, text, n_top)
                latents.append(of_block[0])
                contexts.append(of_block[1])
            for of_latents, of_contexts in zip(latents, contexts, strict=True):
                both = pd.concat([of_latents.join(logits, on="latent"), of_contexts], ignore_index=True)
                frames.append(both.sort_values("latent", kind="stable").assign(side=side))
    whole = pd.concat(frames, ignore_index=True).reindex(columns=COLUMNS)
    return whole.astype(dict.fromkeys(["rank", "document", "position", "place"], "Int64"))


class _Text:
    """The tokens of documents without BOS, numbered as the rows of a stream are."""

    def __init__(self, lm: LanguageModel, documents: Sequence[Tensor]):
        lengths = np.array([len(document) - 1 for document in documents], dtype=np.int64)
        self.ends = lengths.cumsum()
        self.starts = self.ends - lengths
        self.ids = torch.cat([document[1:].int().cpu() for document in documents]).numpy()
        self._tokenizer = lm.tokenizer
        self._known: dict[int, str] = {}

    def document(self, tokens: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.ends, tokens, side="right")

    def text(self, token_id: int) -> str:
        if token_id not in self._known:
            self._known[token_id] = str(self._tokenizer.decode([token_id]))
        return self._known[token_id]

    def texts(self, token_ids: np.ndarray) -> list[str]:
        return [self.text(token_id) for token_id in token_ids.tolist()]


class _Firings(NamedTuple):
    """Where some latents fire, in the order of latents and then of tokens; each [n]."""

    latent: np.ndarray
    token: np.ndarray
    activation: np.ndarray

    @classmethod
    def read(cls, rows: LatentRows, block: range) -> _Firings:
        parts = [cls(part["latent"].astype(np.int64), part["token"], part["activation"]) for part in rows.read(block)]
        if not parts:
            return cls(*(np.zeros(0, kind) for kind in (np.int64, np.int64, np.float32)))
        firings = cls(*map(np.concatenate, zip(*parts, strict=True)))
        if not np.isfinite(firings.activation).all():
            raise ValueError("activations are NaN or infinite; are the MLP inputs finite?")
        firings = firings.at(np.flatnonzero(firings.activation > 0))
        return firings.at(np.argsort(firings.latent, kind="stable"))

    def at(self, places: np.ndarray) -> _Firings:
        return _Firings(self.latent[places], self.token[places], self.activation[places])


def _fill(work: Computation, pair: SAEPair, stream: MLPInputs, inputs: LatentRows, outputs: LatentRows) -> None:
    """The active latents of both SAEs at each token. Shards are merged here."""
    at_once = inputs_at_once(pair.input_sae)
    for batch, _, start in work.tokens(stream, {"inputs": inputs, "outputs": outputs}):
        for x in batch.split(at_once):
            tokens = {"token": torch.arange(start, start + len(x))}
            for rows, sae, given in ((inputs, pair.input_sae, x), (outputs, pair.output_sae, pair.mlp(x))):
                activations, latents = active_latents(sae, given)
                rows.add(latents, {"activation": activations}, tokens)
            start += len(x)
    work.merge_shards()


def _of_block(firings: _Firings, block: range, text: _Text, n_top: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row for each latent of a block, and its contexts."""
    counts = np.bincount(firings.latent - block.start, minlength=len(block))
    top, quantiles = _top(firings, text, n_top), _at_quantiles(firings, counts)
    chosen = firings.at(np.concatenate([top["firing"], quantiles["firing"]]).astype(np.int64))
    contexts = pd.concat([top, quantiles], ignore_index=True).drop(columns="firing")
    document = text.document(chosen.token)
    contexts = contexts.assign(
        latent=chosen.latent,
        document=document,
        position=chosen.token - text.starts[document] + 1,
        activation=chosen.activation,
        **_windows(firings, chosen, document, text),
    )
    latents = pd.DataFrame({"latent": block, "kind": "latent", "density": counts / len(text.ids)})
    return latents.join(_top_tokens(firings, text, block)), contexts


def _top(firings: _Firings, text: _Text, n_top: int) -> pd.DataFrame:
    """The largest firings, of which each is the largest of its document."""
    document = text.document(firings.token)
    order = np.lexsort((firings.token, -firings.activation, firings.latent))
    frame = pd.DataFrame({"firing": order, "latent": firings.latent[order], "document": document[order]})
    frame = frame.drop_duplicates(["latent", "document"])
    frame["rank"] = frame.groupby("latent").cumcount()
    return frame.loc[frame["rank"] < n_top, ["firing", "rank"]].assign(kind="top")


def _at_quantiles(firings: _Firings, counts: np.ndarray) -> pd.DataFrame:
    """The firings at the quantiles of each latent's activations."""
    order = np.lexsort((firings.token, firings.activation, firings.latent))
    starts, counts = (counts.cumsum() - counts)[counts > 0], counts[counts > 0]
    places = (starts[:, None] + np.floor(QUANTILES * counts[:, None]).astype(np.int64)).reshape(-1)
    frame = pd.DataFrame({"firing": order[places], "quantile": np.tile(QUANTILES, len(counts)).round(2)})
    return frame.drop_duplicates("firing").assign(kind="quantile")


def _windows(firings: _Firings, chosen: _Firings, document: np.ndarray, text: _Text) -> dict[str, object]:
    """The tokens around each chosen firing, and the latent's activations there."""
    first = np.maximum(chosen.token - EACH_SIDE, text.starts[document])
    last = np.minimum(chosen.token + EACH_SIDE, text.ends[document] - 1)
    lengths = last - first + 1
    of = np.arange(len(lengths)).repeat(lengths)
    ends = lengths.cumsum()
    tokens = np.arange(lengths.sum()) - (ends - lengths)[of] + first[of]
    n = len(text.ids)
    known, asked = firings.latent * n + firings.token, chosen.latent[of] * n + tokens
    place = np.searchsorted(known, asked)
    place[place == len(known)] = 0
    found = known[place] == asked if len(known) else np.zeros(0, bool)
    activations = np.where(found, firings.activation[place], 0) if len(known) else np.zeros(0)
    texts = text.texts(text.ids[tokens])
    bounds = list(zip((ends - lengths).tolist(), ends.tolist(), strict=True))
    return {
        "tokens": [texts[start:end] for start, end in bounds],
        "activations": [activations[start:end] for start, end in bounds],
        "place": chosen.token - first,
    }


def _top_tokens(firings: _Firings, text: _Text, block: range) -> pd.DataFrame:
    """The tokens that hold most of the sum of a latent's activations."""
    ids = text.ids[firings.token]
    keys, which = np.unique(firings.latent * 2**32 + ids, return_inverse=True)
    latent, token_id = keys >> 32, keys & (2**32 - 1)
    sums = np.bincount(which, firings.activation, minlength=len(keys))
    order = np.lexsort((token_id, -sums, latent))
    latent, token_id, sums = latent[order], token_id[order], sums[order]
    bounds = np.searchsorted(latent, np.arange(block.start, block.stop + 1)).tolist()
    rows: Iterator[slice] = (slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False))
    return pd.DataFrame(
        [
            (text.texts(token_id[row][:N_TOKENS]), sums[row][:N_TOKENS] / (sums[row].sum() if len(sums[row]) else 1))
            for row in rows
        ],
        columns=["top_tokens", "top_token_shares"],
    )


def _logits(work: Computation, pair: SAEPair, lm: LanguageModel, text: _Text) -> pd.DataFrame:
    """The tokens whose logits the decoder rows of output latents move most, a row for each latent."""
    frames, directions = Frames(), pair.output_sae.W_dec
    parts = directions.split(max(1, LOGITS_AT_ONCE // (2 * lm.n_vocabulary)))
    for part in work.steps(parts, {"frames": frames}, "decoder rows", len(directions), len):
        columns: dict[str, list] = {}
        part = part.to(lm.dtype)
        moved = ((lm.logits(part) - lm.logits(-part)) / 2).float()
        for name, values in (("raised", moved), ("lowered", -moved)):
            largest, token_ids = values.topk(min(N_TOKENS, values.shape[1]), dim=1)
            columns[f"{name}_tokens"] = [text.texts(row) for row in token_ids.cpu().numpy()]
            columns[f"{name}_logits"] = list((largest if name == "raised" else -largest).cpu().numpy())
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
