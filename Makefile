# make demo   both Pareto frontiers and the paper's claims, files and pictures under out/
# make test   the test suite; ARGS=--held-still compares every recorded number, not a sample
# make docs   what the documentation takes from the code, written anew, and its pages under out/docs
# make mutants   wrong equations, one at a time, that a fast test must notice; ARGS="--sample 0" tries all
# make notebooks   run the notebooks top to bottom and save them with their outputs
# Each builds its own virtual environment in .venv with the first Python from 3.11 up that it finds.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python3.14; do \
  $$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test lint bench docs notebooks mutants clean

demo: $(VENV)/.demo
	$(BIN)/helix-sim sweep paper-deepseek-r1 --out out/deepseek-r1
	$(BIN)/helix-sim sweep paper-llama-3.1-405b --out out/llama-3.1-405b
	$(BIN)/helix-sim reproduce all --out out/paper

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto $(ARGS)

bench: $(VENV)/.test
	$(BIN)/python -m pytest tests/benchmarks --benchmark-enable

docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(BIN)/python -m mkdocs build --strict

mutants: $(VENV)/.test
	$(BIN)/python tests/mutants/mutate.py $(ARGS)

notebooks: $(VENV)/.test
	$(BIN)/python notebooks/execute.py

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "helix_sim needs Python 3.11 or newer; install it, or say make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/.demo

$(VENV)/.lint: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	@touch $@

$(VENV)/.docs: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) out build dist
