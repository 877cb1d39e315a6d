"""The benchmark of a whole cell, on a catalog that takes no time."""

import yaml

from benchmarks.cell import as_text, measured_cell
from jsae_assets.catalog_file import DEFAULT_CATALOG, load_catalog


def test_every_step_of_a_cell_is_timed_and_the_model_gets_the_tokens_in_one_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    entries = yaml.safe_load(DEFAULT_CATALOG.read_text(encoding="utf-8"))
    entries["models"]["stdlib-1m"] |= {
        "tokens": 500,
        "ablation_samples": 100,
        "function_shapes": 50,
        "quality_tokens": 100,
    }
    entries["variants"] = {"traditional": entries["variants"]["traditional"]}
    (pair,) = [pair for pair in entries["pairs"] if pair["variant"] == "traditional"]
    pair |= {"layers": [1], "least_explained_variance": {"input": -1e9, "output": -1e9}}
    pair["train"] |= {"tokens": 2000}
    pair["train"]["config"] |= {"d_sae": 64, "k": 4, "steps": 2}
    entries |= {"pairs": [pair], "sweeps": {}}
    (tmp_path / "catalog.yaml").write_text(yaml.safe_dump(entries), encoding="utf-8")
    steps = measured_cell(load_catalog(tmp_path / "catalog.yaml"), "stdlib-1m", 1, "cpu")
    measured = {name for name in steps.seconds if not name.endswith(("sae_pair", "jacobian_examples"))}
    assert {"traditional/jacobian_histogram", "traditional/ablation_samples"} <= measured
    assert all(seconds > 0 for seconds in steps.seconds.values())
    assert len([name for name in measured if steps.to_mlp[name]]) == 1  # the others read what it has computed
    assert [name for name in measured if steps.to_end[name]] == ["traditional/pair_quality"]
    assert len(as_text(steps).splitlines()) == len(steps.seconds) + 2
