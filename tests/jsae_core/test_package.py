import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jsae_core
from jsae_core import measures


def test_importing_the_package_imports_neither_torch_nor_what_is_built_on_it():
    heavy = {"torch", "transformers", "transformer_lens", "sae_lens", "datasets", "wandb"}
    program = (
        "import sys, jsae_core, jsae_core.measures, jsae_core.text, jsae_core.artifacts, jsae_core.recipe; "
        "print(*sys.modules)"
    )
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert heavy.isdisjoint(modules)


def test_the_package_never_imports_dagster_or_the_platform_built_on_it():
    for path in Path(jsae_core.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.split(".")[0] in ("dagster", "jsae_assets")], path.name


@pytest.mark.parametrize("package", [jsae_core, measures], ids=["jsae_core", "measures"])
def test_every_public_name_is_there(package):
    for name in package.__all__:
        assert getattr(package, name).__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = jsae_core.no_such_name
