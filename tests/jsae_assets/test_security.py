"""What must not get in (pickles, foreign code, paths that lead elsewhere), and pages that send nothing anywhere. (What
a run writes: `test_written.py`.)"""

import ast
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import dagster as dg
import plotly.graph_objects as go
import pytest

from jsae_assets.files.storage import stored_at
from jsae_assets.io_managers import SafetensorsStore
from jsae_core.figures.export import page
from tests.jsae_assets.conftest import REPOSITORY

PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADS_PICKLES = {"read_pickle", "load_pickle"}


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for package in ("jsae_core", "jsae_assets"):
        for path in (REPOSITORY / package).rglob("*.py"):
            yield path.relative_to(REPOSITORY), ast.parse(path.read_text(encoding="utf-8"))


def said_to(call: ast.Call) -> dict[str, object]:
    """The arguments of a call that are given by name as constants."""
    constants = {keyword.arg: keyword.value for keyword in call.keywords}
    return {name: value.value for name, value in constants.items() if isinstance(value, ast.Constant)}


def test_nothing_here_can_read_a_pickle_or_run_the_code_that_comes_with_a_model():
    """What a pickle that is met does: `test_model_files.py`. Here: that no other way to one is opened."""
    faults, loaders = [], 0
    for path, module in modules():
        for node in ast.walk(module):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                faults += [f"{path}:{node.lineno} imports {name}" for name in names if name.split(".")[0] in PICKLING]
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            called, owner, said = node.func.attr, ast.unparse(node.func.value), said_to(node)
            where = f"{path}:{node.lineno} calls {owner}.{called}"
            if called in LOADS_PICKLES or (owner, called) == ("torch", "load") or said.get("allow_pickle"):
                faults.append(where)
            if called == "from_pretrained":
                loaders += 1
                if said.get("trust_remote_code") is not False:
                    faults.append(f"{where} without trust_remote_code=False")
                if "Model" in owner and said.get("use_safetensors") is not True:
                    faults.append(f"{where} without use_safetensors=True")
    assert loaders >= 2 and faults == []


@pytest.mark.parametrize(
    "partition", ["..", "../x", "a/../../b", "/etc", "a//b", "..:1", "x/../y:1", "a\\b", "a\0b", "a\u202eb", "", "a\nb"]
)
def test_no_partition_is_stored_outside_the_storage_or_where_it_does_not_seem_to_be(partition, tmp_path):
    with pytest.raises(ValueError, match="cannot be stored"):
        stored_at(dg.AssetKey(["jsae", "sae_pair"]), partition, ".safetensors")
    with dg.DagsterInstance.ephemeral() as instance:
        manager = SafetensorsStore(base_path=str(tmp_path)).manager_of(instance)
        with pytest.raises(ValueError, match="cannot be stored"):
            manager.stored(dg.AssetKey(["jsae", "sae_pair"]), partition)
    with pytest.raises(ValueError, match="cannot be stored"):
        stored_at(dg.AssetKey(["jsae", ".."]), "tiny:1", ".safetensors")


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.seen: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


def test_a_page_sends_nothing_anywhere_and_asks_nothing_of_anywhere():
    text = page(go.Figure(go.Bar(y=[1])), "../plotly.js", {})
    assert '"showSendToCloud": false' in text  # plotly.js's own default is to offer it
    assert "plotlyServerURL" not in text
    asked = [
        value for _, attributes in Tags(text).seen for name, value in attributes.items() if name in ("src", "href")
    ]
    assert asked == ["../plotly.js"]
