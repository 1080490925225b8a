PYTHON ?= python3
LOWEST_PYTHON ?= python3.11
NEWEST_PYTHON ?= python3.12
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SCALE ?= laptop
OUT ?= runs/reproduce
PEER_PYTHON ?= $(BIN)/python
TASK ?= two_moons
UNITS ?= 32
META_STEPS ?= 5000
GPU_OUT ?= runs/paper_gpu
MORE ?=
TORCH ?= torch==2.13.0
WORKERS := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup reproduce paper-gpu bench-gpu test test-full test-faults test-distributed test-lowest test-newest test-wheel test-torch lint format lock docs bench bench-quick clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## Create .venv and install the locked dependencies

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

reproduce: setup  ## Run the main job (SCALE=smoke|laptop|paper, OUT=folder)
	$(BIN)/optdyn reproduce --scale $(SCALE) --out $(OUT)

paper-gpu: setup  ## Train on networks by the paper's whole protocol on one GPU (TASK=, UNITS=, META_STEPS=, MORE=options)
	$(BIN)/optdyn train --out $(GPU_OUT) --task $(TASK) --units $(UNITS) --encoding asinh --gain 1000 --input-scale 0.333333 --output-scale 0.1 --learning-rate 0.001 --max-cotangent-norm 0.3 --batch-size 32 --meta-steps $(META_STEPS) --devices 1 --memory-budget 60000000000 $(MORE)

bench-gpu: setup  ## Measure a meta-step of make paper-gpu's recipe on this machine (TASK=, UNITS=)
	$(BIN)/python -m benchmarks.paper_scale --task $(TASK) --units $(UNITS)

test: setup  ## Run the tests
	$(BIN)/python -m pytest $(WORKERS)

test-full: setup  ## Run the tests at full length: every case, many kills, long searches (hours)
	SUITE=full $(BIN)/python -m pytest $(WORKERS)

test-lowest:  ## Run the tests on the lowest versions that pyproject.toml allows (needs uv)
	$(LOWEST_PYTHON) -m venv --clear .venv-lowest
	uv pip install --quiet --python .venv-lowest --resolution lowest-direct --group dev --editable .
	.venv-lowest/bin/python -m pytest $(WORKERS)

test-newest:  ## Run the tests on the newest versions, with Python 3.12 (NEWEST_PYTHON=path)
	$(NEWEST_PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	.venv-newest/bin/python -m pip install --quiet --upgrade --group dev --editable .
	.venv-newest/bin/python -m pytest $(WORKERS)

test-wheel:  ## Build the wheel and use it in an empty environment, outside the repository
	PYTHON=$(PYTHON) .ci/test-wheel

test-torch:  ## Test optdyn.torch with PyTorch, in an environment in the user's cache (TORCH=torch==2.13.0)
	PYTHON=$(PYTHON) TORCH=$(TORCH) .ci/test-torch

test-faults: setup  ## Kill, starve and damage runs, at length; prints what was found
	SUITE=full $(BIN)/python -m pytest tests/faults

test-distributed: setup  ## Train in many processes and search on a cluster, at length; prints what was found
	SUITE=full $(BIN)/python -m pytest tests/distributed

bench: setup  ## Measure meta-steps against the machine's limit (PEER_PYTHON=one with torch)
	$(BIN)/python -m benchmarks --peer-python $(PEER_PYTHON)
	$(BIN)/python -m benchmarks.interactive
	$(BIN)/python -m benchmarks.growth

bench-quick: setup  ## Measure five rows alone
	$(BIN)/python -m benchmarks --quick --peer-python $(PEER_PYTHON)

docs: setup  ## Build the documentation into site/, warnings as errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo site/index.html

lint: setup  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## Resolve requirements.lock anew (needs uv on the path)
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 \
		--no-annotate --no-header --quiet --upgrade --output-file requirements.lock

clean:  ## Remove the environment and caches
	rm -rf $(VENV) site .pytest_cache .ruff_cache .mypy_cache .hypothesis
