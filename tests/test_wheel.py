"""The wheel, as someone installs it who has no checkout: `make test-wheel`, which takes minutes.

It is installed into an environment of its own, outside the checkout, which finds the third-party packages in this one.
"""

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel
ROOT = Path(__file__).parents[1]
CATALOG = """
models:
  stdlib-1m: {directory: EMBEDDED, text: held-out, tokens: 500, ablation_samples: 50, function_shapes: 20,
              quality_tokens: 300}
text:
  held-out: {standard_library: held_out}
variants:
  traditional: {label: Traditional, colour: "#0072B2"}
pairs:
  - variant: traditional
    model: stdlib-1m
    layers: [1]
    train:
      text: held-out
      tokens: 20000
      config: {d_sae: 512, k: 32, jacobian_coefficient: 0.0, steps: 150, batch_tokens: 256, learning_rate: 0.003}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (built,) = folder.glob("jsae-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel alone in it; a .pth file lets it find what the wheel asks for."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder)
    python = folder / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (packages / "third_party.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    install = [sys.executable, "-m", "pip", f"--python={python}", "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--ignore-installed", str(wheel)], check=True)
    return folder


@pytest.fixture
def jsae(environment, tmp_path):
    """The command in an empty folder, as a user with an empty home."""
    (tmp_path / "home").mkdir()
    keep = {"PATH", "LANG", "OMP_NUM_THREADS", "BROWSER_PATH"}
    variables = {name: value for name, value in os.environ.items() if name in keep}
    variables |= {"HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}

    def start(*arguments: str, **more: str) -> subprocess.Popen:
        return subprocess.Popen(
            [environment / "bin" / "jsae", *arguments],
            cwd=tmp_path / "home",
            env=variables | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def test_the_wheel_holds_every_file_of_both_packages(wheel):
    listed = subprocess.run(
        ["git", "ls-files", "jsae_core", "jsae_assets"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    held = set(zipfile.ZipFile(wheel).namelist())
    assert tracked and tracked <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_its_packages_are_the_installed_ones_not_the_checkout_s(environment, tmp_path):
    program = "import jsae_core, jsae_assets; print(jsae_core.__file__, jsae_assets.__file__, jsae_core.__version__)"
    said = subprocess.run(
        [environment / "bin" / "python", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    core, assets, _ = said.stdout.split()
    assert Path(core).is_relative_to(environment) and Path(assets).is_relative_to(environment)


def test_the_command_explains_itself(jsae):
    process = jsae("demo", "--help")
    assert "usage: jsae demo" in process.communicate(timeout=120)[0]
    assert process.returncode == 0


def test_the_demo_measures_the_embedded_model_and_says_where_things_are_kept(jsae, environment, tmp_path):
    catalog = tmp_path / "catalog.yaml"
    (embedded,) = environment.glob("lib/*/site-packages/jsae_core/embedded_model")
    catalog.write_text(CATALOG.replace("EMBEDDED", str(embedded)), encoding="utf-8")
    process = jsae("demo", JSAE_CATALOG=str(catalog))
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said
    kept = tmp_path / "home" / ".jsae"
    assert f"everything is kept in {kept}" in said and "stdlib-1m" in said
    assert list(kept.glob("storage/traditional/jacobian_histogram/1/stdlib-1m.*"))


def test_the_ui_serves_the_default_catalog(jsae):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = jsae("ui", "--port", str(port))
    query = b'{"query": "{ assetNodes { assetKey { path } } }"}'
    try:
        assert b"traditional" in answer(f"http://127.0.0.1:{port}/graphql", query, process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: web server, daemon and helpers end
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def answer(url: str, query: bytes, process: subprocess.Popen, seconds: int = 180) -> bytes:
    """What the server answers once it is up."""
    request = urllib.request.Request(url, query, {"Content-Type": "application/json"})
    for _ in range(seconds):
        assert process.poll() is None, process.communicate()[0]
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.read()
        except OSError:
            time.sleep(1)
    raise AssertionError(f"no answer within {seconds} seconds")
