import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jsae_core import MLPInputs, load_language_model
from jsae_core.activations import FirstDocuments, packed, with_documents
from jsae_core.measures import jacobian_sizes, latent_accounting, latent_activity, pair_quality, reconstruction_quality
from jsae_core.memory import MemoryBudget
from tests.jsae_core.builders import random_inputs, random_pair, save_language_model
from tests.jsae_core.streamed_measures import pair_on

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=12)


def documents_of(lengths: list[int]) -> list[torch.Tensor]:
    """BOS (0), then tokens that say which document and position they are."""
    return [
        torch.tensor([0] + [1 + (7 * n + position) % 90 for position in range(length - 1)])
        for n, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    return load_language_model(save_language_model(tmp_path_factory.mktemp("model")))


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 60))
def test_packing_keeps_every_document_whole_and_in_order(lengths, batch_tokens):
    documents = documents_of(lengths)
    rows = [row for batch in packed(documents, batch_tokens) for row in batch.tokens]
    assert [row[: len(document)].tolist() for row, document in zip(rows, documents, strict=True)] == [
        document.tolist() for document in documents
    ]


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 60))
def test_neither_bos_nor_padding_is_measured_and_everything_else_is(lengths, batch_tokens):
    documents = documents_of(lengths)
    measured = torch.cat([batch.tokens[batch.measured] for batch in packed(documents, batch_tokens)])
    assert measured.tolist() == [token for document in documents for token in document[1:].tolist()]


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 60))
def test_a_batch_exceeds_its_token_limit_only_for_one_long_document(lengths, batch_tokens):
    batches = list(packed(documents_of(lengths), batch_tokens))
    assert all(batch.tokens.numel() <= batch_tokens or len(batch.tokens) == 1 for batch in batches)


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 60))
def test_a_batch_is_closed_only_when_the_next_document_does_not_fit(lengths, batch_tokens):
    batches = list(packed(documents_of(lengths), batch_tokens))
    for batch, following in zip(batches, batches[1:], strict=False):
        first = int(following.measured[0].sum()) + 1
        assert (len(batch.tokens) + 1) * max(batch.tokens.shape[1], first) > batch_tokens


def test_no_documents_give_no_batches():
    assert list(packed([], 10)) == []


def test_the_stream_is_each_document_s_own_mlp_inputs_without_bos(language_model):
    documents = documents_of([5, 2, 9, 1, 7])
    stream = torch.cat(list(MLPInputs(language_model, documents, 1, batch_tokens=20)))
    alone = torch.cat([language_model.mlp_activations(document, 1)[0][1:] for document in documents])
    torch.testing.assert_close(stream, alone, rtol=1e-5, atol=1e-5)


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 60))
def test_the_stream_does_not_depend_on_the_batch_size(language_model, lengths, batch_tokens):
    documents = documents_of(lengths)
    packed_small = torch.cat(list(MLPInputs(language_model, documents, 2, batch_tokens)))
    all_at_once = torch.cat(list(MLPInputs(language_model, documents, 2, batch_tokens=10**6)))
    torch.testing.assert_close(packed_small, all_at_once, rtol=1e-5, atol=1e-5)


def test_a_stream_can_be_read_again_and_gives_the_same(language_model):
    stream = MLPInputs(language_model, documents_of([5, 4]), 0, batch_tokens=5)
    first, second = list(stream), list(stream)
    assert len(first) == 2 and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@given(lengths=LENGTHS)
def test_a_stream_knows_how_many_rows_it_gives(language_model, lengths):
    stream = MLPInputs(language_model, documents_of(lengths), 0)
    assert stream.n_tokens == sum(map(len, stream))


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 60))
def test_each_row_of_a_stream_is_told_with_its_document(language_model, lengths, batch_tokens):
    stream = MLPInputs(language_model, documents_of(lengths), 0, batch_tokens)
    numbers = [number for item, documents in with_documents(stream) for number in documents.tolist()]
    assert numbers == [number for number, length in enumerate(lengths) for _ in range(length - 1)]
    assert all(len(item) == len(documents) for item, documents in with_documents(stream))


def test_a_stream_that_names_no_documents_has_none():
    stream = [torch.zeros(3, 2), torch.zeros(0, 2), torch.zeros(2, 2)]
    assert [(len(item), documents) for item, documents in with_documents(stream)] == [(3, None), (0, None), (2, None)]


class Counting:
    """A language model that counts how often it is run."""

    def __init__(self, language_model):
        self._language_model, self.runs, self.device = language_model, 0, language_model.device
        self.check_layer = language_model.check_layer

    def mlp_activations(self, tokens, layer):
        self.runs += 1
        return self._language_model.mlp_activations(tokens, layer)


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 60), room=st.integers(0, 100))
def test_what_a_stream_has_room_for_is_computed_once_and_every_read_gives_the_same(
    language_model, lengths, batch_tokens, room
):
    documents = documents_of(lengths)
    plain = list(MLPInputs(language_model, documents, 1, batch_tokens))
    token_bytes = 4 * language_model.d_model
    counting = Counting(language_model)
    stream = MLPInputs(counting, documents, 1, batch_tokens, MemoryBudget(language_model.device, room * token_bytes))
    left, fitting = room, 0
    for batch in plain:
        if len(batch) <= left:
            left, fitting = left - len(batch), fitting + 1
    for read in range(1, 4):
        assert all(torch.equal(a, b) for a, b in zip(plain, stream, strict=True))
        assert counting.runs == fitting + read * (len(plain) - fitting)


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 60), n=st.integers(0, 14))
def test_the_first_documents_of_a_stream_are_its_beginning_and_no_more_is_computed(
    language_model, lengths, batch_tokens, n
):
    documents = documents_of(lengths)
    counting = Counting(language_model)
    stream = MLPInputs(counting, documents, 1, batch_tokens)
    first = FirstDocuments(stream, n)
    rows = sum(first.document_lengths)
    read = [torch.empty(0, language_model.d_model), *first]
    runs, batches = counting.runs, list(stream)
    assert torch.equal(torch.cat(read), torch.cat([read[0], *batches])[:rows])
    ends = torch.tensor([len(batch) for batch in batches]).cumsum(0)
    assert runs == (0 if rows == 0 else 1 + int((ends < rows).sum()))
    assert first.document_lengths == [len(document) - 1 for document in documents[:n]]


@pytest.mark.parametrize("kept", [False, True])
def test_a_stream_that_starts_later_gives_the_rest_of_the_same(language_model, kept):
    budget = MemoryBudget(torch.device("cpu"), 10**9) if kept else None
    stream = MLPInputs(language_model, documents_of([5, 4, 7, 3]), 0, batch_tokens=8, budget=budget)
    whole = list(stream)
    assert len(whole) == 4
    for first in range(6):
        rest = list(stream.starting_at(first))
        assert len(rest) == max(0, 4 - first)
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[first:], strict=True))


@pytest.mark.parametrize("measure", [jacobian_sizes, latent_accounting, latent_activity, reconstruction_quality])
def test_a_tensor_in_the_place_of_a_stream_is_refused_saying_what_a_stream_is(measure):
    pair = random_pair()
    with pytest.raises(ValueError, match=r"gives a tensor of shape \(8,\); expected tensors \[n_tokens, d_model\]"):
        measure(pair, random_inputs(5))


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_stream_at_a_layer_that_the_model_does_not_have_is_refused_when_it_is_made(language_model, layer):
    with pytest.raises(ValueError, match=f"has layers 0 to 2; there is no layer {layer}"):
        MLPInputs(language_model, documents_of([5]), layer)


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ("a text", "str"),
        ([0, 5, 7], "list"),
        (torch.zeros(2, 3, dtype=torch.int64), r"tensor of shape \(2, 3\)"),
        (torch.zeros(0, dtype=torch.int64), r"tensor of shape \(0,\)"),
    ],
    ids=["text", "list", "two dimensions", "not even BOS"],
)
def test_documents_that_are_no_token_tensors_are_refused_naming_what_makes_them(language_model, wrong, found):
    documents, pair = [*documents_of([5]), wrong], pair_on(language_model)
    for use in (lambda: MLPInputs(language_model, documents, 1), lambda: pair_quality(pair, language_model, documents)):
        with pytest.raises(ValueError, match=f"document 2 is a {found}; expected a 1-d tensor .*tokenise"):
            use()
