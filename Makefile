# Sets everything up in .venv and runs it from there. `make help` lists what there is.

PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do command -v $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
# The stamps bear the place of the checkout, so that one that was moved installs again.
PLACE := $(shell echo "$(CURDIR)" | cksum | cut -d ' ' -f 1)
RUN_READY := $(VENV)/.ready-run-$(PLACE)
DEV_READY := $(VENV)/.ready-dev-$(PLACE)
BENCH_READY := $(VENV)/.ready-bench-$(PLACE)
ARGS ?=
TESTS ?= tests
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo serve bench test format-check lint types layers unit format clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(RUN_READY) ## Measure the embedded models end to end; report in runs/demo/report.html
	$(BIN)/fathom demo $(ARGS)

serve: $(RUN_READY) ## Serve the embedded models on http://127.0.0.1:8000 (ARGS="--port 9000")
	$(BIN)/fathom serve embedded:transformer embedded:mamba $(ARGS)

bench: $(BENCH_READY) ## Race the server against its rivals on this machine (ARGS="--quick"; docs/bench.md)
	$(BIN)/fathom bench $(ARGS)

test: format-check lint types layers unit ## Everything that must pass

format-check: $(DEV_READY) ## Is the code formatted?
	$(BIN)/ruff format --check .

lint: $(DEV_READY) ## ruff
	$(BIN)/ruff check .

types: $(DEV_READY) ## mypy, strict
	$(BIN)/mypy

layers: $(DEV_READY) ## The walls between the rooms
	$(BIN)/lint-imports

unit: $(DEV_READY) ## pytest; one part: make unit TESTS=tests/server
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(WORKERS) --dist loadgroup $(TESTS) $(ARGS)

format: $(DEV_READY) ## Format the code and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and what tools left behind
	rm -rf $(VENV) *.egg-info build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# A stamp is written last, so that an install that was interrupted is done again.
$(RUN_READY): pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory install EXTRA='[cpu]' && touch $@

$(DEV_READY): pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory install EXTRA='[dev]' && touch $@ $(RUN_READY)

$(BENCH_READY): pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory install EXTRA='[cpu,bench]' && touch $@ $(RUN_READY)

.PHONY: install
install:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed; say which with: make PYTHON=/path/to/python3.11"; exit 1; }
# An environment knows its own place: after a move it is made anew.
	@grep -qsF "$(abspath $(VENV))" $(BIN)/activate || rm -rf $(VENV)
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV) && "$(PYTHON)" -m venv $(VENV); }
	@echo "installing into $(VENV), some minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.$(EXTRA)'
