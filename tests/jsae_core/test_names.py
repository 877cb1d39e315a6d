"""Suggestions for names that do not exist."""

import pytest

from jsae_core.names import advice


@pytest.mark.parametrize(
    ("name", "names", "said"),
    [
        ("tahn", ["l1", "tanh"], "did you mean tanh?"),
        ("JSAE", ["jsae", "traditional"], "did you mean jsae?"),
        ("pair_qualty", ["pair_quality", "jsae/pair_quality"], "did you mean pair_quality?"),
        ("l1n", ["l1", "l1nb", "l1nt", "tanh"], "did you mean l1nb or l1nt?"),
        ("b", ["bA", "bB", "Bc"], "did you mean bA, bB or Bc?"),
        (7, [0, 1], "expected one of 0, 1"),
        ("anything", [], "none are defined yet"),
    ],
)
def test_a_name_is_told_the_nearest_whatever_its_case_else_all_there_are(name, names, said):
    assert advice(name, names) == said
