"""Training as the catalog's recipes say: the text streams, and what it says on the way."""

import re
from pathlib import Path

import pytest

import jsae_core
from jsae_assets.assets import training
from jsae_assets.catalog_file import CatalogError, load_catalog
from jsae_assets.resources import Compute
from jsae_core.pace import duration
from tests.jsae_assets.conftest import RECIPE, failures, write_catalog
from tests.jsae_core.test_artifacts import records

PAIR = "jsae/sae_pair"
STREAMED = RECIPE | {"jacobian_coefficient": 1.0, "buffer_tokens": 500, "steps": 11, "batch_tokens": 250}


@pytest.fixture
def streamed_entries(entries):
    """The tiny catalog, where the JSAE is trained on more tokens than the buffer holds."""

    def make(**changes) -> dict:
        made = entries()
        made["pairs"][1]["train"]["config"] = STREAMED | changes
        return made

    return make


def test_a_text_longer_than_the_buffer_is_read_only_as_far_as_training_is(streamed_entries, graph, monkeypatch):
    read, when_training_began = 0, []
    documents, train = training.documents, jsae_core.train_pair

    def counted(*args):
        nonlocal read
        for document in documents(*args):
            read += 1
            yield document

    def train_pair(stream, *args, **kwargs):
        next(iter(stream))
        when_training_began.append(read)
        return train(stream, *args, **kwargs)

    monkeypatch.setattr(training, "documents", counted)
    monkeypatch.setattr(jsae_core, "train_pair", train_pair)
    tiny = graph(streamed_entries(), compute=Compute(device="cpu", batch_tokens=64))
    assert tiny.measure(1, PAIR).success
    # the language model is given two documents at once, and one more is read to see that it does not fit
    assert when_training_began[0] < 5 and read > 40


def test_a_streamed_text_that_is_too_short_is_refused_saying_how_much_it_holds(streamed_entries, graph):
    changed = streamed_entries(steps=44)
    changed["pairs"][1]["train"]["tokens"] = 44 * 250  # more than there are, but not than the file has bytes
    (message,) = failures(graph(changed).measure(1, PAIR)).values()
    assert re.search(r"the text 'train' holds [\d,]+ tokens, but the recipe trains on 11,000", message)


def test_a_recipe_whose_steps_take_more_tokens_than_it_streams_is_refused_before_anything_is_trained(
    streamed_entries, tmp_path
):
    with pytest.raises(CatalogError, match=r"tokens is 3,000, but 13 steps of 250 tokens need 3,250"):
        load_catalog(write_catalog(tmp_path, streamed_entries(steps=13)))
    load_catalog(write_catalog(tmp_path, streamed_entries(steps=12)))
    load_catalog(write_catalog(tmp_path, streamed_entries(steps=13, buffer_tokens=3000)))  # in epochs


def test_progress_says_steps_tokens_rate_losses_and_the_time_left(streamed_entries, graph):
    tiny = graph(streamed_entries())
    said = tiny.messages(tiny.measure(1, PAIR))
    number = r"[\d.e-]+"
    assert re.search(
        rf"step 11/11, 2,750 tokens, [\d,]+ tokens/s: input {number}, output {number}, mean \|J\| {number}; about 0 s",
        said,
    )


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5900, "98 min"), (6000, "1.7 h"), (36000, "10 h"), (1e6, "278 h")],
)
def test_durations_are_said_with_two_digits_or_so(seconds, said):
    assert duration(seconds) == said


@pytest.mark.usefixtures("no_wandb_process_left")
def test_training_is_logged_in_wandb_offline_where_a_project_is_named(streamed_entries, graph, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    compute = Compute(device="cpu", wandb_project="lab/training")
    tiny = graph(streamed_entries(), compute=compute)
    assert tiny.measure(1, PAIR).success
    folder = Path(tiny.storage).parent / "wandb"
    (run_directory,) = folder.rglob("offline-run-*")
    logged = list(records(run_directory))
    (run,) = [record.run for record in logged if record.HasField("run")]
    assert (run.entity, run.project, run.display_name) == ("lab", "training", "tiny layer 1 λ 1")
    rows = [
        {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        for record in logged
        if record.HasField("history")
    ]
    assert [int(row["tokens"]) for row in rows] == [250 * step for step in range(1, 12)]
    assert all(float(row[name]) > 0 for row in rows for name in ("input_loss", "output_loss", "jacobian_loss"))


def test_a_project_that_cannot_be_is_refused_when_it_is_configured():
    with pytest.raises(ValueError, match="expected entity/project"):
        Compute(wandb_project="training")
