# make demo | test | lint | bench: each sets up .venv first, which takes minutes once and nothing after that.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST_ARGS ?=
# processes for the tests, each of one thread
JOBS ?= 2
TESTS := -n $(JOBS) --dist loadfile
# without the notebooks' plugin, whose imports take seconds in every process
NO_NOTEBOOKS := -p no:nbval
NPM := $(shell command -v npm 2>/dev/null)
NODE_TOOLS := tools/javascript/node_modules
QKIT_CHROMIUM ?= /usr/bin/chromium
export QKIT_CHROMIUM

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all browser pictures notebooks notebooks-run docs lint javascript bench zoo clean

help:
	@echo "make demo      float, int16 and int8 on the bundled network; writes out/degradation.html"
	@echo "make test      the tests but the slow ones (make test-slow: those; make test-all: all)"
	@echo "make pictures  the widgets' pictures in docs/widgets, taken by their tests"
	@echo "make notebooks run the notebooks and compare with what is saved in them (make notebooks-run: run and save)"
	@echo "make docs      the site, in out/docs: tutorial, how-to, causes and remedies, reference"
	@echo "make lint      ruff, mypy, the arrows between rooms, and the JavaScript (make javascript: that alone)"
	@echo "make bench     speed and memory as ratios of a float pass"
	@echo "make zoo       train the bundled networks again (minutes)"
	@echo "make clean     remove .venv and out"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qkit needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[onnx,torchao]' --group dev
	@touch $@

demo: $(READY)
	$(BIN)/qkit demo --out out/degradation.html

test test-slow test-all: export OMP_NUM_THREADS = 1
test test-slow test-all: export NUMBA_NUM_THREADS = 1

test: $(READY) browser
	$(BIN)/python -m pytest $(TESTS) $(NO_NOTEBOOKS) -m "not slow" $(PYTEST_ARGS)

test-slow: $(READY) browser
	$(BIN)/python -m pytest $(TESTS) $(NO_NOTEBOOKS) -m slow $(PYTEST_ARGS)

test-all: $(READY) browser
	$(BIN)/python -m pytest $(TESTS) $(NO_NOTEBOOKS) $(PYTEST_ARGS)

# the widgets are tested in Chromium; where it is not there and cannot be installed, their tests are left out, and say so
browser:
	@test -x $(QKIT_CHROMIUM) || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing Chromium for the widgets' tests"; apt-get update -qq && apt-get install -y -qq chromium >/dev/null; \
	  fi; }; \
	test -x $(QKIT_CHROMIUM) || echo "NO CHROMIUM at $(QKIT_CHROMIUM): the widgets' browser tests are left out (apt-get install chromium)"

pictures: $(READY) browser
	mkdir -p docs/widgets
	QKIT_PICTURES=docs/widgets $(BIN)/python -m pytest tests/widgets/test_browser.py tests/widgets/test_faces.py tests/widgets/test_graph_in_browser.py

notebooks notebooks-run: export OMP_NUM_THREADS = 1
notebooks notebooks-run: export NUMBA_NUM_THREADS = 1
# bars of progress are no output that could be compared
notebooks notebooks-run: export QKIT_PROGRESS = 0

notebooks: $(READY)
	$(BIN)/python -m pytest $(TESTS) --nbval --nbval-current-env --nbval-sanitize-with notebooks/nbval.cfg notebooks $(PYTEST_ARGS)

# all, or those named: make notebooks-run NOTEBOOKS="01 05"
notebooks-run: $(READY)
	$(BIN)/python notebooks/execute.py $(NOTEBOOKS)

docs: $(READY)
	$(BIN)/python -m sphinx -W --keep-going -b html docs out/docs

lint: $(READY) javascript
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(NODE_TOOLS)/.ready: tools/javascript/package.json tools/javascript/package-lock.json tools/javascript/.npmrc
	cd tools/javascript && npm ci --loglevel=error
	@touch $@

# Biome and TypeScript check the JavaScript; where there is no npm, they are left out, and say so, but not where QKIT_REQUIRE_NODE=1
ifdef NPM
javascript: $(NODE_TOOLS)/.ready
	$(NODE_TOOLS)/.bin/biome check --config-path=tools/javascript --error-on-warnings qkit
	$(NODE_TOOLS)/.bin/tsc --project tools/javascript
else
javascript:
	@echo "NO NPM: the JavaScript is not checked (apt-get install nodejs npm)"; test "$(QKIT_REQUIRE_NODE)" != 1
endif

bench: $(READY)
	$(BIN)/python -m benchmarks

zoo: $(READY)
	$(BIN)/python -m qkit.zoo train all --out data

clean:
	rm -rf $(VENV) $(NODE_TOOLS) out
