# Each target makes the environment that it needs: Python and make are enough.
#   make demo | test | lint             with the default Python
#   make check                          lint and every docstring's example: for while you work
#   make soak                           random problems through every public function, 20 minutes
#   make device                         checks and benchmarks of the device that JAX finds
#   make docs | docs-quick              the site with all notebooks executed, the same in minutes
#   make docs-pages                     the site without what notebooks print, in seconds
#   make bench | bench-quick            all benchmarks, the same in minutes
#   make figures                        figures and table of the README and the site, from results
#   PYTHON=python3.13 make test         with another one
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv-$(VERSION)
READY := $(VENV)/.ready
BIN := $(VENV)/bin

.PHONY: demo test check soak lint bench bench-quick device docs docs-quick docs-pages figures format clean

demo: $(READY)
	$(BIN)/python notebooks/01_quickstart.py

# One thread of linear algebra for each process: more would wait for each other.
test: $(READY)
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal --durations=15 $(SELECT)

soak: $(READY)
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.soak

check: lint
	$(BIN)/python -m pytest --quiet tests/test_layout.py
	JAX_DISABLE_MOST_OPTIMIZATIONS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --quiet --numprocesses=auto --maxprocesses=4 --dist=worksteal lowrank_jax

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All threads that the machine has, for NumPy as for XLA. Training's small factorizations want one.
bench: $(VENV)/.ready-bench
	$(BIN)/python -m benchmarks.run --problems solve clouds parameters attention inputs product compile
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.run --problems training
	$(BIN)/python -m benchmarks.plot
	$(BIN)/python -m benchmarks.tables

bench-quick: $(VENV)/.ready-bench
	$(BIN)/python -m benchmarks.run --quick

device: $(READY)
	$(BIN)/python -m benchmarks.device

# What the README and the site show: figures, and the README's table.
figures: $(READY)
	$(BIN)/python -m benchmarks.plot
	$(BIN)/python docs/figures.py
	$(BIN)/python -m benchmarks.tables

# Strict: a warning, a broken link, a missing reference or a failing notebook ends it.
docs: $(VENV)/.ready-docs
	$(BIN)/python -m sphinx $(EXECUTION) --fail-on-warning --keep-going --nitpicky docs build/docs
	@echo "open build/docs/index.html"

docs-quick: export QUICK = 1
docs-quick: docs

docs-pages: export EXECUTION = -D nb_execution_mode=off
docs-pages: docs

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $(READY)

$(VENV)/.ready-docs: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

$(VENV)/.ready-bench: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

clean:
	rm -rf .venv-* build dist docs/gallery .pytest_cache .ruff_cache .mypy_cache
