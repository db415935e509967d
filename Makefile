PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# A worker for each core, up to four; one that has run its share takes over tests of another.
SPREAD := -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help run test check bench gpu board clean

help:  ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY)  ## Train on handwritten digits and show what happened inside backward()
	@$(BIN)/gradlab run experiments/digits.yaml

test: $(READY)  ## Run the tests that need nothing special (about three minutes on two cores)
	@$(BIN)/pytest $(SPREAD) -m "not slow and not gpu and not ray and not integrations"

check: $(READY)  ## Check format, lint and types
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

bench: $(READY)  ## Measure what gradlab claims about its cost, against what people use instead
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

gpu:  ## Run the GPU tests and benchmarks with this machine's own torch; needs no network
	@PYTHON=$(PYTHON) benchmarks/gpu.sh

board: $(READY)  ## Open TensorBoard on the runs
	@$(BIN)/gradlab board

clean:  ## Remove what was built; runs stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment is made once, and again when what it is made of has changed.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing gradlab into $(VENV)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
