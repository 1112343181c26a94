# Each target works from a bare fresh clone: it makes .venv and installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help serve test lint bench parity proto clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

serve: $(VENV)/.serve ## run the whole service on this machine; ARGS="--http-port 9000" passes flags on
	exec $(BIN)/convmlp serve $(ARGS)

test: $(VENV)/.dev ## every test that needs no GPU and no Docker; ARGS="-k exif" passes flags on
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev ## start the service, load it, print throughput and latencies
	$(BIN)/python -m benchmarks.serve $(ARGS)

parity: $(VENV)/.dev ## how far precisions, folding and compiling move the answers from plain fp32
	$(BIN)/python -m benchmarks.parity $(ARGS)

proto: $(VENV)/.dev ## make the gRPC code of proto/ anew, after a change there
	$(BIN)/python proto/generate.py

clean: ## remove the environment and all caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Say make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The builds make the gRPC code as well, so a changed contract is a reason to install again.
INPUTS := pyproject.toml setup.py client/pyproject.toml client/setup.py proto/generate.py $(shell find proto -name '*.proto')

$(VENV)/.serve: $(INPUTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ./client --editable '.[worker]'
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ./client --editable '.[worker,dev]'
	@touch $@
