"""Documents and tokens: where text comes from and how it becomes token ids.

Here: the text sources (Python's standard library, local files, Hugging Face datasets), what counts as a text, and the
one place that prepends BOS and cuts to the model's context. Not here: how each kind of file is read (`text_files.py`),
anything that runs a model (`activations.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from jsae_core.text_files import Row, matching_files, read_rows

if TYPE_CHECKING:
    from torch import Tensor

PASSAGE_CHARACTERS = 700  # of the standard library's passages, at the most
HELD_OUT_SHARE = 10  # one file in ten
EXCLUDED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

PIECE_CHARACTERS = 2**16  # of a document are looked at together
# Characters that are tokenised at once, and how many of them the next ones hold again. The difference is a multiple of
# most small numbers, so that runs of one character, which tokenizers take by twos, threes, eights, fall alike in both.
WINDOW = 48 * 2**10
OVERLAP = 3 * 2**10
HUB_SECONDS = 30.0  # that the hub has to say which commit a revision is

Split = Literal["train", "held_out"]
LongDocuments = Literal["cut", "truncate"]


def standard_library_files(split: Split) -> list[Path]:
    """The `.py` files of the running interpreter's standard library, by relative path, without its test suites.

    A file is held out if a hash of its relative path says so, so the split is the same on every machine and a new
    Python release moves no file from one side to the other.
    """
    if split not in ("train", "held_out"):
        raise ValueError(f"standard library text: the split is {split!r}, expected 'train' or 'held_out'")
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, subfolders, names in os.walk(root):
        # pruned here, since site-packages alone can be many times the library
        subfolders[:] = [name for name in subfolders if name not in EXCLUDED_FOLDERS]
        files += [(Path(folder) / name).relative_to(root) for name in names if name.endswith(".py")]
    files.sort()
    held_out = {path: _stable_hash(path.as_posix()) % HELD_OUT_SHARE == 0 for path in files}
    return [root / path for path in files if held_out[path] == (split == "held_out")]


def standard_library(split: Split) -> Documents:
    """Passages of the standard library's source, at most `PASSAGE_CHARACTERS` long, in an order shuffled by hash.

    Files are cut into passages, since a file is far longer than a small model's context and its first lines are
    mostly licence and imports. The order is fixed, so a prefix of the stream is a fair sample of the library.
    """
    passages = [
        (f"{path.name}:{number}:{passage[:40]}", passage)
        for path in standard_library_files(split)
        for number, passage in enumerate(_passages(path.read_text(encoding="utf-8", errors="replace")))
    ]
    passages.sort(key=lambda item: _stable_hash(item[0]))
    return Documents(passages)


def _passages(text: str) -> Iterator[str]:
    """Cut at line ends; a single longer line stays whole."""
    passage: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        if passage and size + len(line) > PASSAGE_CHARACTERS:
            yield "".join(passage)
            passage, size = [], 0
        passage.append(line)
        size += len(line)
    if passage:
        yield "".join(passage)


def _stable_hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


class Documents(Iterator[str]):
    """The documents of a source, in order, each once. Rows without a text are left out.

    Attributes:
        missing: how many such rows there were so far.
        revision: which state of the source this is, where it has one: a commit of a dataset on the hub.

    Raises:
        ValueError: a row holds something else than a text. The message says which.
    """

    def __init__(self, rows: Iterable[Row], revision: str | None = None):
        """`rows`: where each stands, and its text, an iterator over the pieces of one, or None."""
        self.missing = 0
        self.revision = revision
        self._pieces = self._of_rows(rows)

    def __next__(self) -> str:
        return "".join(next(self._pieces))

    def in_pieces(self) -> Iterator[Iterator[str]]:
        """The same documents, each an iterator over its pieces: one of them may be larger than memory."""
        return self._pieces

    def _of_rows(self, rows: Iterable[Row]) -> Iterator[Iterator[str]]:
        for place, value in rows:
            if value is None:
                self.missing += 1
            elif isinstance(value, str):
                yield _clean(
                    place, (value[at : at + PIECE_CHARACTERS] for at in range(0, len(value), PIECE_CHARACTERS))
                )
            elif isinstance(value, Iterator):
                yield _clean(place, value)
            else:
                raise ValueError(f"{place}: is {type(value).__name__}, expected a string")


def _clean(place: str, pieces: Iterator[str]) -> Iterator[str]:
    """Without a byte order mark at the beginning, and checked for halves of characters."""
    at = 0
    for piece in pieces:
        try:
            piece.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{place}: holds half of a surrogate pair, {ascii(piece[error.start])}, as character "
                f"{at + error.start}, which is no character; mend this text or leave it out"
            ) from error
        yield piece if at else piece.removeprefix("\ufeff")
        at += len(piece)


def local_files(patterns: str | Sequence[str], column: str = "text") -> Documents:
    """Documents of local files, in sorted order of their paths. What kind a file is, its name says, in any case:

    - .txt: one document;
    - .jsonl, .ndjson: one a line, in `column` of an object;
    - .json: JSON lines, an array of strings or of objects, or an object of columns;
    - .csv, .tsv: one a row, in `column` of the first line;
    - .parquet: one a row, in `column`, which holds strings;
    - each of them compressed: .gz or .zst behind the name.

    Raises:
        ValueError: a pattern matches no file, or a file of another kind; when read: a file does not hold what its name
            promises. The message names file and line, row or byte.
    """
    return Documents(row for path in matching_files(patterns) for row in read_rows(path, column))


def hugging_face_dataset(
    name: str,
    config: str | None = None,
    split: str = "validation",
    column: str = "text",
    revision: str | None = None,
    say: Callable[[str], None] = print,
) -> Documents:
    """Documents of a dataset on the Hugging Face hub, streamed in the dataset's own order.

    Args:
        revision: a branch, tag or commit. The commit it stands for is looked up first and is the one that is read.
        say: is told what is read and from where, before that begins.

    Raises:
        ValueError: the dataset cannot be reached or has no such config, split or column, or the name could as well be
            that of a folder here.
    """
    if os.path.exists(name) and not os.path.isabs(name):
        raise ValueError(
            f"Hugging Face dataset {name!r}: there is a folder of that name here too; rename it, or name its files as "
            "this model's text"
        )
    commit = _commit(name, revision)
    return Documents(_dataset_rows(name, config, split, column, commit or revision, say), commit)


def _commit(name: str, revision: str | None) -> str | None:
    """None where it cannot be found out; reading then says why."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision, timeout=HUB_SECONDS).sha
    except Exception:  # huggingface_hub raises its own, httpx's and OSError alike
        return None


def _dataset_rows(
    name: str, config: str | None, split: str, column: str, revision: str | None, say: Callable[[str], None]
) -> Iterator[Row]:
    import datasets
    from huggingface_hub import constants

    at = f", revision {revision!r}" if revision else ""
    where = f"Hugging Face dataset {name!r} (config {config!r}, split {split!r}{at})"
    number = 0
    row: dict[str, Any] = {}
    say(f"Reading the {where} from {constants.ENDPOINT}, as much of it as is used")
    try:
        for number, row in enumerate(
            datasets.load_dataset(name, config, split=split, streaming=True, revision=revision), start=1
        ):
            if number == 1 and column not in row:
                break
            yield f"{where}, row {number}, {column!r}", row.get(column)
        else:
            return
    except Exception as error:  # datasets raises its own, huggingface_hub's, httpx's and OSError alike
        raise ValueError(
            f"{where}: could not be opened or read ({type(error).__name__}: {error}). Check the name and the network, "
            "or name local files as this model's text"
        ) from error
    raise ValueError(f"{where}: has no column {column!r}, only {', '.join(row)}")


def tokenise(
    documents: Iterable[str],
    tokenizer,
    context_size: int,
    max_tokens: int | None = None,
    long_documents: LongDocuments = "cut",
) -> list[Tensor]:
    """All that `tokens_of` yields. The arguments and errors are the same."""
    return list(tokens_of(documents, tokenizer, context_size, max_tokens, long_documents))


def tokens_of(
    documents: Iterable[str],
    tokenizer,
    context_size: int,
    max_tokens: int | None = None,
    long_documents: LongDocuments = "cut",
) -> Iterator[Tensor]:
    """Token ids of the documents, in order, each opened by BOS and no longer than the context, made as they are read.

    Special tokens that are written in a document are text. Where the tokenizer has one token alone for that text, its
    unknown token stands there, or nothing where it has none.

    Args:
        tokenizer: a Hugging Face tokenizer; its BOS token (or EOS, where it has no BOS) opens every document.
        context_size: the most tokens of a document, BOS counted.
        max_tokens: stop once the documents hold this many tokens, BOS left out; the last one is cut to fit.
        long_documents: what becomes of a document that is longer than the context: "cut" makes several of it, which
            follow each other, "truncate" keeps its beginning.

    Yields:
        1-d int64 tensors. Documents with fewer than two tokens (BOS and one more) are left out: nothing is measured
        at BOS, so they hold nothing.

    Raises:
        ValueError: `documents` is one string, no document with two tokens is left, `max_tokens` is below 1 or
            `context_size` below 2, or the tokenizer has neither BOS nor EOS, or no vocabulary beside them.
    """
    import torch

    bos = _opening_token(tokenizer)
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}, expected at least 1")
    if context_size < 2:
        raise ValueError(f"context_size is {context_size}, expected at least 2: BOS and one more token")
    if long_documents not in get_args(LongDocuments):
        raise ValueError(f"long_documents is {long_documents!r}, expected 'cut' or 'truncate'")
    if isinstance(documents, str):
        raise ValueError("documents is one string, expected several: a list of them, or [text] for one")
    if not isinstance(documents, Documents):
        documents = Documents((f"document {number}", document) for number, document in enumerate(documents, start=1))
    seen = kept = 0
    remaining = sys.maxsize if max_tokens is None else max_tokens
    for pieces in documents.in_pieces():
        seen += 1
        ids = token_ids(pieces, tokenizer)
        part = list(itertools.islice(ids, min(context_size - 1, remaining)))
        while part:
            kept += 1
            yield torch.tensor([bos, *part], dtype=torch.int64)
            remaining -= len(part)
            if long_documents == "truncate":
                break
            part = list(itertools.islice(ids, min(context_size - 1, remaining)))
        if remaining <= 0:
            break
    if not kept:
        missing = f"; {documents.missing} rows without a text were left out" if documents.missing else ""
        short = f"of {seen} documents, {seen} are shorter than two tokens with BOS counted"
        raise ValueError(f"no text to measure: {short if seen else 'there is no document'}{missing}")


def _opening_token(tokenizer) -> int:
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if bos is None:
        raise ValueError("the tokenizer has neither a BOS nor an EOS token to open a document with")
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):
        raise ValueError(
            "the tokenizer has no vocabulary, only special tokens; the model's folder or repository lacks its files, "
            "such as tokenizer.json"
        )
    return bos


def token_ids(pieces: Iterable[str], tokenizer) -> Iterator[int]:
    """The ids that the tokenizer gives for the joined pieces, without BOS or EOS, in bounded memory.

    The text is tokenised in windows of `WINDOW` characters that overlap by `OVERLAP`. Both windows must give the same
    tokens at the same places over the middle half of the overlap, far from where either begins or ends; the ids of the
    first are taken up to there, of the second from there. So the ids are those of the whole text wherever a token
    depends on fewer than `OVERLAP` / 4 characters to either side of it. In a longer run without a place to split (a
    million equal letters, say) windows may disagree: then the text is split where the first one ends. A tokenizer that
    is written in Python, which does not tell places, is given the whole text.
    """
    special = {*tokenizer.all_special_ids, tokenizer.bos_token_id, tokenizer.eos_token_id} - {tokenizer.unk_token_id}
    unknown = tokenizer.unk_token_id
    if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        special.add(unknown)
        unknown = None
    for ids in _windows(iter(pieces), tokenizer):
        if special.isdisjoint(ids):
            yield from ids
        else:
            in_place = ((unknown if token in special else token) for token in ids)
            yield from (token for token in in_place if token is not None)


def _windows(pieces: Iterator[str], tokenizer) -> Iterator[list[int]]:
    """The ids of `token_ids`, special tokens and all."""
    text = _filled("", pieces) if tokenizer.is_fast else "".join(pieces)
    if len(text) <= WINDOW or not tokenizer.is_fast:
        yield _encoded(text, tokenizer)["input_ids"]
        return
    step = WINDOW - OVERLAP
    tokens, first = _tokens(text, tokenizer), 0  # `first`: of those that were not yet given
    while len(text) > WINDOW:
        following = _tokens(text[step:], tokenizer)
        end, shared = _middle_of_overlap(tokens, step)
        start, again = _middle_of_overlap(following, 0)
        if shared and shared == again:
            yield [token for _, token in tokens[first:end]]
            text = _filled(text[step:], pieces)
            tokens, first = following, start
        else:
            yield [token for _, token in tokens[first:]]
            text = _filled(text[WINDOW:], pieces)
            tokens, first = _tokens(text, tokenizer), 0
    yield [token for _, token in tokens[first:]]


def _filled(text: str, pieces: Iterator[str]) -> str:
    """With pieces until it holds a window and the next, or all there are."""
    while len(text) < 2 * WINDOW - OVERLAP and (piece := next(pieces, None)) is not None:
        text += piece
    return text


def _tokens(text: str, tokenizer) -> list[tuple[int, int]]:
    """Of the text's first window: of each token the character where it begins, and its id."""
    encoded = _encoded(text[:WINDOW], tokenizer, return_offsets_mapping=True)
    return [(start, token) for (start, _), token in zip(encoded["offset_mapping"], encoded["input_ids"], strict=True)]


def _encoded(text: str, tokenizer, **settings):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False, **settings)


def _middle_of_overlap(tokens: list[tuple[int, int]], begin: int) -> tuple[int, list[tuple[int, int]]]:
    """The number of the first token in the middle half of the overlap that begins at a character, and those in it,
    their places counted from that character."""
    low, high = begin + OVERLAP // 4, begin + OVERLAP * 3 // 4
    numbers = [number for number, (start, _) in enumerate(tokens) if low <= start < high]
    return numbers[0] if numbers else len(tokens), [(tokens[n][0] - begin, tokens[n][1]) for n in numbers]


def first_tokens(documents: Sequence[Tensor], n_tokens: int) -> list[Tensor]:
    """The first documents, until they hold `n_tokens` tokens, BOS left out; the last one is cut to fit."""
    kept: list[Tensor] = []
    for document in documents:
        if n_tokens < 1:
            break
        kept.append(document[: n_tokens + 1])
        n_tokens -= len(kept[-1]) - 1
    return kept


def join_documents(documents: Sequence[Tensor]) -> dict[str, Tensor]:
    """Documents as two tensors that a file can hold: `tokens`, all of them end to end, and `lengths`, one each."""
    import torch

    return {"tokens": torch.cat(list(documents)), "lengths": torch.tensor([len(document) for document in documents])}


def split_documents(stored: Mapping[str, Tensor]) -> list[Tensor]:
    """What `join_documents` joined."""
    return list(stored["tokens"].split(stored["lengths"].tolist()))
