# Every target sets up what it needs in .venv. Pass PYTHON=... for another interpreter, PHOTOS=folder to segment your own pictures.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PHOTOS ?=
JOBS   ?= 2
RUN    ?= runs/demo
SEED   ?= 0
CONFIG ?= configs/coda/scenes.yaml
NATIVE_SOURCES := $(shell find csrc setup.py CMakeLists.txt -type f 2>/dev/null)

.PHONY: demo test test-all test-gpu test-native kernel-budget cuda-library bench bench-gpu lint types setup clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^## //p' Makefile

## make demo       train CODA on drawn scenes, score it against trivial baselines, draw from its slots: runs/demo/report.html (10 minutes on 2 cores)
demo: $(READY)
	$(BIN)/ocl demo --config $(CONFIG) --run $(RUN) --training.seed $(SEED) --resume $(if $(PHOTOS),--photos $(PHOTOS))

## make test       the default test tier (under 10 minutes on 2 cores, no network)
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not slow and not gpu"

## make test-all   every test that this machine can run
test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

## make test-gpu   tests that need a CUDA device
test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

## make test-native  C++ tests, and CUDA kernels on a host emulator, under the address and undefined-behaviour sanitizers
test-native:
	cmake -S . -B build/native -DOCL_SANITIZE=ON && cmake --build build/native -j$(JOBS) && ctest --test-dir build/native -j$(JOBS) --output-on-failure

## make kernel-budget  compile the CUDA kernels (nvcc, no GPU) and compare registers, spills and shared memory with csrc/kernel_budget.json
kernel-budget:
	$(PYTHON) csrc/tools/kernel_budget.py

## make cuda-library  build and link the CUDA library (nvcc, no GPU): binding, machine code of the newest architecture, PTX
cuda-library: $(READY)
	rm -rf build/cuda
	OCL_CUDA=1 OCL_CUDA_ARCHS="9.0+PTX" $(BIN)/python setup.py --quiet build_ext --build-lib build/cuda --build-temp build/cuda-objects
	test -f build/cuda/ocl/lib/attention_cuda.so

## make bench      every benchmark that runs on a CPU; results under benchmarks/results
bench: $(READY)
	$(BIN)/python -m benchmarks

## make bench-gpu  the same on a CUDA device
bench-gpu: $(READY)
	$(BIN)/python -m benchmarks --device cuda

## make lint       style;  make types: static types
lint: $(READY)
	$(BIN)/ruff check .
types: $(READY)
	$(BIN)/mypy

setup: $(READY)

$(READY): pyproject.toml constraints.txt $(NATIVE_SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel pybind11 -c constraints.txt
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[data,deepspeed,diffusion,dev]"
	@$(BIN)/ocl describe ops
	@touch $(READY)

clean:
	rm -rf build $(VENV) *.egg-info ocl/*.so ocl/lib
