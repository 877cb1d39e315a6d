import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from jsae_core.memory import MemoryBudget, available_bytes, piece_factor
from tests.accelerator import Accelerator

PROGRAM = """
import ctypes
import resource
import torch
from jsae_core.memory import keep_freed_memory

PR_SET_THP_DISABLE = 41
ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)  # a huge page would be a single fault
{prepare}
torch.ones(2**25)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize(("prepare", "asked_again"), [("", True), ("keep_freed_memory()", False)])
def test_memory_that_was_freed_is_used_again_once_it_is_asked_for(prepare, asked_again):
    program = PROGRAM.format(prepare=prepare)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # 64 MiB are 16384 pages of 4 KiB; they lie in the 128 MiB that were freed
    assert (int(done.stdout) > 8_000) == asked_again


def test_what_is_available_holds_a_tensor_that_fits_and_is_less_than_the_machine_has():
    # bounds that hold whatever other processes free and take meanwhile
    available = available_bytes(torch.device("cpu"))
    fits = torch.ones(2**25)  # 128 MiB
    assert fits.nbytes < available < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_device_that_says_nothing_of_its_memory_has_none_that_is_known():
    assert available_bytes(torch.device("mps")) is None


@pytest.mark.parametrize(("gigabytes", "factor"), [(3, 1), (8, 2), (24, 6), (80, 16), (141, 16)])
def test_pieces_of_work_are_the_larger_the_more_memory_a_cuda_device_has(gigabytes, factor, monkeypatch):
    properties = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert piece_factor(torch.device("cuda", 0)) == factor
    assert piece_factor(torch.device("cpu")) == 1


def test_what_is_kept_fills_the_device_then_the_host_and_then_nothing_is():
    with Accelerator() as accelerator:
        budget = MemoryBudget(accelerator.device, 100)
        places = []
        for size in (60, 60, 30, 60, 40):  # bytes
            kept = budget.kept(torch.ones(size // 4).to(accelerator.device))
            places.append(kept if kept is None else kept.device.type)
    assert places == ["xpu", "cpu", "xpu", None, "cpu"]


def test_without_a_limit_a_quarter_of_what_is_free_is_used(monkeypatch):
    monkeypatch.setattr("jsae_core.memory.available_bytes", lambda device: 400)
    budget = MemoryBudget(torch.device("cpu"))
    assert [budget.kept(torch.ones(12)) is not None for _ in range(3)] == [True, True, False]  # 48 bytes each
