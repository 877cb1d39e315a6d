"""The review's numbers, on small pairs in a storage of their own."""

import json
import math
from functools import partial

import pytest
import torch

from benchmarks import review
from jsae_core import MLPInputs, load_language_model, train_pair
from jsae_core.measures import latent_accounting
from jsae_core.tensor_files import write_tensors
from jsae_core.text import first_tokens, join_documents

RECIPE = {"d_sae": 64, "k": 4, "steps": 2, "batch_tokens": 64}


@pytest.fixture(scope="module")
def language_model():
    return load_language_model(review.EMBEDDED)


@pytest.fixture(scope="module")
def documents():
    tokens = torch.randint(1, 2000, (6, 101), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    return list(tokens)


@pytest.fixture(scope="module")
def storage(language_model, documents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("storage")
    for layer in (1, 2):
        inputs = torch.cat(list(MLPInputs(language_model, documents, layer)))
        for variant, coefficient in (("traditional", 0.0), ("jsae", 1.0)):
            recipe = RECIPE | {"jacobian_coefficient": coefficient}
            pair = train_pair(inputs, language_model.mlp(layer), recipe, "stdlib-1m", layer)
            path = folder / variant / "sae_pair" / str(layer) / "stdlib-1m.safetensors"
            path.parent.mkdir(parents=True)
            write_tensors(pair.tensors(), path, {"cfg": json.dumps(pair.config.to_artifact())})
    (folder / "tokens").mkdir()
    write_tensors(join_documents(documents), folder / "tokens" / "stdlib-1m.safetensors")
    return folder


def test_a_number_that_comes_out_passes_and_a_wrong_one_fails(storage, language_model, documents, monkeypatch, capsys):
    bench = review.Bench(storage, language_model, "jsae", 1)
    stream = MLPInputs(language_model, first_tokens(documents, 600), 1)
    right = latent_accounting(bench.pair, stream)["completeness"]
    row = review.Row("completeness", 1, (right,), partial(review.accounting, "completeness"), review.JSAE, 1e-3)
    monkeypatch.setattr(review, "REVIEW", [row])
    assert review.main([str(storage)]) == 0
    assert "1 of 1 numbers" in capsys.readouterr().out
    for wrong in (right + 2e-3, right - 2e-3, math.nan):
        monkeypatch.setattr(review, "REVIEW", [row, row._replace(numbers=(wrong,))])
        assert review.main([str(storage)]) == 1
        said = capsys.readouterr().out
        assert "1 of 2 numbers" in said and said.count("| NO ") == 1


def test_every_number_of_the_review_is_taken_of_the_stored_pairs(storage, monkeypatch):
    monkeypatch.setattr(review, "CURVES", 60)
    found = review.compared(review.Benches(storage), review.REVIEW)
    assert len(found) == sum(len(row.numbers) for row in review.REVIEW)
    assert all(math.isfinite(one.ours) for one in found)


def test_without_the_demos_pairs_it_says_what_to_run(tmp_path, capsys):
    assert review.main([str(tmp_path)]) == 2
    assert "run `make demo` first" in capsys.readouterr().err
