# Two commands on a fresh machine: `make run` and `make test`. Both set up .venv first.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help install run simulate test test-all test-faults test-fast coverage check format build docs bench picture clean

help: ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

run: $(READY) ## Compare defences on MNIST digits: train, attack, write the report.
	$(BIN)/instahide-fl compare experiments/compare-digits.toml --resume $(ARGS)

simulate: $(READY) ## Simulate the default federation: 10 clients, InstaHide, MNIST digits.
	$(BIN)/instahide-fl run $(ARGS)

# Tests of one file share what it starts; the files that start most come first.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY) ## Test everything that the library does, once (7 minutes on two cores).
	$(PYTEST) -m "not long and not faults" $(ARGS)

test-all: $(READY) ## Run all tests but those of test-faults (20 minutes).
	THOROUGH=1 $(PYTEST) -m "not faults" $(ARGS)

test-faults: $(READY) ## Kill, starve and deceive a deployment's processes (10 minutes).
	$(BIN)/pytest -m faults $(ARGS)

test-fast: $(READY) ## Run the tests of `test` that start no Flower or Ray processes (2 minutes).
	$(PYTEST) -m "not slow and not long" $(ARGS)

coverage: $(READY) ## Run the tests of test-all and tell which lines none of them ran.
	$(PYTEST) -m "not faults" --cov --cov-report=term:skip-covered --cov-report=html $(ARGS)

check: $(READY) ## Lint, check formatting and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## Format the code and mend what the linter can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## Build the documentation into site/ (open site/index.html).
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -W ignore -m mkdocs build --strict

build: $(READY) ## Build wheel and sdist into dist/.
	$(BIN)/python -m build

bench: $(READY) ## Measure speed and memory against the alternatives (about 30 minutes).
	$(BIN)/python -m benchmarks.encoder
	$(BIN)/python -m benchmarks.engines
	$(BIN)/python -m benchmarks.pool
	$(BIN)/python -m benchmarks.decoding
	$(BIN)/python -m benchmarks.large_data
	$(BIN)/python -m benchmarks.attacks
	$(BIN)/python -m benchmarks.tables

picture: $(READY) ## Draw the pictures of README and docs/ again.
	rm -f docs/encodings.png docs/partition.png
	$(BIN)/instahide-fl encode mnist-5k --seed 0 --images 10 --picture docs/encodings.png --out "$$(mktemp -d)/encodings.npz"
	$(BIN)/instahide-fl data partition mnist-5k --set partition.scheme=dirichlet --set partition.alpha=0.1 --picture docs/partition.png

install: $(READY) ## Create .venv with everything in it.

clean: ## Remove .venv, caches and builds; runs/ and studies/ stay.
	rm -rf $(VENV) build dist site htmlcov .coverage* *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamp is written last, so an interrupted set-up is simply done again. A torch that
# is there already (a CPU-only build, another CUDA) is kept if it satisfies the range.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "instahide-fl needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then \
	  grep -vE '^(torch|torchvision|triton|nvidia-|cuda-)' constraints.txt > $(VENV)/constraints.txt; \
	else cp constraints.txt $(VENV)/constraints.txt; fi
	@echo "installing into $(VENV): PyTorch, Flower and Ray are several GB, allow some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint $(VENV)/constraints.txt --editable '.[dev]'
	@touch $@
