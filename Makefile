# `make env` once, then the rest. `make help` lists the targets.
PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
# Touched after a complete installation; older than one of the files below: install again.
STAMP := $(VENV)/.rdsnet-installed
INSTALLED_FROM := setup.py pyproject.toml constraints.txt \
	tools/make_env.py tools/install_detectron2.py tools/pure_detectron2.py \
	$(wildcard projects/*/*/__init__.py rdsnet/ops/csrc/*.[ch]* rdsnet/ops/csrc/*/*.[ch]*)

# Tests run in so many processes (by cores and memory; 0: in this one), those of a file in one of
# them, PyTorch on one thread in each; but long ones that need the machine for themselves.
# MALLOC_PERTURB_ has the C library of Linux fill memory that is given back, so that reading it shows.
WORKERS ?= $(shell $(BIN)/python tools/side_by_side.py)

# Of tools/test_processors.py: two threads, other kernels of PyTorch, and of oneDNN.
OTHER_PROCESSORS := two-threads aten-default onednn-avx2

.PHONY: help env demo test test-slow test-random test-numeric test-processors test-matrix benchmark lint format \
	cuda-build gpu-check clean clean-env

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | expand -t 18

env: $(STAMP) ## create $(VENV) and install everything (PYTHON=python3.12 chooses the interpreter)

$(STAMP): $(INSTALLED_FROM)
	@$(PYTHON) tools/make_env.py $(VENV)
	@touch $@

demo: env ## train and evaluate a small model on made-up shapes, results in output/demo
	$(BIN)/python tools/demo.py --output output/demo

test: env ## the test suite (a few minutes; WORKERS=0: one test after the other)
	OMP_NUM_THREADS=1 MALLOC_PERTURB_=165 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: env ## the long tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "slow and not alone" --durations=20
	$(BIN)/python -m pytest -m "slow and alone" --durations=20

test-random: env ## the test suite in random order; the seed is printed (SEED=N repeats it)
	$(BIN)/python -m pytest -p pytest_randomly $(if $(SEED),--randomly-seed=$(SEED))

test-numeric: env ## the tests whose figures depend on rounding, as on three other processors
	$(BIN)/python tools/test_processors.py --numeric --only $(OTHER_PROCESSORS)

test-processors: env ## the test suite as on six other processors (an hour; ONLY="aten-default")
	$(BIN)/python tools/test_processors.py $(if $(ONLY),--only $(ONLY))

test-matrix: ## the test suite on the oldest and the newest torch, in environments of their own
	$(PYTHON) tools/test_matrix.py

benchmark: env ## speed and memory on this machine, into benchmarks/ (20 minutes; stop all else)
	$(BIN)/rdsnet benchmark --mask-path --output benchmarks/mask_path
	$(BIN)/rdsnet benchmark --models --output benchmarks/models

lint: env ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: env ## bring files into style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

cuda-build: env ## compile the CUDA kernels (sm_80, sm_90) where nvcc is found
	$(BIN)/python tools/build_cuda.py

gpu-check: env ## on a machine with a GPU: build, test, sanitize and time the CUDA kernels
	$(BIN)/python tools/gpu_check.py

clean: ## remove what building and testing left (not the environment, not output/)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find rdsnet projects tests tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

clean-env: clean ## remove the environment too
	rm -rf $(VENV)
