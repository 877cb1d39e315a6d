"""The benchmark at a size that takes no time: that its two sides agree, that it counts and keeps what it says."""

import functools
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks import __main__ as command_line
from benchmarks import cases, cost, growth, launches, machine, operators, original, parts, precision, report, timing
from benchmarks.agreement import Disagreement, agree
from benchmarks.results import Results, read_all
from benchmarks.shapes import SHAPES, random_inputs, random_mlp, random_pair
from jsae_core import run_sandwich
from jsae_core.jacobian import Sandwich
from tests.accelerator import Accelerator
from tests.jsae_core.builders import random_inputs as inputs
from tests.jsae_core.builders import random_pair as small_pair
from tests.pretended_gpu import PretendedGPU

CPU = torch.device("cpu")
RATES = machine.Rates(matmul=1e11, copy=1e10)
PLAIN = SHAPES["tiny"]
GATED = replace(PLAIN, name="gated", model_type="llama")


class Counter(TorchDispatchMode):
    """Torch's own counts. (Its FlopCounterMode cannot be used where a module's gradient is taken inside.)"""

    flops = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        count = flop_registry.get(operation.overloadpacket)
        if count is not None:
            self.flops += count(*arguments, **(options or {}), out_val=result)
        return result


@pytest.fixture(autouse=True)
def as_little_as_possible(monkeypatch):
    monkeypatch.setattr(timing, "LEAST_SECONDS", 1e-9)  # one call
    monkeypatch.setattr(cases, "DEFAULT_ROUNDS", 1)
    monkeypatch.setattr(growth, "FEWEST_TOKENS", 32)
    monkeypatch.setattr(growth, "TOKENS", 32)
    monkeypatch.setattr(machine, "measured_rates", lambda shape, device: RATES)
    # nothing in this process may begin another one
    monkeypatch.setattr(command_line, "measured_apart", parts.measured)


@functools.cache
def rows_of(part):
    return parts.measured(part, "tiny", "cpu").rows


@pytest.fixture
def every_row():
    return [row for part in parts.PARTS for row in rows_of(part)]


@pytest.mark.parametrize("part", parts.PARTS)
def test_every_part_runs_and_agrees_with_the_original(part):
    rows = rows_of(part)
    assert part == "growth" or any(row["agreement"] for row in rows)
    for one in (one for row in rows for one in row.get("agreement", [])):
        assert one["difference"] <= one["tolerance"]


@pytest.mark.parametrize("part", [part for part in parts.PARTS if part != "growth"])
def test_it_agrees_for_a_gated_mlp_too(part):
    assert any(row["agreement"] for row in parts.PARTS[part](GATED, CPU, RATES))


@pytest.mark.parametrize("part", parts.PARTS)
def test_every_part_runs_on_an_accelerator_too(part):
    with Accelerator() as accelerator:
        rows = parts.PARTS[part](PLAIN, accelerator.device, RATES)
    assert [row["setting"] for row in rows] == [row["setting"] for row in rows_of(part)]


@pytest.mark.parametrize(("on_gpu", "between"), [(False, 1), (True, 10)])
def test_on_a_gpu_several_steps_are_timed_with_no_report_between(on_gpu, between, monkeypatch):
    now = 0.0

    def trained(x, mlp, config, report):
        """A step takes 0.25 s, and a report, as often as train_pair reports, another one."""
        nonlocal now
        for step in range(1, config.steps + 1):
            now += 0.25
            if step % max(1, config.steps // 20) == 0:
                now += 1.0
                report(SimpleNamespace(step=step))

    monkeypatch.setattr(cases, "train_pair", trained)
    monkeypatch.setattr(cases, "time", SimpleNamespace(perf_counter=lambda: now))
    with PretendedGPU() as gpu:
        x = random_inputs(PLAIN, 16, gpu.device if on_gpu else CPU)
        assert cases._step_seconds(x, random_mlp(PLAIN), PLAIN, 1.0) == pytest.approx(0.25 + 1.0 / between)


@pytest.mark.parametrize("gated", [False, True])
def test_the_original_s_jacobian_is_autograd_s(gated):
    pair = small_pair(activation="gelu", gated=gated)
    (x,) = inputs(1)
    sandwich = original.sandwich(pair, x)
    rows = pair.input_sae.W_dec[sandwich.input_latents]
    columns = pair.output_sae.W_enc[:, sandwich.output_latents]

    def output_latents(moved):
        return pair.mlp(x + moved @ rows) @ columns

    expected = torch.autograd.functional.jacobian(output_latents, torch.zeros(pair.config.k, dtype=x.dtype))
    torch.testing.assert_close(sandwich.jacobian, expected, rtol=1e-10, atol=1e-12)


def test_the_original_s_shapes_of_curves_are_the_paper_s_rule_s():
    x = torch.linspace(0, 5, original.SWEEP_POINTS).numpy()
    jump, bump = (x > 2) * (x + 1), ((x > 2) & (x < 3)) * (x + 1)
    assert [original._shape(x, y) for y in (0 * x, 2 * x + 1, jump, jump[::-1], bump, x**2)] == [
        "linear",
        "linear",
        "jumprelu",
        "jumprelu",
        "other",
        "other",
    ]


@pytest.mark.parametrize(
    "part, procedure, wrong",
    [
        ("ablation", "ablation", lambda jacobian, change: (jacobian, change + 0.01)),
        ("function_shapes", "function_shapes", lambda *curves: [curve._replace(shape="none") for curve in curves]),
    ],
)
def test_a_disagreement_is_an_error_that_names_the_part(monkeypatch, part, procedure, wrong):
    right = getattr(original, procedure)
    monkeypatch.setattr(original, procedure, lambda *arguments: wrong(*right(*arguments)))
    with pytest.raises(Disagreement, match=f"^{part}, "):
        parts.PARTS[part](PLAIN, CPU, RATES)


def test_few_ties_are_let_pass_and_counted_but_nothing_that_is_not_finite():
    differences = torch.zeros(1000)
    differences[3] = 1.0
    assert agree("x", differences, 0.1, exempt=1e-3).ties == 1
    with pytest.raises(Disagreement, match="1 of 1000 values"):
        agree("x", differences, 0.1, exempt=1e-4)
    with pytest.raises(Disagreement):
        agree("x", torch.tensor([float("nan")]), 0.1)
    with pytest.raises(Disagreement):
        agree("x", torch.zeros(0), 0.1)


def test_the_histogram_s_agreement_notices_counts_in_other_bins():
    pair = random_pair(PLAIN, CPU)
    counts = original.histogram(pair, [random_inputs(PLAIN, 16, CPU)])
    cases.histograms_agree(counts, counts)
    shifted = counts | {"mean_jac_hist": counts["mean_jac_hist"].roll(1)}
    with pytest.raises(Disagreement, match="mean_jac_hist"):
        cases.histograms_agree(shifted, counts)


@pytest.mark.parametrize("shape", [PLAIN, GATED], ids=lambda shape: shape.model_type)
def test_the_counted_operations_of_a_sandwich_are_those_of_its_matrix_products(shape):
    pair, x = random_pair(shape, CPU), random_inputs(shape, 5, CPU)
    pair.tables()  # the count leaves them out
    with Counter() as counter:
        run_sandwich(pair, x)
    assert counter.flops == len(x) * cost.sandwich(shape).flops


def test_precisions_are_compared_between_the_latents_that_both_have():
    exact = run_sandwich(small_pair(), inputs(5))
    reversed_ranks = Sandwich(
        exact.jacobian.flip(1, 2),
        exact.input_latents.flip(1),
        exact.output_latents.flip(1),
        None,
        None,
        None,
    )
    assert precision.difference(exact, reversed_ranks) == (0.0, 0.0, 0.0)

    coarser = replace(exact, jacobian=1.01 * exact.jacobian, input_latents=exact.input_latents.clone())
    coarser.input_latents[:, 0] = -1  # one of four
    inputs_other, outputs_other, error = precision.difference(exact, coarser)
    assert (inputs_other, outputs_other) == (0.25, 0.0) and error == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("profile", "title"),
    [
        (lambda: operators.profile_training(PLAIN, 16, CPU), "a training step of tiny, batch 16, lambda 1"),
        (lambda: operators.profile_histogram(PLAIN, CPU), "histogram of 32 tokens, tiny"),
        (lambda: operators.profile_quality(PLAIN, CPU), "quality over 128 tokens, tiny"),
    ],
)
def test_a_profile_names_the_operators_that_compute(profile, title, monkeypatch, capsys):
    # all of them are shown: which take the most is a matter of time
    for name, value in (("WARM_UP_STEPS", 1), ("REPEATS", 1), ("HISTOGRAM_TOKENS", 32), ("SHOWN", None)):
        monkeypatch.setattr(operators, name, value)
    profile()
    (shown,) = [block for block in capsys.readouterr().out.split("\n\n") if block.startswith(title)]
    calls = {line.split()[0]: int(line.split()[-1]) for line in shown.splitlines()[2:]}
    assert calls["aten::addmm"] > 0


def test_results_replace_the_rows_of_their_part_and_shape_alone(tmp_path):
    def rows(part, shape, *values):
        return [{"part": part, "shape": shape, "value": value} for value in values]

    Results("A CPU, 2 threads", rows("histogram", "tiny", 1, 2) + rows("quality", "tiny", 3)).merged_into(tmp_path)
    path = Results("A CPU, 2 threads", rows("histogram", "tiny", 4)).merged_into(tmp_path)
    Results("another", rows("histogram", "tiny", 5)).merged_into(tmp_path)
    assert path.name == "a-cpu-2-threads.json"
    mine, another = read_all(tmp_path)
    assert mine.rows == rows("quality", "tiny", 3) + rows("histogram", "tiny", 4)
    assert another.rows == rows("histogram", "tiny", 5)


def test_the_command_keeps_what_was_measured_when_another_part_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(parts.PARTS, "ablation", lambda *arguments: agree("ablation, change", torch.ones(1), 0.1))
    arguments = ["ablation", "loading", "--shape", "tiny", "--device", "cpu", "--output", str(tmp_path)]
    assert command_line.main(arguments) == 1
    (results,) = read_all(tmp_path)
    assert {row["part"] for row in results.rows} == {"loading"}
    assert {"date", "commit", "dirty", "torch", "machine"} <= results.rows[0].keys()
    assert "failed:\n  ablation, tiny: Disagreement: ablation, change: 1 of 1 values" in capsys.readouterr().out


def test_every_row_is_json_and_is_shown_in_both_tables(every_row):
    results = Results("a machine", json.loads(json.dumps(every_row)))
    text, markdown = report.as_text(results), report.as_markdown(results)
    for row in every_row:
        assert row["setting"] in text and row["setting"] in markdown
    header, *table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(table) == len(every_row) + 1
    assert {line.count("|") for line in table} == {header.count("|")}


def test_the_figures_draw_every_part_of_every_device(every_row):
    every = [Results("one", every_row), Results("other", every_row)]
    speed, growing = report.speed_figure(every), report.growth_figure(every)
    compared = {row["part"] for row in every_row if "ratio" in row}
    ratios, shares, *_ = speed.data
    assert len(ratios.x) == len(shares.x) == len(compared)
    assert {trace.name for trace in speed.data if trace.showlegend is not False} == {
        "tiny, one",
        "tiny, other",
        "aim",
    }
    assert len(growing.data) == len(every) * len(report.SERIES) * 2


def test_a_page_s_table_is_replaced_between_its_marks_and_nothing_else():
    page = f"before\n{report.TABLE_START}\nold \\1\n{report.TABLE_END}\nafter\n"
    written = report.with_table(page, r"| new \1 |")
    assert written == f"before\n{report.TABLE_START}\n| new \\1 |\n{report.TABLE_END}\nafter\n"
    assert report.with_table("no marks", "| new |") == "no marks"


def test_memory_is_what_a_call_takes_at_its_peak_above_what_is_there():
    there = torch.ones(2**24)
    result, size = timing.peak_memory(lambda: float(torch.ones(2**25).sum()), CPU)
    assert result == 2**25 and len(there) == 2**24
    assert size is None or abs(size - 2**27) < 2**24


def test_launches_and_waits_of_every_part_are_counted_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(launches, "STREAM_TOKENS", 32)
    monkeypatch.setattr(launches, "SLOW_TOKENS", 32)
    monkeypatch.setattr(launches, "CURVE_TOKENS", 16)
    monkeypatch.setattr(launches, "TRAINING_BATCHES", (16,))
    monkeypatch.setattr("sys.argv", ["launches", "--shape", "tiny"])
    launches.main()
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row[:20].strip() for row in rows] == list(launches.PARTS)
    counted = {row[:20].strip(): re.search(r"(?:tokens|samples|steps)\s+(\d+)\s+(\d+)", row) for row in rows}
    assert all(int(one[1]) > int(one[2]) for one in counted.values())
    assert int(counted["training, lambda 1"][1]) > int(counted["training, lambda 0"][1])  # it has a Jacobian, too
