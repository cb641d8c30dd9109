# make demo | test | lint | bench: each sets up .venv first, which takes minutes once and nothing after that.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench zoo clean

help:
	@echo "make demo      float, int16 and int8 on the bundled network; writes out/degradation.html"
	@echo "make test      the tests but the slow ones (make test-all: those too)"
	@echo "make lint      ruff and mypy"
	@echo "make bench     speed and memory as ratios of a float pass"
	@echo "make zoo       train the bundled networks again (minutes)"
	@echo "make clean     remove .venv and out"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qkit needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/qkit demo --out out/degradation.html

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: $(READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks

zoo: $(READY)
	$(BIN)/python -m qkit.zoo train all --out data

clean:
	rm -rf $(VENV) out
