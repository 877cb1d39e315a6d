"""The machine a row was measured on: what it is, how fast it multiplies matrices and copies memory, and which code ran.

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
    """The best this machine did, in the process that a row was measured in."""

    matmul: float  # float32 operations a second, 2 for a multiply-add
    copy: float  # bytes read and written a second, in memory larger than any cache


def chosen_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def measured_rates(shape: Shape, device: torch.device) -> Rates:
    """The better of two products: large squares, and the shape's own encoder, which most of the work is."""
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
    """The processor's name and how many threads torch uses, or the accelerator's name."""
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
    """When and with what: date, commit (and whether files differ from it), versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _git("rev-parse", "--short", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain", "--", "jsae_core", "benchmarks", ":!benchmarks/results")),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
