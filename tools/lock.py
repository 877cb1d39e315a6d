"""`make lock`: writes the lock files from pyproject.toml.

requirements.lock has every package that `make setup` installs except torch, with its exact version and the hashes of
its files. torch has lock files of its own, because each version comes in two builds with different files: the build on
the package index (on Linux it computes with CUDA and needs gigabytes of libraries: requirements-torch.lock), and the
CPU build on PyTorch's own index (requirements-torch-cpu.lock). Both files also have setuptools, which torch needs and
which builds the few packages without a wheel, and triton, which the CUDA build and the tests need.

requirements-services.lock has the additional packages of the extra `ray`: 240 MB that only `make test-services` and an
installation on several machines need.

Versions that are already in the files are kept. Arguments are passed on to `uv pip compile`: `--upgrade-package torch`
upgrades one package, `--upgrade` all. uv finds all hashes except those of the CPU builds. When you upgrade torch, copy
these from torch's page on the CPU index (each link ends with its hash); this script stops if they are missing.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK, TORCH_LOCK, CPU_LOCK, SERVICES_LOCK = (
    ROOT / f"requirements{suffix}.lock" for suffix in ("", "-torch", "-torch-cpu", "-services")
)
WITH_TORCH = re.compile(r"(torch|triton|setuptools)==|(nvidia|cuda)-")
HEADER = "# Written by `make lock` (tools/lock.py) from pyproject.toml; not to be edited.\n"

# SHA-256 hashes of the builds for Linux, for Python 3.11 to 3.14, on x86_64 and aarch64
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
    """Return the entries of a lock file, one for each package: the lines with its version, its hashes and the packages
    that need it."""
    return re.findall(r"^[a-z0-9].*\n(?:[ ].*\n)*", lock, flags=re.MULTILINE)


def version_of(entry: str) -> str:
    return entry.split()[0]


def cpu_build(torch: str) -> str:
    """Return the entry of torch's CPU build, given the entry of the build on the package index."""
    version = torch.split("==")[1].split()[0]
    if version not in CPU_BUILDS:
        raise SystemExit(f"tools/lock.py knows no CPU builds of torch {version}: add their hashes to CPU_BUILDS")
    return (
        " \\\n    ".join([f"torch=={version}+cpu", *(f"--hash=sha256:{digest}" for digest in CPU_BUILDS[version])])
        + "\n"
    )


def locked() -> list[str]:
    """Return the versions in the existing lock files. Hashes are left out, because uv looks them up again."""
    texts = [path.read_text(encoding="utf-8") for path in (LOCK, TORCH_LOCK, SERVICES_LOCK) if path.exists()]
    return [entry.split(" \\\n")[0] for entry in entries("".join(texts))]


def compiled(extras: list[str], arguments: list[str]) -> str:
    """Return what `uv pip compile` writes for every platform and every Python version that pyproject.toml allows."""
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
    # triton comes with torch's CUDA build, but the tests need it with the CPU build too
    others = [entry for entry in everything if entry.startswith(("setuptools==", "triton=="))]
    write(LOCK, [entry for entry in everything if not WITH_TORCH.match(entry)])
    write(TORCH_LOCK, [entry for entry in everything if WITH_TORCH.match(entry)])
    write(CPU_LOCK, [cpu_build(torch), *others])
    locked_versions = {version_of(entry) for entry in everything}
    services = [entry for entry in entries(compiled(["dev", "ray"], [])) if version_of(entry) not in locked_versions]
    names = {version.split("==")[0] for version in locked_versions}
    if conflicts := [version_of(entry) for entry in services if version_of(entry).split("==")[0] in names]:
        raise SystemExit(
            f"the extra ray cannot be installed with the other extras, because it needs {', '.join(conflicts)}"
        )
    write(SERVICES_LOCK, services)


if __name__ == "__main__":
    main()
