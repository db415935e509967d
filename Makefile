PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# TypeScript's compiler, which checks the board's JavaScript where there is npm.
TSC    := $(VENV)/typescript
HAS_NPM = $(shell command -v npm)
# A worker for each core, up to four; one that has run its share takes over tests of another.
SPREAD := -n logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help run test check bench gpu docs board clean

help:  ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(READY)  ## Train on handwritten digits and show what happened inside backward()
	@$(BIN)/gradlab run experiments/digits.yaml

test: $(READY)  ## Run the tests that need nothing special (about three minutes on two cores)
	@$(BIN)/pytest $(SPREAD) -m "not slow and not gpu and not ray and not integrations"

check: $(READY) $(if $(HAS_NPM),$(TSC)/.ready)  ## Check format, lint and types, of Python and JavaScript
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(if $(HAS_NPM),$(TSC)/node_modules/.bin/tsc --project gradlab/board,\
		echo "the JavaScript in gradlab/board/static was not checked: npm, which installs TypeScript, is not here")

bench: $(READY)  ## Measure what gradlab claims about its cost, against what people use instead
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

gpu:  ## Run the GPU tests and benchmarks with this machine's own torch; needs no network
	@PYTHON=$(PYTHON) benchmarks/gpu.sh

docs: $(READY)  ## Make the pages of docs/rules from what the rules say of themselves
	@$(BIN)/python -m gradlab.cli.rules_pages

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

# In the environment too, so that no node_modules lies among the sources.
$(TSC)/.ready: gradlab/board/package.json gradlab/board/package-lock.json | $(READY)
	@echo "installing TypeScript into $(TSC)"
	@mkdir -p $(TSC) && cp $^ $(TSC) && cd $(TSC) && npm ci --silent --no-audit --no-fund
	@touch $@
