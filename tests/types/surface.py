"""What a type checker sees of the public names: checked by mypy in `make check`, never run."""

from collections.abc import Callable
from typing import assert_type

import pandas as pd
import torch
from torch import Tensor

from jsae_core import (
    LanguageModel,
    MLPInputs,
    PairConfig,
    SAEPair,
    Sandwich,
    load_language_model,
    run_sandwich,
    train_pair,
)
from jsae_core.measures import (
    jacobian_histogram,
    latent_accounting,
    latent_connections,
    latent_contexts,
    pair_quality,
    share_above,
)

pair = SAEPair.load("somewhere")
assert_type(pair, SAEPair)
assert_type(pair.config, PairConfig)
sandwich = run_sandwich(pair, torch.zeros(2, 3))
assert_type(sandwich, Sandwich)
assert_type(sandwich.jacobian, Tensor)
language_model = load_language_model("somewhere")
assert_type(language_model, LanguageModel)
stream = MLPInputs(language_model, [torch.zeros(4, dtype=torch.int64)], layer=1)
assert_type(jacobian_histogram(pair, stream), dict[str, Tensor])
assert_type(latent_accounting(pair, stream), dict[str, float])
documents = [torch.zeros(4, dtype=torch.int64)]
assert_type(latent_connections(pair, stream, n_strongest=5), pd.DataFrame)
assert_type(latent_contexts(pair, language_model, documents, 1), pd.DataFrame)
assert_type(pair_quality(pair, language_model, [torch.zeros(4, dtype=torch.int64)]), dict[str, float])
assert_type(share_above(jacobian_histogram(pair, stream), 0.01), float)
assert_type(train_pair(torch.zeros(2, 3), language_model.mlp(1), {"d_sae": 8, "k": 2}), SAEPair)
measure: Callable[[SAEPair, list[Tensor]], dict[str, float]] = latent_accounting
