# Everything a stranger or a machine needs: `make` lists it. Needs Python 3.11 or later and pip;
# each target sets up what it needs in .venv first, once, and again when pyproject.toml changes.

PYTHON ?= python3
WORKERS ?= 3
BIN := .venv/bin
RUNTIME := .venv/.installed
DEV := .venv/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint check bench bench-serving soak protos pages clean

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
	  while IFS='|' read -r name text; do printf '  make %-13s %s\n' "$$name" "$$text"; done

setup: $(DEV) ## Make .venv with the project and all tools of its developers.

demo: $(RUNTIME) ## Run the worked example: plan, apply, materialize, train, serve, prove parity.
	$(BIN)/python -m demo

test: $(DEV) ## Run all tests (they start their own Valkey).
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q

lint: $(DEV) ## Check format, style, types, import contracts, protocol and Dockerfile.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/hadolint docker/Dockerfile

check: lint test ## Everything that must hold before a change goes in: lint, tests, docs.

bench: $(DEV) ## Run the benchmarks, beside Feast with FEAST=PYTHON, at large sizes with FULL=1.
	$(BIN)/python -m benchmarks $(if $(FEAST),--feast $(FEAST)) $(if $(FULL),--full)

bench-serving: $(DEV) ## Load the servers: rates, latencies, processor time; FEAST, FULL, PROFILE=1, WRITE=FILE.
	$(BIN)/python -m benchmarks --only serving $(if $(FEAST),--feast $(FEAST)) \
	  $(if $(FULL),--full) $(if $(PROFILE),--profile) $(if $(WRITE),--write $(WRITE))

soak: $(DEV) ## Serve at 70 % of the peak while data and definitions change; MINUTES=10, SERVERS=1, WRITE=FILE.
	$(BIN)/python -m benchmarks.soak $(if $(MINUTES),--minutes $(MINUTES)) \
	  $(if $(SERVERS),--workers $(SERVERS)) $(if $(WRITE),--write $(WRITE))

protos: $(DEV) ## Write the Python code of the protocol anew.
	PYTHON=$(BIN)/python proto/generate.sh

pages: $(DEV) ## Write the parts of docs/ that are made from the code anew.
	$(BIN)/python -m tests.architecture.pages

clean: ## Delete .venv, caches and the example's state.
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache data

# The pip that comes with venv may be too old for dependency groups.
.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'

$(RUNTIME): pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(DEV): pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $(RUNTIME) $@
