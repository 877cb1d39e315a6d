"""All measures that go through a stream, on a tiny pair, and what interrupts and compares them.

Not here: what is to hold of them (`test_resuming_measures.py`, `test_sharding.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from jsae_core import LanguageModel, MLPInputs, PairConfig, SAEPair
from jsae_core.checkpoints import Checkpoint
from jsae_core.measures import (
    ablation,
    ablation_samples,
    connection_curves,
    connections,
    contexts,
    function_shapes,
    jacobian_measures,
    jacobian_sizes,
    kept_jacobians,
    latent_accountings,
    latent_activity,
    measured_quality,
    stream_contexts,
    strongest_connections,
)
from tests.jsae_core.builders import D_SAE, K, random_sae_tensors

BATCH_TOKENS = 24
KEPT_BYTES = 6000  # of Jacobians; the rest goes to a temporary file


FOUND: dict[int, pd.DataFrame] = {}  # by pair


def curves(pair, stream, checkpoint=None):
    """Of connections that are found once."""
    if id(pair) not in FOUND:
        FOUND[id(pair)] = strongest_connections(pair, stream, least_active=2)
    return connection_curves(pair, stream, FOUND[id(pair)], 3, checkpoint=checkpoint)


MEASURES = {
    "jacobian_sizes": lambda pair, stream, **kept: jacobian_sizes(pair, stream, memory_bytes=KEPT_BYTES, **kept),
    "jacobian_measures": lambda pair, stream, **kept: jacobian_measures(pair, stream, at="reconstruction", **kept),
    "ablation_samples": lambda pair, stream, **kept: ablation_samples(
        pair, stream, 900, doses=["unit", "whole"], **kept
    ),
    "function_shapes": lambda pair, stream, **kept: function_shapes(
        pair, stream, 300, n_curves=20, rules=["published", "relative"], **kept
    ),
    "latent_accountings": lambda pair, stream, **kept: latent_accountings(
        pair, stream, orders=["attribution", "random", "ablation"], **kept
    ),
    "jacobian_measures, published": lambda pair, stream, **kept: jacobian_measures(
        pair, stream, convention="published", **kept
    ),
    "latent_activity": latent_activity,
    "strongest_connections": lambda pair, stream, **kept: strongest_connections(pair, stream, 7, 2, 3, **kept),
    "connection_curves": curves,
    "stream_contexts": lambda pair, stream, **kept: stream_contexts(pair, stream, 5, **kept),
    "measured_quality": lambda pair, stream, **kept: measured_quality(
        pair, stream.language_model, stream.documents, stream.batch_tokens, sources=stream.sources, **kept
    ),
}


def pair_on(lm: LanguageModel) -> SAEPair:
    tensors = random_sae_tensors(lm.d_model, dtype=torch.float32)
    return SAEPair.from_tensors(tensors, PairConfig("tiny", 1, lm.d_model, D_SAE, K, dtype="float32"), lm)


def random_pair_like(pair: SAEPair) -> SAEPair:
    tensors = pair.tensors()
    return SAEPair.from_tensors(tensors | {"_b_enc": tensors["_b_enc"] + 1e-3}, pair.config)


def random_documents(n_vocabulary: int, n: int = 60, seed: int = 3) -> list[Tensor]:
    """Of 1 to 20 tokens besides BOS."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 21, (n,), generator=generator).tolist()
    return [
        torch.cat([torch.tensor([0]), torch.randint(1, n_vocabulary, (length,), generator=generator)])
        for length in lengths
    ]


def divide_into_steps(monkeypatch) -> None:
    """What small inputs would be done with at once, is done in several steps."""
    monkeypatch.setattr(ablation, "SAMPLES_AT_ONCE", 60)
    monkeypatch.setattr("jsae_core.measures.linearity.inputs_at_once", lambda sae: 50)
    monkeypatch.setattr(connections, "SUMS_AT_ONCE", 6 * D_SAE)
    monkeypatch.setattr(contexts, "ROWS_AT_ONCE", 300)
    monkeypatch.setattr(contexts, "LOGITS_AT_ONCE", 2000)
    monkeypatch.setattr(kept_jacobians, "ROWS_AT_ONCE", 300)


class Interrupted(Exception):
    pass


class Ends(Checkpoint):
    """Saved after every `every` items; ends the computation after so many more saves."""

    def __init__(self, path: Path, saves: int, every: int = 1, **kwargs):
        super().__init__(path, **kwargs)
        self.left, self.every, self.asked = [saves], every, [0]

    def due(self) -> bool:
        self.asked[0] += 1
        return self.asked[0] % self.every == 0

    def save(self, *state):
        super().save(*state)
        self.left[0] -= 1
        if not self.left[0]:
            raise Interrupted


def assert_same(one, other) -> None:
    """To the last bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for name, value in one.items():
            assert_same(value, other[name])
    elif isinstance(one, (tuple, list)):
        assert len(one) == len(other)
        for value, of_other in zip(one, other, strict=True):
            assert_same(value, of_other)
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.numpy().tobytes() == other.numpy().tobytes()
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype and one.tobytes() == other.tobytes()
    elif isinstance(one, pd.DataFrame):
        assert list(one) == list(other) and one.dtypes.equals(other.dtypes)
        pd.testing.assert_frame_equal(one, other, check_exact=True)
        for name in [name for name, kind in one.dtypes.items() if kind == "object"]:
            assert_same(one[name].tolist(), other[name].tolist())
    elif isinstance(one, float):
        assert one == other or (one != one and other != other)
    else:
        assert one == other


@dataclass
class Fails:
    """A stream that fails when its item of a number is asked for."""

    stream: MLPInputs
    at: int | None
    given: list[int] = field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __iter__(self) -> Iterator[Tensor]:
        return self.starting_at(0)

    def starting_at(self, first: int) -> Iterator[Tensor]:
        for number, item in enumerate(self.stream.starting_at(first), start=first):
            if number == self.at:
                raise Interrupted
            self.given.append(number)
            yield item
