"""The budget of the CUDA kernels: what ptxas says is read, compared and written as the file shows it. Needs no nvcc."""

import importlib.util
import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
SYMBOL = "_ZN3ocl18register_attention14forward_kernelINS_4simt8bfloat16ELi40ELi11EEEvNS_24RegisterAttentionForwardENS0_5ShapeE"
KERNEL = "register_attention::forward_kernel<bfloat16, 40, 11>"
USAGE = {"registers": 168, "stack": 16, "spill_stores": 8, "spill_loads": 12, "shared": 1024}


def ptxas(arch="sm_80", registers=168, shared=", 1024 bytes smem"):
    """What nvcc 13.0 prints with -Xptxas -v for one kernel that calls one function."""
    return f"""ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{SYMBOL}' for '{arch}'
ptxas info    : Function properties for {SYMBOL}
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers{shared}, 664 bytes cmem[0]
ptxas info    : Compile time = 36.208 ms
ptxas info    : Function properties for __internal_trig_reduction_slowpathd
    40 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""


SASS = """
		Function : kernel_a
	.headerflags	@"EF_CUDA_TEXMODE_UNIFIED EF_CUDA_64BIT_ADDRESS EF_CUDA_SM80"
        /*0140*/                   LDGSTS.E.BYPASS.LTC128B.128 [R9], [R4.64] ;         /* 0x0000000004097fae */
        /*0150*/                   LDSM.16.M88.4 R4, [R20] ;                          /* 0x000000001404783b */
        /*0160*/                   HMMA.16816.F32.BF16 R8, R4, R12, RZ ;              /* 0x0000000c0408723c */
        /*0170*/                   HMMA.16816.F32.BF16 R8, R4, R14, R8 ;              /* 0x0000000e0408723c */
        /*0180*/                   REDUX.SUM UR4, R3 ;                                /* 0x00000000030473c4 */
        /*0190*/                   RED.E.ADD.STRONG.GPU [R2.64], R5 ;                 /* 0x000000050200798e */
		Function : kernel_b
        /*0000*/                   RED.E.ADD.F32.FTZ.RN.STRONG.GPU [R2.64], R5 ;      /* 0x000000050200798e */
        /*0010*/                   ATOMS.CAST.SPIN R9, [R6], R8, R9 ;                 /* 0x000000080609738d */
"""


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("kernel_budget", CSRC / "tools" / "kernel_budget.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reads_registers_stack_spills_and_shared_memory_of_each_kernel(tool):
    log = ptxas() + ptxas("sm_90", registers=96, shared="")
    assert list(tool.parse_ptxas(log)) == [
        (SYMBOL, "sm_80", USAGE),
        (SYMBOL, "sm_90", USAGE | {"registers": 96, "shared": 0}),
    ]


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        ("void ocl::register_attention::mean_kernel<float>(ocl::MeanOverHeads)", "register_attention::mean_kernel<float>"),
        ("void ocl::register_attention::forward_kernel<ocl::simt::bfloat16, (int)40, (int)11>(ocl::A, ocl::B)", KERNEL),
        ("void ocl::register_attention::forward_kernel<ocl::simt::bfloat16, 40, 11>(ocl::A, ocl::B)", KERNEL),
        ("plain(float*, int (*)(int))", "plain"),
    ],
)
def test_names_are_short_and_do_not_depend_on_the_demangler(tool, demangled, name):
    assert tool.short_name(demangled) == name


def test_dynamic_shared_memory_is_found_whatever_the_element_type(tool, monkeypatch):
    monkeypatch.setattr(tool, "readable", lambda symbols: dict.fromkeys(symbols, KERNEL))
    found = tool.measured(ptxas(), {"register_attention::forward_kernel<40, 11>": 22016})
    assert found == {KERNEL: {"sm_80": USAGE | {"dynamic_shared": 22016}}}


def test_only_numbers_above_the_budget_and_kernels_that_one_side_lacks_are_differences(tool):
    budget = {"kept": {"sm_80": USAGE}, "lost": {"sm_80": USAGE}}
    found = {"kept": {"sm_80": USAGE | {"registers": 170, "stack": 0}}, "new": {"sm_80": USAGE}}
    rows = list(tool.differences(budget, found, ["sm_80", "sm_90"], partial=False))
    assert rows == [
        ["kept", "sm_80", "registers", "168", "170"],
        ["lost", "sm_80", "kernel", "listed", "missing"],
        ["new", "sm_80", "kernel", "missing", "new"],
    ]
    assert list(tool.differences(budget, {"kept": budget["kept"]}, ["sm_80"], partial=True)) == []


def test_an_update_replaces_what_was_compiled_and_keeps_other_architectures(tool):
    more = USAGE | {"registers": 200}
    budget = {"kept": {"sm_80": USAGE, "sm_90": USAGE}, "lost": {"sm_80": USAGE}}
    found = {"kept": {"sm_80": more}}
    kept = {"sm_80": more, "sm_90": USAGE}
    assert tool.merged(budget, found, ["sm_80"], partial=False) == {"kept": kept}
    assert tool.merged(budget, found, ["sm_80"], partial=True) == {"kept": kept, "lost": {"sm_80": USAGE}}


def test_the_file_has_one_kernel_per_line_with_widths_in_order(tool, tmp_path):
    table = {f"kernel<{width}>": {"sm_80": USAGE} for width in (128, 40)}
    tool.write(tmp_path / "budget.json", "13.0", table)
    lines = (tmp_path / "budget.json").read_text().splitlines()
    assert [line.split(":")[0] for line in lines[1:-1]] == ['"kernel<40>"', '"kernel<128>"']
    assert tool.read(tmp_path / "budget.json") == ("13.0", table)


def test_a_run_fails_where_a_kernel_takes_more_and_passes_after_an_update(tool, tmp_path, monkeypatch, capsys):
    budget = tmp_path / "budget.json"
    monkeypatch.setattr(tool, "dynamic_shared", lambda folder: {})
    monkeypatch.setattr(tool, "readable", lambda symbols: dict.fromkeys(symbols, KERNEL))

    def run(registers, *more, nvcc="13.0"):
        monkeypatch.setattr(tool, "nvcc_version", lambda: nvcc)
        monkeypatch.setattr(tool, "compile_all", lambda sources, archs, folder: (ptxas(registers=registers), []))
        return tool.main(["--budget", str(budget), "--archs", "sm_80", *more])

    assert run(100) == 1
    assert run(100, "--update") == 0
    assert run(100) == run(90) == 0
    capsys.readouterr()
    assert run(104) == 1
    report = capsys.readouterr().out.splitlines()
    assert report[1].split() == [*KERNEL.split(), "sm_80", "registers", "100", "104"]
    assert run(104, nvcc="13.1") == 1
    assert "taken with nvcc 13.0, this is nvcc 13.1" in capsys.readouterr().out


def test_counts_tensor_core_instructions_and_finds_floating_point_atomics(tool):
    counts, atomics = tool.parse_sass(SASS)
    assert counts["kernel_a"] == {"HMMA": 2, "LDSM": 1, "LDGSTS": 1}
    assert atomics == [["kernel_b", "RED.E.ADD.F32.FTZ.RN.STRONG.GPU"], ["kernel_b", "ATOMS.CAST.SPIN"]]


def test_without_nvcc_the_error_says_what_to_install(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert tool.main([]) == 2
    assert "nvcc is not on PATH; install the CUDA toolkit" in capsys.readouterr().err


def test_the_budget_in_the_repository_covers_the_same_kernels_on_every_architecture(tool):
    _, budget = tool.read(CSRC / "kernel_budget.json")
    assert {frozenset(usages) for usages in budget.values()} == {frozenset({"sm_80", "sm_90"})}
    assert list(budget) == sorted(budget, key=tool.natural)


def test_no_source_uses_an_atomic():
    """The order of every sum is fixed: neither CUDA's atomics nor the instructions behind them stand in any kernel."""
    atomic = re.compile(r"\batomic\w*\s*\(|\b(?:red|atom)\.\w|std::atomic")
    found = [path.name for path in CSRC.rglob("*.*") if path.suffix in (".h", ".cu", ".cpp") and "tests" not in path.parts
             and atomic.search(path.read_text())]  # fmt: skip
    assert found == []
