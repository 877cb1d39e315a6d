"""Train the embedded language model: `python -m jsae_core.embedded_model.train`.

A GPT-NeoX model (the Pythia architecture) small enough to ship, on the training files of Python's standard library.
Writes the model and its tokenizer in Hugging Face format beside this file and prints the losses that README.md quotes.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from jsae_core.text import Split, standard_library_files

BOS = "<|endoftext|>"
VOCABULARY = 2048
CONTEXT = 256
BATCH_DOCUMENTS = 24
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 200
WEIGHT_DECAY = 0.05


def read_files(split: Split) -> list[str]:
    return [path.read_text(encoding="utf-8", errors="replace") for path in standard_library_files(split)]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, unk_token=BOS, model_max_length=CONTEXT
    )


def windows(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """The files joined end to end and cut into windows [n, CONTEXT], each opened by BOS as measured documents are."""
    ids = [token for text in texts for token in tokenizer(text, verbose=False)["input_ids"]]
    usable = len(ids) // (CONTEXT - 1) * (CONTEXT - 1)
    body = torch.tensor(ids[:usable]).view(-1, CONTEXT - 1)
    return torch.cat([torch.full((len(body), 1), tokenizer.bos_token_id), body], dim=1)


def learning_rate(step: int, steps: int) -> float:
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    return LEARNING_RATE * warm_up * 0.5 * (1 + math.cos(math.pi * step / steps))


@torch.no_grad()
def mean_loss(model: GPTNeoXForCausalLM, documents: torch.Tensor) -> float:
    losses = [model(input_ids=batch, labels=batch).loss.item() for batch in documents.split(64)[:-1]]
    return sum(losses) / len(losses)


def train(steps: int, output: Path) -> None:
    torch.manual_seed(0)
    train_texts, held_out_texts = read_files("train"), read_files("held_out")
    tokenizer = train_tokenizer(train_texts)
    documents, held_out = windows(train_texts, tokenizer), windows(held_out_texts, tokenizer)
    print(f"{documents.numel():,} training tokens, {held_out.numel():,} held-out tokens")

    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.bos_token_id,
        )
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
        betas=(0.9, 0.98),
    )

    started = time.monotonic()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < BATCH_DOCUMENTS:
            order = torch.randperm(len(documents))
        batch, order = documents[order[:BATCH_DOCUMENTS]], order[BATCH_DOCUMENTS:]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            elapsed = time.monotonic() - started
            print(
                f"step {step + 1}/{steps}  loss {loss.item():.3f}  {elapsed:.0f} s, "
                f"{elapsed / (step + 1) * (steps - step - 1):.0f} s left",
                flush=True,
            )

    model.half().save_pretrained(output)  # float16 halves the file; the losses below are those of the rounded weights
    tokenizer.save_pretrained(output)
    model.float().eval()
    print(f"training loss {mean_loss(model, documents[:2000]):.3f}, held-out loss {mean_loss(model, held_out):.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    train(arguments.steps, arguments.output)
