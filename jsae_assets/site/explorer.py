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
FED = ["input_latent", "output_latent", "n_both", "mean_attribution", "share"]  # of an input latent
NUMBERS = ["mean_jacobian", "sd_jacobian", "mean_abs_jacobian", "mean_attribution", "share", "sign_agreement"]
OF_EXAMPLES = ["jacobian", "input_activation", "output_activation"]
FEEDS = 20  # output latents that an input latent's page names
IN_LIST = 4  # tokens of a latent that the list of all latents shows
DIGITS = 3


def write_script(folder: Path, name: str, data: Any) -> None:
    """Write a script that hands `data` to the page that loads it, under the name of the script."""
    path = folder / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    path.write_text(f"jsae.receive({json.dumps(name)},{text});\n", encoding="ascii")


def write_texts(folder: Path, model: str, documents: Sequence[Sequence[str]]) -> list[int]:
    """Write the texts of a model's tokens, BOS left out, to several files. Return the number of each file's first
    document."""
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
    """Write everything that the explorer shows of a pair.

    Args:
        cell: the folder of its data: <variant>/<model>/<layer>.
        contexts, connections: as the measures of these names are stored.
        document_ends: the number of tokens up to the end of each document, BOS left out.
        text_starts: the first document of each file of texts.
        about: what the page says about the pair.
        similar: for each latent of each side, the most similar latent of the pair that it is compared with, and their
            similarity.
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
    names: dict[int, list[str]] = {}  # of input latents, for the lists of what feeds an output latent
    for side in ("input", "output"):
        listed: dict[str, list] = {"density": [], "strength": [], "tokens": []}
        # one file at a time, because the data of thousands of latents are gigabytes
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
                listed["strength"].append(strength[side].get(n, 0))
                listed["tokens"].append(latent["top_tokens"][:IN_LIST])
        listed["strength"] = with_digits(listed["strength"])
        write_script(folder, f"cell/{cell}/{side}s", listed)
    top = contexts[(contexts["kind"] == "top") & (contexts["side"] == "output")]
    # the file of texts that each context is in
    top = top.assign(file=np.searchsorted(text_starts, top["document"].to_numpy(np.int64), side="right") - 1)
    _write_peaks(folder, cell, top)
    _write_places(folder, cell, top, len(text_starts))
    write_script(folder, f"cell/{cell}/about", {**about, "text_starts": list(text_starts), "a_file": LATENTS_A_FILE})


def with_digits(values: Any, digits: int = DIGITS) -> list[float | None]:
    """Return numbers [n] rounded to significant digits, as `f"{number:.3g}"` does; None for those that are not finite.
    All at once, because a site has millions, and one by one they would take most of its time."""
    x = np.asarray(values, dtype=np.float64)
    with np.errstate(all="ignore"):
        decimals = digits - 1 - np.floor(np.log10(np.abs(x)))
        # powers of ten are exact up to here, and so is what is divided by them: the nearest number to the decimal
        power = 10.0 ** np.abs(decimals).clip(max=22)
        scaled = np.where(decimals >= 0, x * power, x / power)
        whole = np.rint(scaled)
        rounded = np.where(decimals >= 0, whole / power, whole * power)
        halfway = np.abs(np.abs(scaled - np.trunc(scaled)) - 0.5) < 1e-6
    rounded[x == 0] = 0.0
    for place in np.flatnonzero(np.isfinite(x) & (x != 0) & (halfway | (np.abs(decimals) > 22))):
        rounded[place] = float(f"{x[place]:.{digits}g}")
    numbers = rounded.tolist()
    for place in np.flatnonzero(~np.isfinite(x)):
        numbers[place] = None
    return numbers


def _each_with_digits(lists: Sequence[Any]) -> list[list[float | None]]:
    """Round several lists of numbers, all at once."""
    return _split(with_digits(np.concatenate(lists)), lists) if len(lists) else []


def _split(values: list, like: Sequence[Any]) -> list[list]:
    """Split a list into parts as long as those of `like`."""
    ends = np.cumsum([len(part) for part in like]).tolist()
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _latents(contexts: pd.DataFrame) -> dict[int, dict[str, Any]]:
    """Return latents by number, in order. Each of their contexts points into the texts: document, position, activation,
    first position, the activations from there on in hundredths of the latent's largest, and for contexts at quantiles
    the quantile."""
    latents: dict[int, dict[str, Any]] = {}
    rows = contexts[contexts["kind"] == "latent"].sort_values("latent")
    for row, density in zip(rows.itertuples(), with_digits(rows["density"]), strict=True):
        latent = {
            "density": density,
            "top_tokens": list(row.top_tokens),
            "top_token_shares": with_digits(row.top_token_shares),
            "contexts": [],
            "quantiles": [],
        }
        if row.raised_tokens is not None and isinstance(row.raised_tokens, list | np.ndarray):
            latent |= {
                "raised": list(zip(row.raised_tokens, with_digits(row.raised_logits), strict=True)),
                "lowered": list(zip(row.lowered_tokens, with_digits(row.lowered_logits), strict=True)),
            }
        latents[int(row.latent)] = latent
    shown = contexts[contexts["kind"] != "latent"]
    if shown.empty:
        return latents
    largest = shown.groupby("latent")["activation"].transform("max").to_numpy(np.float64)
    lengths = [len(part) for part in shown["activations"]]
    there = np.concatenate(shown["activations"].to_list()).astype(np.float64)
    shades = _split(np.rint(100 * there / largest.repeat(lengths)).astype(int).tolist(), shown["activations"])
    for row, activation, of_row in zip(shown.itertuples(), with_digits(shown["activation"]), shades, strict=True):
        context = [int(row.document), int(row.position), activation, int(row.position - row.place), of_row]
        if row.kind == "top":
            latents[row.latent]["contexts"].append(context)
        else:
            latents[row.latent]["quantiles"].append([*context, row.quantile])
    return latents


def _connections(
    connections: pd.DataFrame, document_ends: np.ndarray, names: Mapping[int, list[str]]
) -> dict[int, list[list[Any]]]:
    """Return the connections of each output latent, the strongest first: input latent, n_both, n_output, mean J, its
    standard deviation, mean |J|, mean J s, share, sign agreement, examples (document, position, J, both activations),
    curve, top tokens."""
    found: dict[int, list[list[Any]]] = {}
    numbers = zip(*(with_digits(connections[name]) for name in NUMBERS), strict=True)
    has_curve = [isinstance(curve, list | np.ndarray) for curve in connections["curve"]]
    curves = iter(_each_with_digits(connections["curve"][has_curve].to_list()))
    ends = with_digits(connections["curve_end"])
    shown = (connections.groupby("output_latent").cumcount() < WITH_EXAMPLES).to_numpy()
    examples = iter(_examples(connections[shown], document_ends))
    for place, (row, of_row) in enumerate(zip(connections.itertuples(), numbers, strict=True)):
        found.setdefault(int(row.output_latent), []).append(
            [
                int(row.input_latent),
                int(row.n_both),
                int(row.n_output),
                *of_row,
                next(examples) if shown[place] else [],
                [ends[place], next(curves)] if has_curve[place] else None,
                names.get(int(row.input_latent), []),
            ]
        )
    return found


def _examples(connections: pd.DataFrame, document_ends: np.ndarray) -> list[list[list[Any]]]:
    """Return a few tokens for each connection: document, position, J, both activations."""
    if connections.empty:
        return []
    columns = {name: [list(values[:EXAMPLES]) for values in connections[name]] for name in ("token", *OF_EXAMPLES)}
    token = np.concatenate(columns["token"]).astype(np.int64)
    document = np.searchsorted(document_ends, token, side="right")
    position = token - np.concatenate([[0], document_ends])[document] + 1
    numbers = (with_digits(np.concatenate(columns[name])) for name in OF_EXAMPLES)
    rows = [list(row) for row in zip(document.tolist(), position.tolist(), *numbers, strict=True)]
    return _split(rows, columns["token"])


def _fed(by_share: pd.DataFrame) -> dict[int, list[list[Any]]]:
    """Return for each input latent the output latents in which it has the largest shares: latent, n_both, mean J s,
    share."""
    found: dict[int, list[list[Any]]] = {}
    first = by_share[by_share.groupby("input_latent").cumcount() < FEEDS]
    numbers = (with_digits(first[name]) for name in ("mean_attribution", "share"))
    for row, *of_row in zip(first.itertuples(), *numbers, strict=True):
        found.setdefault(int(row.input_latent), []).append([int(row.output_latent), int(row.n_both), *of_row])
    return found


def _write_peaks(folder: Path, cell: str, top: pd.DataFrame) -> None:
    """Write, for each token, which output latents have their top contexts there, the one with the most contexts first,
    and in which files of texts these are: [token in lower case, latents, files]. So a search reads few texts."""
    tokens = [str(tokens[place]).lower() for tokens, place in zip(top["tokens"], top["place"], strict=True)]
    by_token = top.assign(peak=tokens)
    counts = by_token.groupby(["peak", "latent"], sort=False).size()
    found: dict[str, list[int]] = {}
    for token, latent in counts.sort_values(ascending=False, kind="stable").index:
        found.setdefault(token, []).append(int(latent))
    files = by_token.groupby("peak")["file"].unique()
    rows = [[token, latents, sorted(files[token].tolist())] for token, latents in found.items()]
    write_script(folder, f"cell/{cell}/peaks", rows)


def _write_places(folder: Path, cell: str, top: pd.DataFrame, n_files: int) -> None:
    """Write where output latents have their top contexts, for a search in the texts: for each file of texts a file with
    document, position and latent."""
    for number in range(n_files):
        rows = top[top["file"] == number]
        places = [rows[name].astype(int).tolist() for name in ("document", "position", "latent")]
        write_script(folder, f"cell/{cell}/places/{number}", places)
