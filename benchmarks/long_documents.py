"""How much larger errors are by source document than by piece: `python -m benchmarks.long_documents [STORAGE]`.

A document that is longer than the model's context is cut into pieces (`long_documents: cut`). The pieces are alike, so
taken as independent they give errors that are too small. Here: how much too small, on a pair that `make demo` stored,
and whether the errors by source document are right. The documents are the files of Python's standard library that are
long enough, each with its first pieces. A number's error is computed with each piece as a document and with all pieces
of a file together. A third error, which knows no formula, is the spread of the number between random groups of files.

The demo's own text is passages of such files in random order, a random sample of all passages; the last tables
say how large its errors would be if files were the sample.

Not here: standard errors (`jsae_core.measures.moments`), what the measures are (`jsae_core.measures`). (Ten minutes on
one core. The exit status is 2 if a file is missing.)
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch import Tensor

from benchmarks.review import EMBEDDED, MODEL, STORAGE
from jsae_core import LanguageModel, MLPInputs, SAEPair, load_language_model
from jsae_core.measures import Estimate, latent_accountings, measured_quality
from jsae_core.measures.moments import spread
from jsae_core.text import first_tokens, standard_library, standard_library_files, tokenise

FILES, PIECES = 120, (2, 8)  # of each file, so many pieces
GROUPS = 40  # of files: their spread is known to a ninth
PASSAGES = (10_000, 40_000)  # tokens of the demo's text, which has the first so many
NUMBERS = ("above_0.01", "l1_over_l2", "accounted_share", "r2_attribution_4", "explained_variance_output",
           "kl_score_pair", "ce_clean")  # fmt: skip


def measured(pair: SAEPair, language_model: LanguageModel, documents: Sequence[Tensor]) -> dict[str, Estimate]:
    """The numbers of a pair on documents, each with its error by document."""
    stream = MLPInputs(language_model, documents, pair.config.layer)
    accounting = latent_accountings(pair, stream, kept=(4,), orders=("attribution",)).estimates
    found = measured_quality(pair, language_model, documents).estimates | accounting
    return {name: found[name] for name in NUMBERS}


def error_by_source(estimate: Estimate, sources: Tensor) -> float:
    """The error of a number, with documents of one source [n_documents] taken together."""
    assert estimate.influence is not None and estimate.documents is not None
    _, number = sources[estimate.documents].unique(return_inverse=True)
    return spread(torch.zeros(int(number.max()) + 1, dtype=torch.float64).index_add(0, number, estimate.influence))


def errors_between_groups(
    pair: SAEPair, language_model: LanguageModel, files: Sequence[Sequence[Tensor]]
) -> dict[str, float]:
    """The error of each number over files, by how much it differs between random groups of them: in a group, a G-th of
    the files, it varies sqrt(G) times as much as in all of them."""
    groups = [
        measured(pair, language_model, [piece for number in numbers for piece in files[number]])
        for numbers in np.array_split(np.arange(len(files)), GROUPS)  # the files are in random order
    ]
    return {
        name: float(np.std([group[name].value for group in groups], ddof=1)) / math.sqrt(GROUPS) for name in NUMBERS
    }


def long_files(language_model: LanguageModel, n_pieces: int) -> list[list[Tensor]]:
    """The first pieces of FILES files that hold so many, in random order."""
    size = language_model.context_size
    paths = standard_library_files("train") + standard_library_files("held_out")
    found: list[list[Tensor]] = []
    for number in np.random.default_rng(0).permutation(len(paths)):
        text = paths[number].read_text(encoding="utf-8", errors="replace")
        pieces = tokenise([text or " "], language_model.tokenizer, size, n_pieces * (size - 1))
        if len(pieces) == n_pieces and len(pieces[-1]) == size:
            found.append(pieces)
        if len(found) == FILES:
            break
    return found


def passages(language_model: LanguageModel, n_tokens: int) -> tuple[list[Tensor], Tensor]:
    """The first passages of the demo's text, and the number of the file that each is from."""
    texts = list(standard_library("held_out"))
    files = [path.read_text(encoding="utf-8", errors="replace") for path in standard_library_files("held_out")]
    tokenizer, size = language_model.tokenizer, language_model.context_size
    documents = first_tokens(
        [tokenise([text], tokenizer, size, long_documents="truncate")[0] for text in texts], n_tokens
    )
    sources = [next(number for number, file in enumerate(files) if text in file) for text in texts[: len(documents)]]
    return documents, torch.tensor(sources)


def as_text(columns: Mapping[str, Mapping[str, float]], by: str) -> str:
    """A row for each number: its errors, and how many times as large as the one `by` the others are."""
    others = [name for name in columns if name != by]
    rows = [
        (number, *(f"{of[number]:.2g}" for of in columns.values()))
        + tuple(f"{columns[name][number] / columns[by][number]:.2f}" for name in others)
        for number in NUMBERS
    ]
    header = ("number", *columns, *(f"{name} / {by}" for name in others))
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_documents", description=__doc__.split("\n\n")[0])
    parser.add_argument("storage", nargs="?", type=Path, default=STORAGE, help="what `make demo` stored (%(default)s)")
    parser.add_argument("--variant", default="jsae")
    parser.add_argument("--layer", type=int, default=1)
    options = parser.parse_args(arguments)
    path = options.storage / options.variant / "sae_pair" / str(options.layer) / f"{MODEL}.safetensors"
    if not path.exists():
        print(f"{path} is not there: run `make demo` first", file=sys.stderr)
        return 2
    pair, language_model = SAEPair.load(path), load_language_model(EMBEDDED)
    print(f"Standard errors, {options.variant}, {MODEL}, layer {options.layer}")
    for n_pieces in PIECES:
        files = long_files(language_model, n_pieces)
        documents = [piece for pieces in files for piece in pieces]
        found = measured(pair, language_model, documents)
        sources = torch.arange(len(files)).repeat_interleave(n_pieces)
        errors = {
            "by piece": {name: of.standard_error for name, of in found.items()},
            "by source": {name: error_by_source(of, sources) for name, of in found.items()},
            "between groups": errors_between_groups(pair, language_model, files),
        }
        print(f"\n{len(files)} files, {n_pieces} pieces of each:\n\n{as_text(errors, 'by piece')}", flush=True)
    for n_tokens in PASSAGES:
        documents, sources = passages(language_model, n_tokens)
        found = measured(pair, language_model, documents)
        errors = {
            "by passage": {name: of.standard_error for name, of in found.items()},
            "by file": {name: error_by_source(of, sources) for name, of in found.items()},
        }
        what = f"{len(documents)} passages of {len(sources.unique())} files, in the demo's order"
        print(f"\n{what}:\n\n{as_text(errors, 'by passage')}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
