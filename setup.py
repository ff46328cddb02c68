"""Builds ocl._native from csrc, or installs without it: the pure Python reference gives the same results.

OCL_NATIVE=0 skips the build. Everything else about the package stands in pyproject.toml.
"""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from textwrap import shorten

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.extension import Extension

ROOT = Path(__file__).resolve().parent
FLAGS = ["/O2"] if sys.platform == "win32" else ["-O3", "-fvisibility=hidden"]
WITHOUT = "installing the pure Python reference; results are the same, metrics are slower"


def sources(target: str) -> list[str]:
    """The files of one target, as csrc/sources.txt lists them; CMakeLists.txt reads the same list."""
    lines = (ROOT / "csrc" / "sources.txt").read_text().splitlines()
    return [f"csrc/{line.split()[1]}" for line in lines if line.split()[:1] == [target]]


def native_extensions() -> list[Extension]:
    if os.environ.get("OCL_NATIVE") == "0":
        return []
    try:
        from pybind11.setup_helpers import Pybind11Extension
    except ImportError:
        print(f"ocl: no pybind11 found (pip install pybind11), {WITHOUT}", file=sys.stderr)
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


class OptionalBuild(build_ext):
    """build_ext that gives up an extension it cannot build, in one line, instead of failing the installation."""

    def build_extensions(self) -> None:
        for extension in list(self.extensions):
            try:
                self.build_extension(extension)
            except Exception as reason:  # whatever a compiler and its driver may raise
                self.extensions.remove(extension)
                what = shorten(str(reason), width=80, placeholder=" ...")
                print(f"ocl: no working C++ compiler found ({what}), {WITHOUT}", file=sys.stderr)


setup(ext_modules=native_extensions(), cmdclass={"build_ext": OptionalBuild})
