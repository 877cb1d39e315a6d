"""Training that was killed goes on from its checkpoint and ends as if nothing had happened."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from jsae_core import TrainingConfig, train_pair
from jsae_core.checkpoints import Checkpoint
from jsae_core.recipe import AuxK
from tests.jsae_core.builders import D_MODEL, D_SAE, K, random_inputs, random_mlp
from tests.killing import killed_again_and_again

RECIPE = TrainingConfig(d_sae=D_SAE, k=K, jacobian_coefficient=1.0, steps=150, batch_tokens=16, learning_rate=0.01)
# 150 batches of 16 tokens, through a buffer of 256
LONGER_THAN_THE_BUFFER = replace(RECIPE, buffer_tokens=256)


class Interrupted(Exception):
    pass


@dataclass
class Stream:
    """Pieces of random tokens, of many sizes, computed when they are read; some hold none."""

    n_pieces: int = 250
    seed: int = 0
    computed: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[Tensor]:
        return self.starting_at(0)

    def starting_at(self, first: int) -> Iterator[Tensor]:
        for number in range(first, self.n_pieces):
            self.computed.append(number)
            yield random_inputs(number * 7 % 25, seed=1000 * self.seed + number)


def generated() -> Iterator[Tensor]:
    """The same, but it can only be read from its beginning."""
    yield from Stream()


STREAMS = {"a tensor": lambda: random_inputs(200), "a stream": Stream, "a generator": generated}


def train(folder: Path, stream="a stream", recipe: TrainingConfig = LONGER_THAN_THE_BUFFER) -> None:
    checkpoint = Checkpoint(folder / "checkpoint.safetensors", seconds=0)
    train_pair(STREAMS[stream](), random_mlp("gelu"), recipe, checkpoint=checkpoint).save(folder / "pair")
    checkpoint.remove()


def weights(folder: Path) -> bytes:
    return (folder / "pair" / "sae_weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("stream", "recipe"),
    [("a tensor", RECIPE), ("a stream", LONGER_THAN_THE_BUFFER), ("a generator", LONGER_THAN_THE_BUFFER)],
    ids=["a tensor", "a stream", "a generator"],
)
def test_training_that_is_killed_again_and_again_ends_bit_for_bit_as_one_that_was_not(tmp_path, stream, recipe):
    recipe = replace(recipe, steps=60)
    for folder in ("before", "whole"):  # the first one in a process takes longer
        began = time.monotonic()
        train(tmp_path / folder, stream, recipe)
    killed_again_and_again(4, (time.monotonic() - began) / 3, 0, train, tmp_path / "killed", stream, recipe)
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert not (tmp_path / "killed" / "checkpoint.safetensors").exists()


def stopped_at(step: int, checkpoint: Checkpoint, stream=None, recipe=LONGER_THAN_THE_BUFFER, mlp=None) -> None:
    """Train until this step has been saved."""

    class Stopping(Checkpoint):
        def save(self, tensors, values):
            super().save(tensors, values)
            if values["step"] == step:
                raise Interrupted

    stopping = Stopping(checkpoint.path, checkpoint.digest, seconds=0)
    with pytest.raises(Interrupted):
        train_pair(stream or Stream(), mlp or random_mlp("gelu"), recipe, checkpoint=stopping)


def same(one, other) -> bool:
    tensors = other.tensors()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in one.tensors().items())


def test_the_tokens_since_each_latent_was_active_are_gone_on_with(tmp_path):
    auxk = replace(LONGER_THAN_THE_BUFFER, d_sae=60, auxk=AuxK(k=8, dead_after_tokens=160))
    checkpoint = Checkpoint(tmp_path / "it")
    stopped_at(40, checkpoint, recipe=auxk)
    resumed = train_pair(Stream(), random_mlp("gelu"), auxk, checkpoint=checkpoint)
    assert same(resumed, train_pair(Stream(), random_mlp("gelu"), auxk))
    without = replace(auxk, auxk=None)
    assert not same(resumed, train_pair(Stream(), random_mlp("gelu"), without))


@pytest.mark.parametrize("step", [1, 7, 8, 9, 60, 149])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_training_goes_on_from_any_step(tmp_path, step, gated):
    mlp, said = random_mlp("gelu", gated), []
    checkpoint = Checkpoint(tmp_path / "it", say=said.append)

    stopped_at(step, checkpoint, mlp=mlp)
    reports = []
    resumed = train_pair(Stream(), mlp, LONGER_THAN_THE_BUFFER, report=reports.append, checkpoint=checkpoint)
    assert said == ["going on from the checkpoint"]
    assert {progress.spared for progress in reports} == {step} and reports[0].step > step
    assert same(resumed, train_pair(Stream(), mlp, LONGER_THAN_THE_BUFFER))


def test_a_stream_that_can_start_later_computes_nothing_again_of_what_was_read_but_its_first_piece(tmp_path):
    checkpoint = Checkpoint(tmp_path / "it")
    stopped, resumed = Stream(), Stream()
    stopped_at(60, checkpoint, stopped)
    train_pair(resumed, random_mlp("gelu"), LONGER_THAN_THE_BUFFER, checkpoint=checkpoint)
    again = set(resumed.computed) & set(stopped.computed)
    assert resumed.computed[0] == 0 and again <= {0, 1, stopped.computed[-1]}  # the first piece holds no token


CHANGES = {
    "another seed": {"recipe": replace(LONGER_THAN_THE_BUFFER, seed=1)},
    "another lambda": {"recipe": replace(LONGER_THAN_THE_BUFFER, jacobian_coefficient=2.0)},
    "more steps": {"recipe": replace(LONGER_THAN_THE_BUFFER, steps=151)},
    "another MLP": {"mlp": random_mlp("gelu", seed=5)},
    "another activation": {"mlp": random_mlp("relu")},
    "other inputs": {"stream": Stream(seed=3)},
    "another digest": {"digest": "other text"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_training_of_something_else_begins_anew_with_a_word(tmp_path, change):
    stopped_at(10, Checkpoint(tmp_path / "it", "text"))
    said, changed = [], CHANGES[change]
    mlp, recipe = changed.get("mlp", random_mlp("gelu")), changed.get("recipe", LONGER_THAN_THE_BUFFER)
    checkpoint = Checkpoint(tmp_path / "it", changed.get("digest", "text"), say=said.append)
    made = train_pair(changed.get("stream", Stream()), mlp, recipe, checkpoint=checkpoint)
    assert len(said) == 1 and "Beginning anew" in said[0]
    assert same(made, train_pair(changed.get("stream", Stream()), mlp, recipe))


def test_tokens_that_changed_late_in_a_stream_that_fits_the_buffer_are_noticed(tmp_path):
    pieces, said = list(random_inputs(100).split(10)), []
    stopped_at(10, Checkpoint(tmp_path / "it"), pieces, RECIPE)
    pieces[7] = pieces[7] + 1e-9
    checkpoint = Checkpoint(tmp_path / "it", say=said.append)
    made = train_pair(pieces, random_mlp("gelu"), RECIPE, checkpoint=checkpoint)
    assert "the stream of MLP inputs has changed" in said[-1]
    assert same(made, train_pair(pieces, random_mlp("gelu"), RECIPE))


@pytest.mark.parametrize("length", [0, 100, -1])
def test_training_from_a_truncated_checkpoint_begins_anew_with_a_word(tmp_path, length):
    stopped_at(10, Checkpoint(tmp_path / "it"))
    (tmp_path / "it").write_bytes((tmp_path / "it").read_bytes()[:length])
    said = []
    made = train_pair(
        Stream(), random_mlp("gelu"), LONGER_THAN_THE_BUFFER, checkpoint=Checkpoint(tmp_path / "it", say=said.append)
    )
    assert len(said) == 1 and "Beginning anew" in said[0]
    assert same(made, train_pair(Stream(), random_mlp("gelu"), LONGER_THAN_THE_BUFFER))


def test_checkpoints_on_the_way_change_nothing(tmp_path):
    with_checkpoints = train_pair(
        Stream(), random_mlp("gelu"), LONGER_THAN_THE_BUFFER, checkpoint=Checkpoint(tmp_path / "it", seconds=0)
    )
    assert same(with_checkpoints, train_pair(Stream(), random_mlp("gelu"), LONGER_THAN_THE_BUFFER))


@pytest.mark.parametrize("recipe", [RECIPE, LONGER_THAN_THE_BUFFER], ids=["fits the buffer", "longer"])
def test_an_empty_stream_is_refused_with_a_checkpoint_too(tmp_path, recipe):
    with pytest.raises(ValueError, match="is empty"):
        train_pair([torch.zeros(0, D_MODEL)], random_mlp("gelu"), recipe, checkpoint=Checkpoint(tmp_path / "it"))
