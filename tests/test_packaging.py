"""What pyproject.toml promises of the package: that it asks for what it imports, and pins what it asks for."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"jsae_core", "jsae_assets", "tests", "benchmarks", "tools"}
# The files of jsae_core that only an extra's users load
OF_EXTRA = {
    "figures": ["jsae_core/figures/*.py"],
    "wandb": [
        "jsae_core/artifacts.py",
        "jsae_core/sweeps.py",
        "jsae_core/wandb_client.py",
        "jsae_core/wandb_downloads.py",
    ],
    "ray": ["jsae_assets/runs/executors.py", "jsae_assets/ray_launcher.py"],
    "platform": ["jsae_assets/**/*.py"],
    "dev": ["tests/**/*.py", "benchmarks/**/*.py", "tools/*.py"],
}
# torch's builds for CUDA bring it, and jsae_core imports it only where such a build runs on a GPU (`fused.py`)
BROUGHT_BY_TORCH = {"triton"}


def files_of(extra: str | None) -> set[Path]:
    """The files that an extra is for; None stands for the core, which needs no extra."""
    if extra:
        files = {path for pattern in OF_EXTRA[extra] for path in ROOT.glob(pattern)}
        return files - files_of("ray") if extra == "platform" else files
    return set(ROOT.glob("jsae_core/**/*.py")) - files_of("figures") - files_of("wandb")


def imported(path: Path) -> set[str]:
    """The third-party packages that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module}
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - OURS


def declared(extra: str | None) -> set[str]:
    """The distributions that the core and an extra ask for, those of the extras that it takes in among them."""
    requirements = [Requirement(line) for line in PROJECT["dependencies"]]
    if extra:
        requirements += [Requirement(line) for line in PROJECT["optional-dependencies"][extra]]
    names = {canonicalize_name(requirement.name) for requirement in requirements}
    for requirement in requirements:
        if requirement.name == PROJECT["name"]:
            names |= {name for taken_in in requirement.extras for name in declared(taken_in)}
    return names - {PROJECT["name"]}


@pytest.mark.parametrize("extra", [None, *OF_EXTRA])
def test_what_is_imported_is_declared(extra):
    distributions = packages_distributions()
    undeclared = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files_of(extra)
        for name in imported(path) - BROUGHT_BY_TORCH
        if declared(extra).isdisjoint(canonicalize_name(home) for home in distributions.get(name, [name]))
    }
    assert files_of(extra) and not undeclared


def test_the_core_asks_for_neither_the_platform_nor_what_draws():
    assert declared(None).isdisjoint({"dagster", "dagster-webserver", "wandb", "kaleido", "plotly"})


def test_whatever_is_declared_is_locked_with_hashes_at_a_version_that_is_allowed():
    requirements = [Requirement(line) for line in PROJECT["dependencies"]]
    requirements += [Requirement(line) for extra in PROJECT["optional-dependencies"].values() for line in extra]
    for torch_build in ("torch", "torch-cpu"):
        locks = [ROOT / f"requirements{of}.lock" for of in ("", f"-{torch_build}", "-services")]
        text = "".join(lock.read_text(encoding="utf-8") for lock in locks)
        locked = dict(re.findall(r"^([a-z0-9.-]+)==(\S+).*\\\n +--hash=sha256:[0-9a-f]{64}", text, flags=re.MULTILINE))
        for requirement in requirements:
            if requirement.name != PROJECT["name"]:
                assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


def test_every_locked_package_has_a_hash_and_no_address():
    for lock in ROOT.glob("requirements*.lock"):
        text = lock.read_text(encoding="utf-8")
        packages = re.findall(r"^[a-z0-9].*", text, flags=re.MULTILINE)
        assert packages and all("==" in package and package.endswith("\\") for package in packages)
        assert "://" not in text and "--find-links" not in text and "index" not in text
