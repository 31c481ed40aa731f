# make demo | test | test-slow | test-gpu | test-lowest | dist-test | bench DATA=folder | docs
#      | format | clean
# TORCH_INDEX=https://download.pytorch.org/whl/cpu picks another build of torch; before the first
# run, or after `make clean`.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
CONSTRAINTS ?= constraints.txt
TORCH := $(shell grep '^torch==' $(CONSTRAINTS))
TORCH_INDEX ?=

TEACHER ?=
TEXTS ?=
OUT ?= demo/out

DATA ?=
RESULTS ?= benchmarks/results

.PHONY: demo test test-slow test-gpu test-lowest dist-test bench docs lint format clean

demo: $(VENV)/.demo
	@PYTHON=$(BIN)/python TEACHER='$(TEACHER)' TEXTS='$(TEXTS)' OUT='$(OUT)' demo/run.sh

test: lint
	$(BIN)/python -m pytest -q -n auto

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -q -n auto --slow

test-gpu: $(VENV)/.test
	$(BIN)/python -m pytest -q --gpu

# The oldest versions that pyproject.toml allows.
test-lowest:
	$(MAKE) VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt .venv-lowest/.test
	.venv-lowest/bin/python -m pytest -q -n auto

# The wheel, in an environment that has nothing else.
dist-test:
	rm -rf build dist
	$(MAKE) VENV=dist/venv dist/venv/.torch
	dist/venv/bin/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	dist/venv/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	mkdir dist/empty
	cd dist/empty && ../venv/bin/python -I ../../tests/dist.py $$(cd ../../recipes && ls */*)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

docs: $(VENV)/.test
	$(BIN)/python docs/settings.py
	$(BIN)/python docs/kwargs.py

bench: $(VENV)/.test
	@test -n '$(DATA)' || { echo 'say where the data is: make bench DATA=folder (see benchmarks/README.md)' >&2; exit 2; }
	$(BIN)/python benchmarks/all.py --data '$(DATA)' --out '$(RESULTS)'

clean:
	rm -rf $(VENV) .venv-lowest dist .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

# Torch comes first and from its own index, if one is named; all else from the usual one.
$(VENV)/.torch: $(CONSTRAINTS)
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or later is needed: make PYTHON=/path/to/python' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) -c $(CONSTRAINTS) '$(TORCH)'
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) -c $(CONSTRAINTS) -e '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) -c $(CONSTRAINTS) -e '.[test]'
	touch $@
