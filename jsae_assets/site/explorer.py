"""The explorer's data: latents, their contexts and connections, in files that a page loads when they are asked for.

A page that was opened from the file system may not fetch, so each file is a script that hands its data over:
`jsae.receive("<name>", <data>)`. Texts are stored once a model, and contexts point into them. Not here: the page
(`static/explorer.js`), what the numbers are (`jsae_core.measures`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

LATENTS_A_FILE = 32
TOKENS_A_FILE = 2_000  # the contexts of a latent may lie in as many files as it has contexts
WITH_EXAMPLES, EXAMPLES = 20, 3  # connections of an output latent that show tokens, and how many
FED = ["input_latent", "output_latent", "n_both", "mean_attribution", "share"]  # what is said of an input latent's
FEEDS = 20  # output latents that an input latent's page names
IN_LIST = 4  # tokens of a latent that the list of all latents shows
DIGITS = 3


def write_script(folder: Path, name: str, data: Any) -> None:
    """A file that hands `data` to the page that loads it, under its own name."""
    path = folder / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    path.write_text(f"jsae.receive({json.dumps(name)},{text});\n", encoding="ascii")


def write_texts(folder: Path, model: str, documents: Sequence[Sequence[str]]) -> list[int]:
    """The texts of a model's tokens, BOS left out; gives the first document of each file."""
    starts, n_held = [0], 0
    held: list[list[str]] = []
    for number, document in enumerate(documents):
        if held and n_held + len(document) > TOKENS_A_FILE:
            write_script(folder, f"text/{model}/{len(starts) - 1}", held)
            starts.append(number)
            held, n_held = [], 0
        held.append(list(document))
        n_held += len(document)
    write_script(folder, f"text/{model}/{len(starts) - 1}", held)
    return starts


def write_cell(
    folder: Path,
    cell: str,
    contexts: pd.DataFrame,
    connections: pd.DataFrame,
    document_ends: np.ndarray,
    text_starts: Sequence[int],
    about: Mapping[str, Any],
    similar: Mapping[str, Sequence[tuple[int, float]]] | None,
) -> None:
    """All that the explorer shows of a pair.

    Args:
        cell: where its data is: <variant>/<model>/<layer>.
        contexts, connections: as the measures of these names are stored.
        document_ends: the number of tokens up to the end of each document, BOS left out.
        text_starts: the first document of each file of texts.
        about: what the page says of the pair.
        similar: of each latent of each side the one most alike in the pair that it is compared with, and how alike.
    """
    contexts = contexts.assign(file=contexts["latent"] // LATENTS_A_FILE)
    strength = {
        "output": connections.drop_duplicates("output_latent").set_index("output_latent")["share"].to_dict(),
        "input": connections["input_latent"].value_counts().to_dict(),
    }
    by_share = connections[FED].sort_values("share", ascending=False, kind="stable")
    linked = {
        "output": dict(iter(connections.groupby(connections["output_latent"] // LATENTS_A_FILE))),
        "input": dict(iter(by_share.groupby(by_share["input_latent"] // LATENTS_A_FILE))),
    }
    names: dict[int, list[str]] = {}  # of input latents, which those that they feed are shown with
    for side in ("input", "output"):
        listed: dict[str, list] = {"density": [], "strength": [], "tokens": []}
        # a file after the other: thousands of latents with all that is said of them are gigabytes
        for file, rows in contexts[contexts["side"] == side].groupby("file"):
            latents, links = _latents(rows), linked[side].get(file)
            if links is None:
                others: dict[int, list] = {}
            else:
                others = _connections(links, document_ends, names) if side == "output" else _fed(links)
            part = {
                n: latent | {"connections": others.get(n, []), "similar": similar[side][n] if similar else None}
                for n, latent in latents.items()
            }
            write_script(folder, f"cell/{cell}/{side}/{file}", part)
            for n, latent in latents.items():
                if side == "input":
                    names[n] = latent["top_tokens"][:IN_LIST]
                listed["density"].append(latent["density"])
                listed["strength"].append(_round(strength[side].get(n, 0)))
                listed["tokens"].append(latent["top_tokens"][:IN_LIST])
        write_script(folder, f"cell/{cell}/{side}s", listed)
    _write_places(folder, cell, contexts, text_starts)
    write_script(folder, f"cell/{cell}/about", {**about, "text_starts": list(text_starts), "a_file": LATENTS_A_FILE})


def _round(value: float) -> float | None:
    value = float(value)
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def _rounded(values: Any) -> list[float | None]:
    return [_round(value) for value in values]


def _latents(contexts: pd.DataFrame) -> dict[int, dict[str, Any]]:
    """By their numbers, in order, with contexts that point into the texts: document, position,
    activation, the first position, and activations there as hundredths of the latent's largest; then the quantile."""
    latents: dict[int, dict[str, Any]] = {}
    rows = contexts[contexts["kind"] == "latent"].sort_values("latent")
    for row in rows.itertuples():
        latent = {
            "density": _round(row.density),
            "top_tokens": list(row.top_tokens),
            "top_token_shares": _rounded(row.top_token_shares),
            "contexts": [],
            "quantiles": [],
        }
        if row.raised_tokens is not None and isinstance(row.raised_tokens, list | np.ndarray):
            latent |= {
                "raised": list(zip(row.raised_tokens, _rounded(row.raised_logits), strict=True)),
                "lowered": list(zip(row.lowered_tokens, _rounded(row.lowered_logits), strict=True)),
            }
        latents[int(row.latent)] = latent
    shown = contexts[contexts["kind"] != "latent"]
    largest = shown.groupby("latent")["activation"].max().to_dict()
    for row in shown.itertuples():
        shades = [round(100 * float(value) / largest[row.latent]) for value in row.activations]
        context = [int(row.document), int(row.position), _round(row.activation), int(row.position - row.place), shades]
        if row.kind == "top":
            latents[row.latent]["contexts"].append(context)
        else:
            latents[row.latent]["quantiles"].append([*context, row.quantile])
    return latents


def _connections(
    connections: pd.DataFrame, document_ends: np.ndarray, names: Mapping[int, list[str]]
) -> dict[int, list[list[Any]]]:
    """Of each output latent, the strongest first: input latent, n_both, n_output, mean J, its spread, mean |J|,
    mean J s, share, sign agreement, examples (document, position, J, s of both), curve, top tokens."""
    found: dict[int, list[list[Any]]] = {}
    for row in connections.itertuples():
        rows = found.setdefault(int(row.output_latent), [])
        examples = []
        if len(rows) < WITH_EXAMPLES:
            for values in list(zip(row.token, row.jacobian, row.input_activation, row.output_activation, strict=True))[
                :EXAMPLES
            ]:
                token = int(values[0])
                document = int(np.searchsorted(document_ends, token, side="right"))
                start = int(document_ends[document - 1]) if document else 0
                examples.append([document, token - start + 1, *_rounded(values[1:])])
        has_curve = isinstance(row.curve, list | np.ndarray)
        rows.append(
            [
                int(row.input_latent),
                int(row.n_both),
                int(row.n_output),
                *_rounded(
                    (
                        row.mean_jacobian,
                        row.sd_jacobian,
                        row.mean_abs_jacobian,
                        row.mean_attribution,
                        row.share,
                        row.sign_agreement,
                    )
                ),
                examples,
                [_round(row.curve_end), _rounded(row.curve)] if has_curve else None,
                names.get(int(row.input_latent), []),
            ]
        )
    return found


def _fed(by_share: pd.DataFrame) -> dict[int, list[list[Any]]]:
    """Of each input latent, the output latents of which it has the largest share: latent, n_both, mean J s, share."""
    found: dict[int, list[list[Any]]] = {}
    for row in by_share.itertuples():
        rows = found.setdefault(int(row.input_latent), [])
        if len(rows) < FEEDS:
            rows.append([int(row.output_latent), int(row.n_both), _round(row.mean_attribution), _round(row.share)])
    return found


def _write_places(folder: Path, cell: str, contexts: pd.DataFrame, text_starts: Sequence[int]) -> None:
    """Where output latents have their top contexts, for a search in the texts: a file for each file of texts, with
    document, position and latent."""
    top = contexts[(contexts["kind"] == "top") & (contexts["side"] == "output")]
    file = np.searchsorted(text_starts, top["document"].to_numpy(np.int64), side="right") - 1
    for number in range(len(text_starts)):
        rows = top[file == number]
        places = [rows[name].astype(int).tolist() for name in ("document", "position", "latent")]
        write_script(folder, f"cell/{cell}/places/{number}", places)
