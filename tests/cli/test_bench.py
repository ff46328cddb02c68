"""`ocl bench ops`: it refuses a speed for a wrong result, compares what it should, and keeps what it measured."""

import json
import math
import time

import pytest
import torch

from ocl.cli import bench
from ocl.cli.main import main

command = bench.benchmarks()

from benchmarks import tables  # noqa: E402  (the checkout is on the path from here on)
from benchmarks.ops import cases, gate, goals, measure, register, report  # noqa: E402
from benchmarks.ops.cases import Case  # noqa: E402
from benchmarks.ops.clock import Roof, race  # noqa: E402
from benchmarks.ops.provider import Provider, Unavailable  # noqa: E402
from benchmarks.ops.step import draw  # noqa: E402

TINY = {"B": 2, "H": 2, "M": 5, "D": 8, "K": 3, "R": 4}
FORWARD = Case("register_attention", "forward", "float32", TINY)
ROOF = Roof(1e10, dict.fromkeys(cases.DTYPES, 1e11))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def fast(monkeypatch):
    """No time is spent on precision, nor on the device's ceilings."""
    monkeypatch.setattr(command, "SECONDS", 0.0)
    monkeypatch.setattr(command, "measure_roof", lambda device, dtypes: ROOF)
    monkeypatch.setattr("benchmarks.ops.clock.TURN", 0.0)


def run(*words):
    return main(["bench", "ops", "--device", "cpu", *words])


def row_of(case, *providers):
    return measure.measure(case, providers, "cpu", roof=ROOF, seconds=0.0)


def test_a_run_prints_a_table_and_keeps_rows_page_and_picture(fast, tmp_path, capsys):
    words = ["--op", "register_attention", "--sizes", "B=2", "H=2", "M=5", "D=8", "K=3", "R=4", "--out", str(tmp_path)]
    assert run(*words, "--provider", "eager", "sdpa", "sdpa-efficient", "ours", "--mode", "train", "maps") == 0
    printed = capsys.readouterr().out
    assert "forward and backward, all gradients: B2 H2 M5 D8 K3 R4" in printed
    assert "torch has no such backend for these inputs" in printed and "not measured on a GPU" in printed
    kept = json.loads((tmp_path / "ops.json").read_text())
    assert [row["mode"] for row in kept["rows"]] == ["train", "maps"]
    assert kept["command"].startswith("ocl bench ops --device cpu --op register_attention")
    assert kept["environment"]["torch"] == torch.__version__ and kept["environment"]["commit"]
    ours = kept["rows"][0]["providers"]["ours"]
    assert ours["median"] >= ours["least"] > 0 and ours["peak_bytes"] > 0 and ours["same_bits"] is True
    assert set(ours["errors"]) == {"output", "d query", "d key", "d value", "d register_key", "d register_value"}
    page = (tmp_path / "ops.md").read_text()
    assert "| B2 H2 M5 D8 K3 R4 | " in page and "ops-register_attention.png" in page
    assert (tmp_path / "ops-register_attention.png").stat().st_size > 0


@pytest.mark.parametrize("op", ["register_layer", "slot_attention", "slot_module"])
def test_every_operator_passes_its_gate(op):
    sizes = {"B": 2, "H": 2, "M": 5, "N": 6, "D": 8, "K": 3, "R": 4, "C": 16}
    modes = [mode for mode in cases.MODES[op] if mode in ("forward", "train")]
    for mode in modes:
        case = Case(op, mode, "float32", {name: sizes[name] for name in cases.SIZES[op]}, mask=op == "register_layer")
        row = row_of(case, *[provider for provider in measure.PROBLEMS[op].providers if not provider.compiled])
        assert all("median" in found for found in row["providers"].values()), row["providers"]


def test_a_backward_is_timed_without_its_forward():
    row = row_of(Case("register_attention", "backward", "float32", TINY), *measure.PROBLEMS["register_attention"].providers[:1])
    assert "output" not in row["providers"]["eager"]["errors"] and "median" in row["providers"]["eager"]


def test_keys_that_are_values_stay_one_tensor():
    case = Case("slot_attention", "train", "float32", {"B": 2, "H": 1, "N": 6, "D": 8, "K": 3}, shared=True)
    one = draw(case, measure.PROBLEMS["slot_attention"], "cpu", count=1)[0]
    for inputs in (one.inputs, one.in_float64().inputs, one.first_image().inputs):
        assert inputs["key"] is inputs["value"]


def test_no_speed_is_reported_for_a_wrong_result(capsys):
    def wrong(case):
        forward = register.eager(case)
        return lambda inputs: (forward(inputs)[0] * 1.001,)

    row = row_of(FORWARD, Provider("sdpa", register.sdpa), Provider("ours", wrong, "ours"))
    ours = row["providers"]["ours"]
    assert "off by 1.0e-03" in ours["wrong"] and "median" not in ours and "ratio" not in row
    assert "wrong: output off by" in report.block(row)
    assert measure.broken(row, "ours")


def test_a_wrong_gradient_is_found_behind_a_right_output():
    def wrong(case):
        forward = register.eager(case)

        def halved(inputs):
            return forward({**inputs, "key": inputs["key"].detach() / 2 + inputs["key"] / 2})

        return halved

    row = row_of(Case("register_attention", "train", "float32", TINY), Provider("ours", wrong, "ours"))
    assert row["providers"]["ours"]["wrong"].startswith("d key off by 5.0e-01")


def test_not_a_number_is_wrong():
    def wrong(case):
        return lambda inputs: (inputs["query"] * math.nan,)

    row = row_of(FORWARD, Provider("ours", wrong, "ours"))
    assert "off by inf" in row["providers"]["ours"]["wrong"]


def test_one_that_fails_does_not_stop_the_others():
    def refuses(case):
        raise Unavailable("not today")

    row = row_of(FORWARD, Provider("eager", register.eager), Provider("flex", refuses))
    assert row["providers"]["flex"] == {"unavailable": "not today"}
    assert row["best_baseline"] == "eager"


def test_a_run_with_a_wrong_result_of_ours_fails(fast, monkeypatch, capsys):
    monkeypatch.setattr(register.ops, "register_attention", lambda query, *others, **options: query)
    words = ["--op", "register_attention", "--sizes", "B=1", "M=5", "D=8", "--provider", "sdpa", "ours", "--mode", "forward"]
    assert run(*words) == 1
    assert "wrong or failing, so without a speed" in capsys.readouterr().out


def test_images_left_out_are_the_same_for_a_mask_and_a_bias():
    case = Case("register_attention", "train", "float32", TINY, mask=True)
    row = row_of(case, Provider("sdpa", register.sdpa), Provider("ours", register.ours, "ours"))
    assert all("median" in found for found in row["providers"].values()), row["providers"]


def test_bits_that_change_are_noticed():
    runs = iter(range(100))

    def restless(inputs):
        return (inputs["query"] * (1 + next(runs) * 2**-20),)

    one = draw(FORWARD, register.PROBLEM, "cpu", count=1)[0]
    assert not gate.same_bits(FORWARD, register.PROBLEM, restless, one)
    assert gate.same_bits(FORWARD, register.PROBLEM, register.eager(FORWARD), one)


def test_bits_that_depend_on_the_batch_are_noticed():
    one = draw(FORWARD, register.PROBLEM, "cpu", count=1)[0]
    assert not gate.same_bits(FORWARD, register.PROBLEM, lambda inputs: (inputs["query"] * len(inputs["query"]),), one)


def test_work_counts_what_no_implementation_can_avoid():
    sizes = {"B": 1, "H": 8, "M": 4096, "D": 40, "K": 7, "R": 77}
    flops, moved = register.work(Case("register_attention", "forward", "bfloat16", sizes))
    assert flops == 4 * 8 * 4096 * 84 * 40
    assert moved == 2 * (2 * 8 * 4096 * 40 + 2 * 84 * 8 * 40)
    everything, _ = register.work(Case("register_attention", "backward", "bfloat16", sizes))
    slots_only, _ = register.work(Case("register_attention", "backward-slots", "bfloat16", sizes))
    assert everything == 10 * 8 * 4096 * 84 * 40 and slots_only == 8 * 4096 * 40 * (6 * 84 + 4 * 7)


def test_contestants_take_turns_on_all_inputs():
    seen = {"left": [], "right": []}
    times = race({name: seen[name].append for name in seen}, sets=3, device="cpu", seconds=0.0)
    assert all({index % 3 for index in numbers} == {0, 1, 2} for numbers in seen.values())
    assert times["left"].rounds == times["right"].rounds == 9


def made_row(case, ours, **others):
    providers = {name: {"median": time, "least": time} for name, time in {"ours": ours, **others}.items()}
    best = min(others, key=others.get)
    return {**case.as_row(), "threads": 1, "providers": providers, "best_baseline": best, "ratio": others[best] / ours}


def listed(mode):
    same = ("register_attention", mode, "bfloat16", False)
    return [case for case in cases.listed("cpu") if (case.op, case.mode, case.dtype, case.mask) == same]


def outcome(rows, name, ending):
    return next(goal for goal in goals.judge(rows, "cpu") if goal.name == name and goal.text.endswith(ending))


def test_a_goal_is_the_geometric_mean_over_the_listed_shapes():
    times = [1.0, 2.0, 4.0, 1.0, 2.0, 4.0]
    rows = [made_row(case, 1.0, sdpa=time) for case, time in zip(listed("forward"), times, strict=True)]
    found = outcome(rows, "C1", "than sdpa")
    assert (found.measured, found.by_least, found.rows, found.reached) == ("2", "2", "6 of 6", "yes")


def test_a_goal_is_not_reached_while_one_shape_is_slower_than_its_best_baseline():
    rows = [made_row(case, 1.0, sdpa=10.0, eager=10.0) for case in listed("forward")]
    rows[2] = made_row(listed("forward")[2], 1.0, sdpa=10.0, eager=0.9)
    found = outcome(rows, "C1", "than sdpa")
    assert found.measured == "10" and found.reached == "no" and "B2 H8 M256 D160 (0.90 of eager)" in found.worst


def test_a_goal_with_missing_rows_says_so():
    found = outcome([made_row(case, 1.0, sdpa=9.0) for case in listed("forward")[:4]], "C1", "than sdpa")
    assert (found.rows, found.reached) == ("4 of 6", "rows missing")


def test_goals_without_a_gpu_are_not_measured():
    found = goals.judge([], "cuda")
    assert {goal.name for goal in found} == {f"G{number}" for number in range(1, 13)}
    assert {goal.reached for goal in found} == {"not measured on a GPU"} and {goal.measured for goal in found} == {""}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_goal_is_about_listed_rows(kind):
    known = {case.key for case in cases.listed(kind)}
    assert len(known) == len(cases.listed(kind))
    for goal in goals.cpu_goals() if kind == "cpu" else goals.gpu_goals():
        assert goal.cases and set(goal.cases) <= known


def test_part_of_the_rows_can_be_measured_again(fast, tmp_path):
    words = ["--op", "register_attention", "--sizes", "B=1", "M=5", "D=8", "--provider", "sdpa", "ours", "--out", str(tmp_path)]
    assert run(*words, "--mode", "forward", "train") == 0
    first = json.loads((tmp_path / "ops.json").read_text())["rows"]
    assert run(*words, "--mode", "train") == 0
    second = json.loads((tmp_path / "ops.json").read_text())["rows"]
    assert second[0] == first[0] and second[1] != first[1] and len(second) == 2


def test_rows_without_all_providers_replace_no_kept_ones():
    assert command.Wishes(providers=["ours"]).folder is None
    assert command.Wishes(quick=True).folder is None
    assert command.Wishes(modes=["forward"]).folder is not None


def test_only_missing_rows_are_measured_when_asked(fast, tmp_path, capsys):
    words = ["--op", "register_attention", "--sizes", "B=1", "M=5", "D=8", "--provider", "ours", "--out", str(tmp_path)]
    words += ["--commit", "abc"]
    assert run(*words, "--mode", "forward") == 0
    capsys.readouterr()
    assert run(*words, "--mode", "forward", "train", "--missing") == 0
    assert "[1 of 1]" in capsys.readouterr().out


def test_the_page_of_all_results_links_the_operators_page(fast, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    words = ["--op", "slot_attention", "--sizes", "B=1", "N=6", "D=8", "--provider", "eager", "ours"]
    assert run(*words, "--out", str(tmp_path / "here")) == 0
    page = (tmp_path / "README.md").read_text()
    assert "[Every row](here/ops.md)" in page and "not measured on a GPU" in page
    assert (tmp_path / "here" / "ops.md").exists()


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--op", "attention"], "register_attention, register_layer, slot_attention, slot_module"),
        (["--mode", "sideways"], "forward, train"),
        (["--dtype", "int8"], "float32, bfloat16, float16"),
        (["--provider", "theirs"], "eager, compile, sdpa"),
        (["--shape", "Q=3"], "NAME=NUMBER"),
        (["--shape", "B=99"], "Listed shapes: B2 H8 M256 D160"),
        (["--sizes", "B=2"], "--op register_attention"),
        (["--sizes", "B=2", "--op", "slot_attention"], "N D missing"),
        (["--sizes", "B=2", "N=4", "D=8", "M=3", "--op", "slot_attention"], "got M too"),
        (["--threads", "0"], "--threads 1"),
        (["--device", "meta"], "--device cpu"),
        (["--fast"], "ocl bench --help"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_an_unknown_name_is_refused_with_a_way_out(words, names, capsys):
    assert main(["bench", "ops", "--quick", *(["--device", "cpu"] if "--device" not in words else []), *words]) == 2
    assert names in capsys.readouterr().err


@pytest.mark.slow
def test_a_quick_run_takes_less_than_a_minute(capsys):
    started = time.perf_counter()
    assert run("--quick") == 0
    assert time.perf_counter() - started < 60
    assert capsys.readouterr().out.count("the best baseline") == len(cases.listed("cpu", quick=True))


def test_without_a_checkout_the_command_says_how_to_get_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench.ocl, "__file__", str(tmp_path / "site-packages" / "ocl" / "__init__.py"))
    assert main(["bench", "ops"]) == 2
    assert "pip install -e ." in capsys.readouterr().err


@pytest.mark.parametrize(("device", "number"), [("cuda", 0), ("cuda:1", 1)])
def test_a_device_may_be_named_without_its_number(device, number, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch._C, "_cuda_setDevice", chosen.append, raising=False)  # a build for CPUs has none
    command._prepare(command.Wishes(device=device))
    assert chosen == [number]


def test_a_cpu_measures_the_layers_of_a_model_that_is_named():
    chosen = command.choose(command.Wishes(shape=("SD1.5 mid", "B=8"), modes=("forward",)))
    assert [case.key for case in chosen] == ["register_attention forward float32 B=8 H=8 M=64 D=160 K=7 R=77"]
