"""The environment variables of this project: all are known, and one with a typing error is told."""

import os
import re
import subprocess

import pytest

from jsae_assets.settings import NAMES, unread
from tests.documentation import PAGES, ROOT

DEPLOYED = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
READ = [*(ROOT / "jsae_assets").rglob("*.py"), *(ROOT / "jsae_core").rglob("*.py"), *DEPLOYED]


def test_each_variable_that_is_read_or_documented_is_known_and_no_other():
    named = {
        name
        for path in (*READ, *PAGES)
        if path != ROOT / "jsae_assets" / "settings.py"
        for name in re.findall(r"\bJSAE_[A-Z_]*[A-Z]\b", path.read_text("utf-8"))
    }
    assert named == set(NAMES)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("JSAE_CATLOG", "did you mean JSAE_CATALOG?"),
        ("JSAE_CHECKPOINT_SECOND", "did you mean JSAE_CHECKPOINT_SECONDS?"),
        ("jsae_device", "did you mean JSAE_DEVICE?"),
        ("JSAE_QQQ", "expected one of JSAE_BATCH_TOKENS, "),
    ],
)
def test_a_variable_that_nothing_reads_is_told_with_the_nearest_name(name, said):
    (sentence,) = unread([name, "JSAE_DEVICE", "HOME"])
    assert sentence.startswith(f"{name} is set, but nothing reads a variable of this name") and said in sentence


@pytest.mark.parametrize(
    ("named", "used"), [({"DAGSTER_HOME": "/elsewhere"}, "/elsewhere"), ({}, f"{ROOT}/dagster_home")]
)
def test_make_obeys_the_instance_s_folder_and_has_a_default(named, used):
    ordinary = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "DAGSTER_HOME"))}
    show = ["make", "--silent", "--eval", "show: ; @echo $$DAGSTER_HOME", "show"]
    assert subprocess.check_output(show, cwd=ROOT, env=ordinary | named, text=True) == f"{used}\n"
