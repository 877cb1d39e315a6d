"""Writes the lock files from pyproject.toml: `make lock`.

requirements.lock holds every package that `make setup` installs except torch, at an exact version and with the hashes
of its files. torch stands apart, because one version of it has two kinds of build, with different files: the package
index's (on Linux it computes with CUDA, and wants gigabytes of libraries: requirements-torch.lock), and that of
PyTorch's own index of CPU builds (requirements-torch-cpu.lock). Both hold setuptools too, which torch asks for and with
which the few packages that come without a wheel are built, and triton, which the CUDA build asks for and the tests.

requirements-services.lock holds what the extra `ray` asks for beyond them: 240 MB that only `make test-services` and an
installation of several machines need.

Versions that stand in the files stay; arguments go on to `uv pip compile`: `--upgrade-package torch` raises one of
them, `--upgrade` all. uv finds all hashes but those of the CPU builds: when torch is raised, copy them from the CPU
index's page of torch (each link ends with its hash); this script stops where they are missing.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK, TORCH_LOCK, CPU_LOCK, SERVICES_LOCK = (
    ROOT / f"requirements{of}.lock" for of in ("", "-torch", "-torch-cpu", "-services")
)
WITH_TORCH = re.compile(r"(torch|triton|setuptools)==|(nvidia|cuda)-")
HEADER = "# Written by `make lock` (tools/lock.py) from pyproject.toml; not to be edited.\n"

# The builds for Linux, of Python 3.11 to 3.14, on x86_64 and aarch64
CPU_BUILDS = {
    "2.13.0": (
        "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
        "84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7",
        "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
        "6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604",
        "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
        "0b8f7d0423027ae8b90c7977c627f3379f325363a08224dffad9b4b2d684a83d",
        "d20fa53ee744502fa4c69818a720b05ca0d37abd055d4f6e66cae155114bc691",
        "ca021f9eb2f8345c83fa03e3a04587308afb8df71bd472670b3ece00df58621c",
    )
}


def entries(lock: str) -> list[str]:
    """A lock file's packages: each its requirement, hashes and the packages that ask for it, as they stand."""
    return re.findall(r"^[a-z0-9].*\n(?:[ ].*\n)*", lock, flags=re.MULTILINE)


def version_of(entry: str) -> str:
    return entry.split()[0]


def cpu_build(torch: str) -> str:
    """The entry of torch's CPU builds, from that of the package index's."""
    version = torch.split("==")[1].split()[0]
    if version not in CPU_BUILDS:
        raise SystemExit(f"tools/lock.py knows no CPU builds of torch {version}: add their hashes to CPU_BUILDS")
    return (
        " \\\n    ".join([f"torch=={version}+cpu", *(f"--hash=sha256:{digest}" for digest in CPU_BUILDS[version])])
        + "\n"
    )


def locked() -> list[str]:
    """The versions that stand in the files, without hashes: those are asked for anew."""
    texts = [path.read_text(encoding="utf-8") for path in (LOCK, TORCH_LOCK, SERVICES_LOCK) if path.exists()]
    return [entry.split(" \\\n")[0] for entry in entries("".join(texts))]


def compiled(extras: list[str], arguments: list[str]) -> str:
    """What `uv pip compile` says for every platform and every Python that pyproject.toml allows."""
    with tempfile.NamedTemporaryFile("w", suffix=".lock") as file:
        file.writelines(f"{version}\n" for version in locked())
        file.flush()
        options = ["--universal", "--python-version=3.11", "--generate-hashes", "--no-header", "--quiet"]
        options += [f"--extra={extra}" for extra in extras]
        command = ["uv", "pip", "compile", "pyproject.toml", *options, f"--output-file={file.name}", *arguments]
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return Path(file.name).read_text(encoding="utf-8")


def write(file: Path, packages: list[str]) -> None:
    file.write_text(HEADER + "".join(packages), encoding="utf-8")


def main() -> None:
    everything = entries(compiled(["dev"], sys.argv[1:]))
    (torch,) = [entry for entry in everything if entry.startswith("torch==")]
    # triton comes with torch's CUDA build; the tests run it with the CPU builds too
    others = [entry for entry in everything if entry.startswith(("setuptools==", "triton=="))]
    write(LOCK, [entry for entry in everything if not WITH_TORCH.match(entry)])
    write(TORCH_LOCK, [entry for entry in everything if WITH_TORCH.match(entry)])
    write(CPU_LOCK, [cpu_build(torch), *others])
    held = {version_of(entry) for entry in everything}
    services = [entry for entry in entries(compiled(["dev", "ray"], [])) if version_of(entry) not in held]
    names = {version.split("==")[0] for version in held}
    if twice := [version_of(entry) for entry in services if version_of(entry).split("==")[0] in names]:
        raise SystemExit(f"the extra ray cannot be installed beside the others: it asks for {', '.join(twice)}")
    write(SERVICES_LOCK, services)


if __name__ == "__main__":
    main()
