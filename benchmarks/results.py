"""The JSON files that rows are kept in, one a device. Not here: measuring and showing them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Results:
    """Rows measured on one device."""

    device: str
    rows: list[dict[str, Any]]

    def merged_into(self, directory: Path) -> Path:
        """Write the device's file: these rows take the place of the kept ones of the same part and shape."""
        path = directory / f"{slug(self.device)}.json"
        kept = read_file(path).rows if path.exists() else []
        replaced = {(row["part"], row["shape"]) for row in self.rows}
        rows = [row for row in kept if (row["part"], row["shape"]) not in replaced] + self.rows
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"device": self.device, "rows": rows}, indent=1) + "\n")
        return path


def read_file(path: Path) -> Results:
    return Results(**json.loads(path.read_text()))


def read_all(directory: Path) -> list[Results]:
    """One a device, in the order of their files' names."""
    return [read_file(path) for path in sorted(directory.glob("*.json"))]


def slug(device: str) -> str:
    """The device's name as a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
