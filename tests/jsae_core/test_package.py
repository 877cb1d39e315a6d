"""The package as its users meet it: what importing costs, and which names it offers."""

import subprocess
import sys
from importlib.metadata import version

import pytest

import jsae_core
from jsae_core import figures, measures

PACKAGES = pytest.mark.parametrize("package", [jsae_core, measures, figures], ids=["jsae_core", "measures", "figures"])


def in_a_new_process(program: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()


def test_importing_and_listing_the_package_imports_neither_torch_nor_what_is_built_on_it():
    heavy = {"torch", "transformers", "transformer_lens", "sae_lens", "datasets", "wandb", "plotly", "pandas", "numpy"}
    modules = in_a_new_process(
        "import sys, jsae_core, jsae_core.measures, jsae_core.figures\n"
        "import jsae_core.text, jsae_core.artifacts, jsae_core.recipe\n"
        "dir(jsae_core), dir(jsae_core.measures), dir(jsae_core.figures)\n"
        "print(*sys.modules)"
    )
    assert heavy.isdisjoint(modules)


@PACKAGES
def test_every_public_name_is_there_and_listed(package):
    assert package.__all__ and set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name).__name__.removeprefix("jsae_core.") == name


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = jsae_core.no_such_name


def test_the_version_is_that_of_the_installed_package():
    assert jsae_core.__version__ == version("jsae")
