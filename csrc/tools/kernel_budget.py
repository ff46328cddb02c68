"""What every CUDA kernel takes (registers, stack, spills, shared memory) against csrc/kernel_budget.json. Needs nvcc, no GPU.

    python csrc/tools/kernel_budget.py                      compiles what csrc/sources.txt lists; exit 1 where a kernel takes more
    python csrc/tools/kernel_budget.py --update             accepts what was found
    python csrc/tools/kernel_budget.py --sass --tools DIR   also reads the machine code: no floating-point atomics in any kernel

ptxas knows static shared memory; what launches ask for on top is printed by csrc/tools/dynamic_shared.cpp, from the launch tables.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1]
BUDGET = CSRC / "kernel_budget.json"
INCLUDES = ["-I", str(CSRC / "include"), "-I", str(CSRC)]
JOBS = os.cpu_count() or 1

Usage = dict[str, int]  # registers, stack, spill_stores, ...: more is worse
Table = dict[str, dict[str, Usage]]  # kernel -> architecture -> usage

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
PROPERTIES = re.compile(r"Function properties for (\w+)")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
PARAMETERS = re.compile(r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)$")  # the last pair of parentheses, with two levels inside
SASS_FUNCTION = re.compile(r"Function : (\w+)")
COUNTED = ("HMMA", "LDSM", "LDGSTS")
# Additions of floats in memory, and compare-and-swap, of which nvcc makes those that the hardware lacks.
FLOAT_ATOMIC = re.compile(r"\b(?:RED|REDG|ATOM|ATOMG|ATOMS)\.[\w.]*(?:F16|F32|F64|CAS)[\w.]*")


class BudgetError(Exception):
    """Why nothing could be measured; the text says what to do."""


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    try:
        return run(options)
    except BudgetError as error:
        print(f"kernel_budget: {error}", file=sys.stderr)
        return 2


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="CUDA sources; default: the cuda lines of csrc/sources.txt")
    parser.add_argument("--archs", nargs="+", default=["sm_80", "sm_90"], metavar="sm_XX")
    parser.add_argument("--budget", type=Path, default=BUDGET, help="the file to compare with")
    parser.add_argument("--update", action="store_true", help="write what was found into the budget file")
    parser.add_argument("--sass", action="store_true", help="read the machine code too (needs cuobjdump)")
    parser.add_argument("--tools", type=Path, metavar="DIR", help="folder of cuobjdump, such as triton/backends/nvidia/bin")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the object files here")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    cuobjdump = tool("cuobjdump", "install the CUDA toolkit or pass --tools DIR", options.tools) if options.sass else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        log, objects = compile_all(options.files or listed_sources(), options.archs, folder)
        found = measured(log, dynamic_shared(folder))
        sass = disassembled(cuobjdump, objects) if cuobjdump else ""
    taken_with, budget = read(options.budget)
    compiler, partial = nvcc_version(), bool(options.files)
    if options.update:
        taken_with, budget = compiler, merged(budget, found, options.archs, partial=partial)
        write(options.budget, compiler, budget)
    problems = list(differences(budget, found, options.archs, partial=partial))
    print_table(["kernel", "arch", "what", "budget", "found"], problems)
    way_out = "; --update accepts them" if problems else ""
    print(f"{len(found)} kernels, {len(problems)} differences from {options.budget}{way_out}")
    if problems and compiler != taken_with:
        print(f"the budget was taken with nvcc {taken_with}, this is nvcc {compiler}, which may be the reason")
    atomics = report_sass(sass) if options.sass else []
    return 1 if problems or atomics else 0


# ---- compiling


def tool(name: str, way_out: str, folder: Path | None = None) -> str:
    found = shutil.which(name, path=str(folder)) if folder else shutil.which(name)
    if found is None:
        raise BudgetError(f"{name} is not {f'in {folder}' if folder else 'on PATH'}; {way_out}")
    return found


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    return tool("nvcc", "install the CUDA toolkit or set CUDA_HOME; no GPU is needed", Path(home) / "bin" if home else None)


def nvcc_version() -> str:
    """Such as 13.0."""
    said = output([nvcc(), "--version"])
    release = re.search(r"release (\d+\.\d+)", said)
    if release is None:
        raise BudgetError(f"nvcc --version names no release:\n{said}")
    return release[1]


def listed_sources() -> list[Path]:
    lines = (CSRC / "sources.txt").read_text().splitlines()
    return [CSRC / line.split()[1] for line in lines if line.split()[:1] == ["cuda"]]


def compile_all(sources: list[Path], archs: list[str], folder: Path) -> tuple[str, list[Path]]:
    """What ptxas says about all sources and architectures, and their object files."""
    compiler = nvcc()

    def build(job: tuple[int, Path, str]) -> tuple[str, Path]:
        index, source, arch = job
        result = folder / f"{index:02d}_{source.stem}.{arch}.o"
        flags = ["-std=c++17", "-O3", "-Xptxas", "-v", *INCLUDES, f"-arch={arch}"]
        return output([compiler, *flags, "-c", str(source), "-o", str(result)], with_errors=True), result

    with ThreadPoolExecutor(JOBS) as pool:
        built = list(pool.map(build, [(index, source, arch) for index, source in enumerate(sources) for arch in archs]))
    return "".join(log for log, _ in built), [result for _, result in built]


def output(command: list[str], *, text: str = "", with_errors: bool = False) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise BudgetError(f"{' '.join(command)} failed:\n{done.stderr or done.stdout}")
    return done.stdout + (done.stderr if with_errors else "")


def dynamic_shared(folder: Path) -> dict[str, int]:
    """Kernel with its whole-number arguments, `forward_kernel<40, 11>`, -> bytes that a launch asks for."""
    program = folder / "dynamic_shared"
    compiler = tool(os.environ.get("CXX", "g++"), "install a C++ compiler or set CXX")
    output([compiler, "-std=c++17", *INCLUDES, str(CSRC / "tools" / "dynamic_shared.cpp"), "-o", str(program)])
    lines = [line.rsplit(maxsplit=1) for line in output([str(program)]).splitlines()]
    return {kernel: int(size) for kernel, size in lines}


# ---- reading what the compiler says


def measured(log: str, dynamic: dict[str, int]) -> Table:
    found: Table = {}
    usages = list(parse_ptxas(log))
    names = readable([symbol for symbol, _, _ in usages])
    for symbol, arch, usage in usages:
        name = names[symbol]
        if (size := dynamic.get(without_types(name))) is not None:
            usage["dynamic_shared"] = size
        found.setdefault(name, {})[arch] = usage
    return found


def parse_ptxas(log: str) -> Iterator[tuple[str, str, Usage]]:
    """(symbol, architecture, usage) of every kernel in the output of `ptxas -v`."""
    symbol = arch = function = ""
    frame = (0, 0, 0)
    for line in log.splitlines():
        if match := ENTRY.search(line):
            symbol, arch = match.groups()
        elif match := PROPERTIES.search(line):
            function = match[1]  # functions that a kernel calls have properties of their own
        elif (match := FRAME.search(line)) and function == symbol:
            frame = (int(match[1]), int(match[2]), int(match[3]))
        elif match := REGISTERS.search(line):
            shared = SHARED.search(line)
            yield symbol, arch, {
                "registers": int(match[1]),
                "stack": frame[0],
                "spill_stores": frame[1],
                "spill_loads": frame[2],
                "shared": int(shared[1]) if shared else 0,
            }


def readable(symbols: Iterable[str]) -> dict[str, str]:
    """Symbols -> names such as register_attention::forward_kernel<bfloat16, 40, 11>; the symbols themselves without a demangler."""
    unique = sorted(set(symbols))
    demangler = shutil.which("cu++filt") or shutil.which("c++filt")
    if demangler is None or not unique:
        return dict(zip(unique, unique, strict=True))
    return dict(zip(unique, map(short_name, output([demangler], text="\n".join(unique)).splitlines()), strict=True))


def short_name(demangled: str) -> str:
    """Without the return type, the parameters and the namespaces that all kernels share."""
    name = PARAMETERS.sub("", demangled.removeprefix("void "))
    return re.sub(r"\((?:int|long|bool)\)|\bocl::|\bsimt::", "", name)


def without_types(name: str) -> str:
    """forward_kernel<bfloat16, 40, 11> -> forward_kernel<40, 11>"""
    kernel, _, rest = name.partition("<")
    return f"{kernel}<{', '.join(part for part in rest.removesuffix('>').split(', ') if part.isdigit())}>"


# ---- the budget file


def read(path: Path) -> tuple[str, Table]:
    """The nvcc that it was taken with, and the kernels; without a file neither."""
    found = json.loads(path.read_text()) if path.exists() else {"nvcc": "", "kernels": {}}
    return found["nvcc"], found["kernels"]


def write(path: Path, compiler: str, table: Table) -> None:
    """One kernel per line, sorted, so that a change of the budget reads well."""
    lines = [f"{json.dumps(kernel)}: {json.dumps(table[kernel], sort_keys=True)}" for kernel in sorted(table, key=natural)]
    path.write_text(f'{{"nvcc": {json.dumps(compiler)}, "kernels": {{\n' + ",\n".join(lines) + "\n}}\n")


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts width 40 before 128."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def merged(budget: Table, found: Table, archs: list[str], *, partial: bool) -> Table:
    """The budget after an update: other architectures stay, and with some of the sources other kernels too."""
    table: Table = {}
    for kernel in budget.keys() | found.keys():
        untouched = partial and kernel not in found
        kept = {arch: usage for arch, usage in budget.get(kernel, {}).items() if untouched or arch not in archs}
        usages = kept | found.get(kernel, {})
        if usages:
            table[kernel] = usages
    return table


def differences(budget: Table, found: Table, archs: list[str], *, partial: bool) -> Iterator[list[str]]:
    """Rows (kernel, architecture, what, budget, found): numbers above the budget, kernels that one side lacks."""
    for kernel in sorted(found if partial else budget.keys() | found.keys(), key=natural):
        for arch in archs:
            allowed, taken = budget.get(kernel, {}).get(arch), found.get(kernel, {}).get(arch)
            if allowed is None and taken is not None:
                yield [kernel, arch, "kernel", "missing", "new"]
            elif taken is None and allowed is not None:
                yield [kernel, arch, "kernel", "listed", "missing"]
            elif allowed is not None and taken is not None:
                for what in sorted(allowed.keys() | taken.keys()):
                    if taken.get(what, 0) > allowed.get(what, 0):
                        yield [kernel, arch, what, str(allowed.get(what, 0)), str(taken[what])]


# ---- machine code


def disassembled(cuobjdump: str, objects: list[Path]) -> str:
    # cuobjdump calls nvdisasm, which lies beside it.
    path = os.pathsep.join([str(Path(cuobjdump).parent), os.environ.get("PATH", "")])
    command = ["env", f"PATH={path}", cuobjdump, "-sass"]
    with ThreadPoolExecutor(JOBS) as pool:
        return "".join(pool.map(lambda result: output([*command, str(result)]), objects))


def parse_sass(sass: str) -> tuple[dict[str, Counter[str]], list[list[str]]]:
    """Counts of instructions per symbol, and rows (symbol, instruction) of floating-point atomics."""
    counts: dict[str, Counter[str]] = {}
    atomics: list[list[str]] = []
    symbol = ""
    for line in sass.splitlines():
        if match := SASS_FUNCTION.search(line):
            symbol = match[1]
            counts.setdefault(symbol, Counter())
        elif symbol and "/*" in line:
            counts[symbol].update(name for name in COUNTED if re.search(rf"\b{name}\b", line))
            atomics += [[symbol, match[0]] for match in FLOAT_ATOMIC.finditer(line)]
    return counts, atomics


def report_sass(sass: str) -> list[list[str]]:
    """Prints how often each group of kernels uses tensor cores and their loads; returns the floating-point atomics found."""
    counts, atomics = parse_sass(sass)
    names = readable(counts)
    groups: dict[str, Counter[str]] = {}
    for symbol, instructions in counts.items():
        groups.setdefault(names[symbol].split("<")[0], Counter()).update(instructions)
    rows = [[name, *(str(groups[name][instruction]) for instruction in COUNTED)] for name in sorted(groups)]
    print_table(["kernels, all architectures", *COUNTED], rows)
    print_table(["kernel with a floating-point atomic", "instruction"], [[names[symbol], text] for symbol, text in atomics])
    print(f"{len(counts)} kernels, {len(atomics)} floating-point atomics")
    return atomics


def print_table(header: list[str], rows: list[list[str]]) -> None:
    if not rows:
        return
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
