"""`make audit`: looks up whether a locked package has a known vulnerability.

pip-audit asks PyPI's list of vulnerabilities. If the list cannot be reached, as behind some mirrors, pip-audit skips
packages but still reports success, so this script checks for skipped packages. Exit status: 0 if every package was
looked up and none is vulnerable, 1 if one is, 2 if packages could not be looked up.
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
    """Return the message about the packages of pip-audit's report, and the exit status."""
    vulnerable = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version'}"
        for package in packages
        for vulnerability in package.get("vulns", [])
    ]
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    lines = [*vulnerable]
    if unknown and len(unknown) == len(packages):
        lines.append(
            "NOT AUDITED: this machine cannot reach a list of known vulnerabilities. Run make audit on a machine that "
            "reaches pypi.org"
        )
    elif unknown:
        lines.append(f"NOT AUDITED: {', '.join(unknown)}, because the list does not have these packages")
    lines.append(f"{len(packages) - len(unknown)} of {len(packages)} locked packages were looked up")
    return "\n".join(lines), VULNERABLE if vulnerable else UNKNOWN if unknown or not packages else CLEAN


def main() -> int:
    root = Path(__file__).parents[1]
    locks = [argument for lock in LOCKS for argument in ("--requirement", str(root / lock))]
    completed = subprocess.run([*PIP_AUDIT, *OPTIONS, *locks], capture_output=True, text=True, check=False)
    try:
        packages = json.loads(completed.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"NOT AUDITED: pip-audit gave no report:\n{completed.stderr.strip()}")
        return UNKNOWN
    message, status = verdict(packages)
    print(message)
    return status


if __name__ == "__main__":
    sys.exit(main())
