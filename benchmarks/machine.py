"""The machine that a row was measured on: its name, its speed of matrix products and memory copies, and the code's
version.

Not here: how much of either a measure needs (`cost.py`).
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.shapes import Shape
from benchmarks.timing import seconds_of

ROOT = Path(__file__).parent.parent
TRIES = 6


@dataclass(frozen=True)
class Rates:
    """The best rates that this machine reached, in the process that measured a row."""

    matmul: float  # float32 operations per second; a multiply-add counts as 2
    copy: float  # bytes read and written per second, in a block larger than any cache


def chosen_device(name: str) -> torch.device:
    """Return the device of this name. `auto` is CUDA if there is a device, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def measured_rates(shape: Shape, device: torch.device) -> Rates:
    """Measure the machine's rates. The rate of matrix products is the better one of two: of large square matrices, and
    of the shape's encoder, which is most of the work."""
    side, rows, copied = (2048, 512, 2**26) if device.type == "cpu" else (8192, 8192, 2**28)
    squares = _product_rate(side, side, side, device)
    encoder = _product_rate(rows, shape.d_model, shape.d_sae, device)
    source = torch.ones(copied, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / _best(lambda: target.copy_(source), device)
    return Rates(max(squares, encoder), copy)


def _product_rate(n: int, inner: int, m: int, device: torch.device) -> float:
    a, b = torch.randn(n, inner, device=device), torch.randn(inner, m, device=device)
    out = torch.empty(n, m, device=device)
    return 2 * n * inner * m / _best(lambda: torch.mm(a, b, out=out), device)


def _best(call: Callable[[], object], device: torch.device) -> float:
    return min(seconds_of(call, device) for _ in range(TRIES))


def described_device(device: torch.device) -> str:
    """Return the processor's name and the number of torch's threads, or the accelerator's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{platform.machine()} {device.type}"
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def provenance() -> dict[str, str | bool]:
    """Return the date, the commit (and whether files differ from it), and the versions of torch and Python."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _git("rev-parse", "--short", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--", "jsae_core", "benchmarks", ":!benchmarks/results")),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _git(*arguments: str) -> str:
    try:
        completed = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return completed.stdout.strip()
