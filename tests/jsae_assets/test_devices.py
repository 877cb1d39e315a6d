"""Several GPUs in one machine, which is pretended: each step computes on one of its own."""

import shutil

import dagster as dg
import pytest
import torch

from jsae_assets.command import main
from jsae_assets.resources import POOL, Compute
from tests.jsae_assets.conftest import PER_VARIANT, materialised


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretends that this machine has so many CUDA devices."""

    def pretend(devices: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return pretend


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_steps_that_compute_at_once_have_different_devices(machine, device):
    machine(3)
    first, second, third = (Compute(device=device) for _ in range(3))
    with first.device_of_its_own(), second.device_of_its_own(), third.device_of_its_own():
        assert {str(one.torch_device()) for one in (first, second, third)} == {"cuda:0", "cuda:1", "cuda:2"}


def test_a_run_stays_on_its_device_as_long_as_that_is_free(machine):
    machine(2)
    stays, other = Compute(), Compute()
    with other.device_of_its_own(), stays.device_of_its_own():
        assert str(stays.torch_device()) == "cuda:1"
    with stays.device_of_its_own():
        assert str(stays.torch_device()) == "cuda:1"
        third = Compute()
        with third.device_of_its_own():
            assert str(third.torch_device()) == "cuda:0"
    with Compute().device_of_its_own(), Compute().device_of_its_own():
        pass
    taken = Compute()
    taken._own = 1
    with taken.device_of_its_own(), stays.device_of_its_own():
        assert str(stays.torch_device()) == "cuda:0"


def test_the_same_device_is_the_same_whatever_number_a_process_sees_it_under(machine, monkeypatch):
    machine(2)
    first, second = Compute(), Compute()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with first.device_of_its_own():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
        with second.device_of_its_own():
            assert [str(one.torch_device()) for one in (first, second)] == ["cuda:0", "cuda:0"]  # 2, and 3


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_device_that_was_named_is_the_one(machine, device):
    machine(2)
    compute = Compute(device=device)
    with compute.device_of_its_own():
        assert str(compute.torch_device()) == device


held: list[bool] = []


class Watched(Compute):
    def torch_device(self) -> torch.device:
        held.append(self._own is not None)
        return torch.device("cpu")

    def device_of_its_own(self):
        return Holding(self)


class Holding:
    def __init__(self, compute):
        self.compute = compute

    def __enter__(self):
        self.compute._own = 0

    def __exit__(self, *error):
        self.compute._own = None


def test_whatever_computes_holds_a_device_while_it_does(entries, graph):
    held.clear()
    watched = graph(entries(), compute=Watched())
    watched.tokenise()
    result = watched.measure(0, raise_on_error=True)
    assert len(materialised(result)) == len(PER_VARIANT)
    assert held and all(held)


@pytest.mark.parametrize(("devices", "slots"), [(0, 1), (1, 1), (4, 4)])
def test_the_ui_lets_as_many_steps_compute_at_once_as_there_are_devices(
    machine, monkeypatch, fresh_home, tmp_path, devices, slots
):
    machine(devices)
    home = shutil.copytree(fresh_home, tmp_path / "home")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setattr("jsae_assets.command.run_ui", lambda *arguments: 0)
    assert main(["ui"]) == 0
    with dg.DagsterInstance.from_config(str(home)) as instance:
        limits = {limit.name: limit.limit for limit in instance.event_log_storage.get_pool_limits()}
    assert limits == {POOL: slots}
