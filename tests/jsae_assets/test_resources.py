"""The compute resource: which device, how many at once, and loading each model once a run."""

import shutil

import dagster as dg
import pytest
import torch
import yaml
from pydantic import ValidationError
from safetensors.torch import load_file

import jsae_core
from jsae_assets import command
from jsae_assets.definitions import build_definitions, default_resources
from jsae_assets.resources import Compute
from jsae_core import LanguageModel
from jsae_core.activations import packed
from jsae_core.text import split_documents
from tests.jsae_assets.conftest import PER_VARIANT, SETTINGS, materialised, metadata


def machine(monkeypatch, cuda_devices: int = 0, mps: bool = False) -> None:
    """Pretend that this machine has these accelerators."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda_devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda_devices)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Imaginary 9000")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("device", "cuda_devices", "what"),
    [
        ("cuda", 0, "0 CUDA devices"),
        ("cuda:0", 0, "0 CUDA devices"),
        ("cuda:2", 2, "2 CUDA devices"),
        ("mps", 0, "mps"),
    ],
)
def test_a_device_that_this_machine_lacks_is_an_error_that_says_what_to_do(monkeypatch, device, cuda_devices, what):
    machine(monkeypatch, cuda_devices)
    with pytest.raises(RuntimeError) as caught:
        Compute(device=device).torch_device()
    for word in (f"asks for {device}", what, "JSAE_DEVICE"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("device", "accelerators", "chosen"),
    [
        ("cuda", {"cuda_devices": 1}, "cuda"),
        ("cuda:1", {"cuda_devices": 2}, "cuda:1"),
        ("mps", {"mps": True}, "mps"),
        ("cpu", {"cuda_devices": 1, "mps": True}, "cpu"),
        ("auto", {"cuda_devices": 1, "mps": True}, "cuda"),
        ("auto", {"mps": True}, "mps"),
        ("auto", {}, "cpu"),
    ],
)
def test_the_device_is_the_one_asked_for_and_auto_takes_the_fastest_there_is(monkeypatch, device, accelerators, chosen):
    machine(monkeypatch, **accelerators)
    assert str(Compute(device=device).torch_device()) == chosen


def test_auto_says_what_it_chose(monkeypatch):
    machine(monkeypatch)
    assert Compute(device="auto").describe() == "cpu, chosen by auto"
    assert Compute(device="cpu").describe() == "cpu"
    machine(monkeypatch, cuda_devices=1)
    assert Compute(device="auto").describe() == "cuda (Imaginary 9000), chosen by auto"


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CPU", "", "cpu ", "tpu", "cuda0"])
def test_a_device_that_cannot_be_is_refused_when_it_is_configured(device):
    with pytest.raises(ValidationError, match="device"):
        Compute(device=device)


@pytest.mark.parametrize(
    "setting",
    [
        {"dtype": "float16x"},
        {"batch_tokens": 0},
        {"batch_tokens": "many"},
        {"memory_gib": 0},
        {"checkpoint_seconds": -1},
    ],
)
def test_a_precision_or_batch_that_cannot_be_is_refused_when_it_is_configured(setting):
    with pytest.raises(ValidationError, match=next(iter(setting))):
        Compute(**setting)


def test_the_environment_configures_the_resources(monkeypatch, tmp_path):
    numbers = {"BATCH_TOKENS": "128", "MEMORY_GIB": "0.5", "CHECKPOINT_SECONDS": "2.5"}
    for name, value in {"DEVICE": "cpu", "DTYPE": "float64", "STORAGE": str(tmp_path), **numbers}.items():
        monkeypatch.setenv(f"JSAE_{name}", value)
    resources = default_resources()
    compute = resources["compute"]
    assert (compute.device, compute.dtype, compute.batch_tokens, compute.memory_gib) == ("cpu", "float64", 128, 0.5)
    assert compute.checkpoint_seconds == 2.5
    assert {resources[kind].base_path for kind in ("tensors", "tables", "figures")} == {str(tmp_path)}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DEVICE", "gpu", "is 'gpu', expected auto, cuda, cuda:N, mps or cpu"),
        ("DTYPE", "fp16", "is 'fp16', expected 'float32', 'float64' or 'bfloat16'"),
        ("BATCH_TOKENS", "many", "is 'many', expected a whole number"),
        ("BATCH_TOKENS", "0", "is '0', expected at least 1"),
        ("MEMORY_GIB", "8GiB", "is '8GiB', expected a number"),
        ("MEMORY_GIB", "0", "is '0', expected more than 0"),
        ("MEMORY_GIB", "inf", "is 'inf', expected a finite number"),
        ("WANDB_PROJECT", "project", "'project' is not a wandb project; expected entity/project"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_the_command_in_one_line_with_its_name(
    monkeypatch, capsys, tmp_path, name, value, said
):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv(f"JSAE_{name}", value)
    monkeypatch.delenv("JSAE_CATALOG", raising=False)
    assert command.main(["run", "--dry-run"]) == command.BAD_ARGUMENTS
    assert capsys.readouterr().err == f"JSAE_{name}: {said}\n"


def test_without_an_environment_the_device_is_auto_in_float32(monkeypatch):
    for name in ("DEVICE", "DTYPE", "BATCH_TOKENS", "MEMORY_GIB", "STORAGE"):
        monkeypatch.delenv(f"JSAE_{name}", raising=False)
    compute = default_resources()["compute"]
    assert (compute.device, compute.dtype) == ("auto", "float32")


class Watching(Compute):
    """Notes how many slots of the pool are held while a model is asked for."""

    def language_model(self, *named):
        info = self.get_resource_context().instance.event_log_storage.get_concurrency_info("gpu")
        slots.append((info.active_slot_count, info.slot_count))
        return super().language_model(*named)


slots: list[tuple[int, int]] = []


def test_a_run_loads_its_model_once_and_holds_the_one_slot_of_the_pool_while_it_computes(
    monkeypatch, entries, graph, tmp_path
):
    real, loaded = jsae_core.load_language_model, []

    def counting(source, *settings, **further):
        loaded.append(source)
        return real(source, *settings, **further)

    monkeypatch.setattr(jsae_core, "load_language_model", counting)
    slots.clear()
    own = entries()
    model = own["models"]["tiny"]
    model["directory"] = str(shutil.copytree(model["directory"], tmp_path / "own"))  # which no other test holds
    tiny = graph(own, compute=Watching(device="cpu"))
    tiny.tokenise()
    assert len(loaded) == 1
    made = {f"jsae/{name}" for name in PER_VARIANT} | {"traditional/sae_pair", "traditional/jacobian_histogram"}
    result = tiny.measure(1, *made, raise_on_error=True)
    assert materialised(result) == made and len(result.runs) == 2
    # once in each, or not at all, where that of the run before is still there
    assert set(loaded) == {tiny.catalog.models["tiny"].source[0]} and len(loaded) <= 1 + len(result.runs)
    assert len(slots) > 8
    assert set(slots) == {(1, 1)}


def test_what_was_computed_says_where(measured):
    assert metadata(measured.cell, "jsae/sae_pair")["device"] == "cpu"
    assert metadata(measured.cell, "jsae/jacobian_histogram")["device"] == "cpu"


def test_a_run_that_asks_for_a_device_this_machine_lacks_fails_and_stores_nothing(monkeypatch, entries, graph):
    machine(monkeypatch)
    tiny = graph(entries(), compute=Compute(device="cuda"))
    with pytest.raises(RuntimeError, match="asks for cuda.*0 CUDA devices"):
        tiny.tokenise()
    assert tiny.stored() == {}


def test_every_asset_that_computes_shares_the_pool_and_no_other_does(measured):
    graph = measured.graph.definitions.resolve_asset_graph()
    pools = {key.to_user_string(): graph.get(key).pools for key in graph.materializable_asset_keys}
    drawn = {name for name in pools if name.startswith("figures/") or name == "site"}
    assert drawn
    assert pools == {name: set() if name in drawn else {"gpu"} for name in pools}


def test_the_checks_share_the_pool(measured):
    definitions = build_definitions(measured.graph.catalog)
    assert {check.node_def.pool for check in definitions.asset_checks} == {"gpu"}


def test_the_instance_limits_every_pool_to_one_and_frees_the_slots_of_killed_runs():
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    assert settings["concurrency"]["pools"]["default_limit"] == 1
    assert settings["run_monitoring"]["free_slots_after_run_end_seconds"] > 0


def test_that_instance_knows_the_limit(instance):
    assert isinstance(instance, dg.DagsterInstance)
    assert instance.get_concurrency_config().pool_config.default_pool_limit == 1


def test_a_stored_pair_is_measured_in_the_precision_that_the_resource_names(entries, graph):
    tiny = graph(entries())
    tiny.tokenise()
    tiny.measure(0, "traditional/sae_pair", raise_on_error=True)
    precise = graph(entries(), compute=Compute(device="cpu", dtype="float64"))
    result = precise.measure(0, "traditional/jacobian_histogram", "traditional/jacobian_examples", raise_on_error=True)
    assert materialised(result) == {"traditional/jacobian_histogram", "traditional/jacobian_examples"}
    assert load_file(precise.file("traditional/jacobian_examples", 0))["jacobian"].dtype == torch.float64


@pytest.mark.parametrize(("at_most", "expected"), [(None, "abc"), (1, "abcab"), (2, "abcab")])
def test_what_a_run_makes_is_made_once_unless_it_had_to_make_room(at_most, expected):
    compute, made = Compute(device="cpu"), []

    def make(name):
        return lambda: made.append(name) or name

    asked = "aabbcab"
    assert [compute.cached("letter", key, make(key), at_most) for key in asked] == list(asked)
    assert "".join(made) == expected


def test_a_run_gives_the_model_the_tokens_of_a_cell_once(monkeypatch, entries, graph):
    tiny = graph(entries())
    tiny.tokenise()
    tiny.measure(1, "jsae/sae_pair", raise_on_error=True)
    real, given = LanguageModel.mlp_activations, []

    def counting(language_model, tokens, layer):
        given.append(tokens)
        return real(language_model, tokens, layer)

    monkeypatch.setattr(LanguageModel, "mlp_activations", counting)
    read = ("jacobian_histogram", "ablation_samples", "function_shapes", "jacobian_examples")
    result = tiny.measure(1, *(f"jsae/{name}" for name in read), raise_on_error=True)
    assert len(materialised(result)) == len(read)
    documents = split_documents(load_file(tiny.file("tokens", None)))
    batches = [batch.tokens for batch in packed(documents, Compute(device="cpu").tokens_at_once)]
    prompt = tiny.catalog.models["tiny"].prompt
    assert sorted(tokens.numel() for tokens in given) == sorted(
        [*(tokens.numel() for tokens in batches), 1 + len(prompt)]
    )
