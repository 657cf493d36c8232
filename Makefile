# Each target makes the environment that it needs: Python and make are enough.
#   make demo | test | lint             with the default Python
#   PYTHON=python3.13 make test         with another one
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv-$(VERSION)
READY := $(VENV)/.ready
BIN := $(VENV)/bin

.PHONY: demo test lint format clean

demo: $(READY)
	$(BIN)/python notebooks/01_quickstart.py

# One thread of linear algebra for each process: more would wait for each other.
test: $(READY)
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $(READY)

clean:
	rm -rf .venv-* build dist .pytest_cache .ruff_cache .mypy_cache
