"""Builds what csrc/sources.txt lists, or installs without it: the Python references give the same results, slower.

    ocl/_native*.so           utilities without tensors; needs pybind11 and a C++ compiler
    ocl/lib/attention_cpu.so  attention operators over torch's stable ABI; needs torch (--no-build-isolation) and a C++ compiler
    ocl/lib/attention_cuda.so the same for NVIDIA GPUs; needs nvcc too; built where torch has CUDA, or with OCL_CUDA=1

Environment: OCL_NATIVE=0 builds nothing, OCL_CUDA=0 or 1 decides about CUDA, OCL_CUDA_ARCHS="8.0;9.0+PTX" names architectures,
OCL_BUILD_JOBS the number of compilers at once. Everything else about the package stands in pyproject.toml.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import shorten

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.extension import Extension

ROOT = Path(__file__).resolve().parent
FLAGS = ["/O2"] if sys.platform == "win32" else ["-O3", "-fvisibility=hidden"]
WITHOUT = "installing without it; results are the same, slower"
STABLE_ABI = ("TORCH_TARGET_VERSION", "0x020a000000000000")  # torch 2.10 and later load what is built against it
CUDA_ARCHS = "8.0;8.6;8.9;9.0+PTX"
JOBS = int(os.environ.get("OCL_BUILD_JOBS", os.cpu_count() or 1))


def sources(target: str) -> list[str]:
    """The files of one target, as csrc/sources.txt lists them; CMakeLists.txt reads the same list."""
    lines = (ROOT / "csrc" / "sources.txt").read_text().splitlines()
    return [f"csrc/{line.split()[1]}" for line in lines if line.split()[:1] == [target]]


def say(text: str) -> None:
    print(f"ocl: {text}", file=sys.stderr)


def native_extensions() -> list[Extension]:
    if os.environ.get("OCL_NATIVE") == "0":
        return []
    return [*utilities(), *attention()]


def utilities() -> list[Extension]:
    try:
        from pybind11.setup_helpers import Pybind11Extension
    except ImportError:
        say(f"no pybind11 found (pip install pybind11), so no ocl._native: {WITHOUT}")
        return []
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return [
        Pybind11Extension(
            "ocl._native",
            sources("core") + sources("module"),
            include_dirs=["csrc/include"],
            define_macros=[("OCL_VERSION", f'"{version}"'), ("OCL_FLAGS", f'"{" ".join(FLAGS)}"')],
            extra_compile_args=FLAGS,
            cxx_std=17,
            optional=True,
        )
    ]


def attention() -> list[Extension]:
    if sys.platform == "win32":
        say(f"the attention libraries are not built on Windows, {WITHOUT}")
        return []
    try:
        import torch
    except ImportError:
        say(f"no torch at build time (pip install --no-build-isolation), so no compiled attention: {WITHOUT}")
        return []
    home = Path(torch.__file__).parent
    common = {
        "include_dirs": ["csrc", "csrc/include", str(home / "include"), str(home / "include/torch/csrc/api/include")],
        "library_dirs": [str(home / "lib")],
        "libraries": ["torch", "torch_cpu", "c10"],
        "define_macros": [STABLE_ABI],
        "extra_compile_args": [*FLAGS, "-std=c++17", "-Wno-attributes"],
        "optional": True,
    }
    cpu = Extension("ocl.lib.attention_cpu", [*sources("attention"), *sources("torch_cpu")], **common)
    wanted = os.environ.get("OCL_CUDA", "auto")
    if wanted == "0" or (wanted == "auto" and torch.version.cuda is None):
        return [cpu]
    if shutil.which(nvcc()) is None:
        say(f"no nvcc found (set CUDA_HOME), so no CUDA attention: {WITHOUT}")
        return [cpu]
    cuda = Extension("ocl.lib.attention_cuda", [*sources("torch_cuda"), *sources("cuda")], **common)
    return [cpu, cuda]


def nvcc() -> str:
    home = os.environ.get("CUDA_HOME")
    return str(Path(home) / "bin" / "nvcc") if home else "nvcc"


def gencode(archs: str) -> list[str]:
    """"8.0;9.0+PTX" -> nvcc flags: machine code for every architecture, PTX where asked for."""
    flags = []
    for arch in re.split(r"[;, ]+", archs.strip()):
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


class OptionalBuild(build_ext):
    """build_ext that gives up an extension it cannot build, in one line, instead of failing the installation."""

    def get_ext_filename(self, fullname: str) -> str:
        """The attention libraries are no Python modules and serve every Python: a plain name, ocl/lib/attention_cpu.so."""
        *folders, name = fullname.split(".")
        if name.startswith("attention_"):
            return os.path.join(*folders, f"{name}.so")
        return super().get_ext_filename(fullname)

    def copy_extensions_to_source(self) -> None:
        (ROOT / "ocl" / "lib").mkdir(exist_ok=True)  # a folder of files, not a package: nothing imports them by mistake
        super().copy_extensions_to_source()

    def build_extensions(self) -> None:
        for extension in list(self.extensions):
            try:
                self.build_extension(extension)
            except Exception as reason:  # whatever a compiler and its driver may raise
                self.extensions.remove(extension)
                what = shorten(str(reason), width=80, placeholder=" ...")
                say(f"{extension.name} could not be compiled ({what}): {WITHOUT}")

    def build_extension(self, extension: Extension) -> None:
        if not extension.name.startswith("ocl.lib."):
            super().build_extension(extension)
            return
        with ThreadPoolExecutor(JOBS) as pool:
            objects = list(pool.map(lambda source: self._object(extension, source), extension.sources))
        result = Path(self.get_ext_fullpath(extension.name))
        result.parent.mkdir(parents=True, exist_ok=True)
        libraries = [f"-l{name}" for name in extension.libraries]
        folders = [f"-L{folder}" for folder in extension.library_dirs]
        if extension.name.endswith("_cuda"):
            link = [nvcc(), "-shared", "-cudart", "static", *objects, *folders, "-Xlinker", "--no-as-needed", *libraries]
        else:
            link = [self._cxx(), "-shared", *objects, *folders, "-Wl,--no-as-needed", *libraries]
        run([*link, "-o", str(result)])

    def _object(self, extension: Extension, source: str) -> str:
        target = Path(self.build_temp) / extension.name / (source + ".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{folder}" for folder in extension.include_dirs]
        if source.endswith(".cu"):
            archs = os.environ.get("OCL_CUDA_ARCHS", os.environ.get("TORCH_CUDA_ARCH_LIST", CUDA_ARCHS))
            flags = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", *gencode(archs)]
            run([nvcc(), *flags, *includes[:2], "-c", source, "-o", str(target)])
        else:
            macros = [f"-D{name}={value}" for name, value in extension.define_macros]
            run([self._cxx(), "-fPIC", *extension.extra_compile_args, *macros, *includes, "-c", source, "-o", str(target)])
        return str(target)

    def _cxx(self) -> str:
        return self.compiler.compiler_so_cxx[0]


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        say(" ".join(command))
        raise RuntimeError(f"{command[0]}: {done.stderr.strip()}")


setup(ext_modules=native_extensions(), cmdclass={"build_ext": OptionalBuild})
