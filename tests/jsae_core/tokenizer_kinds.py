"""Small tokenizers of the kinds that language models come with, trained on a little text."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GPTNeoXTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from jsae_core.text import standard_library

SPECIAL = ["<unk>", "<s>", "</s>"]


def sample() -> str:
    """Some hundred thousand characters of Python, and of other scripts."""
    passages = standard_library("held_out")
    return "".join(next(passages) + " Füße, 漢字仮名 🙂👩‍👩‍👧 \u00a0" for _ in range(200))


def _trained(model, trainer, pre_tokenizer=None, normalizer=None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(_lines(), trainer)
    return tokenizer


def _lines() -> Iterator[str]:
    yield from sample()[:40_000].splitlines(keepends=True)


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _gpt_neox() -> PreTrainedTokenizerBase:
    """Byte-level BPE, as Pythia has."""
    trainer = trainers.BpeTrainer(
        show_progress=False,
        vocab_size=600,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made = json.loads(_trained(models.BPE(), trainer, pre_tokenizers.ByteLevel(add_prefix_space=False)).to_str())
    return GPTNeoXTokenizer(vocab=made["model"]["vocab"], merges=[tuple(pair) for pair in made["model"]["merges"]])


def _llama() -> PreTrainedTokenizerBase:
    """BPE over characters, bytes where it has none, spaces as ▁ and one more at the beginning."""
    trainer = trainers.BpeTrainer(
        show_progress=False,
        vocab_size=800,
        special_tokens=SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)],
        limit_alphabet=120,
    )
    made = json.loads(_trained(models.BPE(), trainer, pre_tokenizers.Metaspace()).to_str())
    return LlamaTokenizer(vocab=made["model"]["vocab"], merges=[tuple(pair) for pair in made["model"]["merges"]])


def _unigram() -> PreTrainedTokenizerBase:
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return _fast(_trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), normalizers.NFKC()))


def _word_piece() -> PreTrainedTokenizerBase:
    trainer = trainers.WordPieceTrainer(show_progress=False, vocab_size=600, special_tokens=SPECIAL)
    tokenizer = _trained(
        models.WordPiece(unk_token="<unk>"), trainer, pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer()
    )
    return _fast(tokenizer)


def _word_level() -> PreTrainedTokenizerBase:
    trainer = trainers.WordLevelTrainer(show_progress=False, vocab_size=600, special_tokens=SPECIAL)
    return _fast(_trained(models.WordLevel(unk_token="<unk>"), trainer, pre_tokenizers.WhitespaceSplit()))


KINDS = {
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "unigram": _unigram,
    "word_piece": _word_piece,
    "word_level": _word_level,
}


@functools.cache
def tokenizer_of_kind(kind: str) -> PreTrainedTokenizerBase:
    return KINDS[kind]()
