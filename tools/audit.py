"""`make audit`: has a locked package a known vulnerability?

pip-audit asks PyPI's list of them; where it cannot be reached, as behind some mirrors, pip-audit leaves packages out
and still ends well, so that is looked at here. Exit status: 0 if every package was looked up and none has one, 1 if one
has, 2 if packages could not be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCKS = ("requirements.lock", "requirements-torch.lock")
PIP_AUDIT = [sys.executable, "-m", "uv", "tool", "run", "--quiet", "pip-audit@2.10.1"]
OPTIONS = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
CLEAN, VULNERABLE, UNKNOWN = 0, 1, 2


def verdict(packages: list[dict[str, Any]]) -> tuple[str, int]:
    """What is to be said of the packages of pip-audit's report, and the exit status."""
    vulnerable = [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for package in packages
        for found in package.get("vulns", [])
    ]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    lines = [*vulnerable]
    if unknown and len(unknown) == len(packages):
        lines.append(
            "NOT AUDITED: no list of known vulnerabilities can be reached from here. Run make audit on a machine that "
            "reaches pypi.org"
        )
    elif unknown:
        lines.append(f"NOT AUDITED: {', '.join(unknown)}: not on the list of known packages")
    lines.append(f"{len(packages) - len(unknown)} of {len(packages)} locked packages were looked up")
    return "\n".join(lines), VULNERABLE if vulnerable else UNKNOWN if unknown or not packages else CLEAN


def main() -> int:
    root = Path(__file__).parents[1]
    locks = [argument for lock in LOCKS for argument in ("--requirement", str(root / lock))]
    done = subprocess.run([*PIP_AUDIT, *OPTIONS, *locks], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"NOT AUDITED: pip-audit gave no report:\n{done.stderr.strip()}")
        return UNKNOWN
    said, status = verdict(packages)
    print(said)
    return status


if __name__ == "__main__":
    sys.exit(main())
