"""The JSON files that store the rows of results, one file for each device. Not here: measuring, showing results."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Results:
    """The rows of results that were measured on one device."""

    device: str
    rows: list[dict[str, Any]]

    def merged_into(self, directory: Path) -> Path:
        """Write these rows to the device's file, in place of the rows there of the same part and shape. Return the
        file's path."""
        path = directory / f"{slug(self.device)}.json"
        earlier = read_file(path).rows if path.exists() else []
        replaced = {(row["part"], row["shape"]) for row in self.rows}
        rows = [row for row in earlier if (row["part"], row["shape"]) not in replaced] + self.rows
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"device": self.device, "rows": rows}, indent=1) + "\n")
        return path


def read_file(path: Path) -> Results:
    return Results(**json.loads(path.read_text()))


def read_all(directory: Path) -> list[Results]:
    """Return the results of all devices, in the order of their files' names."""
    return [read_file(path) for path in sorted(directory.glob("*.json"))]


def slug(device: str) -> str:
    """Return the device's name in a form that suits a file name."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
