"""The errors that are compared, on a small pair and few files."""

import re

import pytest
import torch

from benchmarks import long_documents
from jsae_core import MLPInputs, load_language_model, train_pair
from jsae_core.measures import jacobian_measures, latent_accounting
from tests.benchmarks.test_review import RECIPE


@pytest.fixture(scope="module")
def language_model():
    return load_language_model(long_documents.EMBEDDED)


@pytest.fixture(scope="module")
def files(language_model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_documents, "FILES", 4)
        return long_documents.long_files(language_model, 2)


@pytest.fixture(scope="module")
def pair(language_model, files):
    inputs = torch.cat(list(MLPInputs(language_model, files[0], 1)))
    return train_pair(inputs, language_model.mlp(1), RECIPE | {"jacobian_coefficient": 1.0}, "stdlib-1m", 1)


def test_files_give_their_first_pieces_each_as_long_as_the_context(language_model, files):
    assert len(files) == 4 and {len(piece) for pieces in files for piece in pieces} == {language_model.context_size}


def test_errors_by_source_are_those_that_measures_give_if_told_the_sources(pair, language_model, files):
    documents, sources = [piece for pieces in files for piece in pieces], [0, 0, 1, 1, 2, 2, 3, 3]
    found = long_documents.measured(pair, language_model, documents)
    told = MLPInputs(language_model, documents, 1, sources=sources)
    expected = {name: of.standard_error for name, of in jacobian_measures(pair, told).items()}
    expected["accounted_share"] = latent_accounting(pair, told)["accounted_share_se"]
    for name in ("above_0.01", "l1_over_l2", "accounted_share"):
        by_source = long_documents.error_by_source(found[name], torch.tensor(sources))
        assert by_source == pytest.approx(expected[name], rel=1e-4)


def test_passages_are_the_demos_first_and_of_the_files_that_hold_them(language_model):
    documents, sources = long_documents.passages(language_model, 500)
    assert sum(len(document) - 1 for document in documents) == 500 and len(documents) == len(sources)


def test_the_table_has_a_row_for_each_number_and_says_how_much_larger_the_others_are():
    errors = {"one": dict.fromkeys(long_documents.NUMBERS, 0.5), "other": dict.fromkeys(long_documents.NUMBERS, 1.0)}
    text = long_documents.as_text(errors, "one")
    assert len(re.findall(r"\| 0.5 +\| 1 +\| 2.00 ", text)) == len(long_documents.NUMBERS)


def test_without_the_demos_pairs_it_says_what_to_run(tmp_path, capsys):
    assert long_documents.main([str(tmp_path)]) == 2
    assert "run `make demo` first" in capsys.readouterr().err
