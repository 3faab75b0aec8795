# Everything a newcomer types. Prerequisites: Python >= 3.11 and make; each target makes its own environment in .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A C++ compiler is needed to verify the C++ export; where the machine has none, the ziglang wheel is one.
COMPILER := $(shell command -v $${CXX:-c++} || command -v g++ || command -v clang++)

# Processes that share the tests out between them; some tests wait, so one more than two cores. Each needs about 1.5 GB.
WORKERS ?= 3

comma := ,
EXTRAS := onnx$(if $(COMPILER),,$(comma)compiler)

.DEFAULT_GOAL := help
# Of `make fuzz`, for each of its five networks.
FUZZ_SECONDS ?= 60

.PHONY: help demo test test-all fuzz lint types bench docs clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hlt-train needs Python >= 3.11, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@touch $@

$(VENV)/.run: $(VENV)/.made pyproject.toml
	$(BIN)/pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.run

demo: $(VENV)/.run  ## toy files -> teacher -> fixed-point student -> C++ and ONNX -> one table (a new folder under demo/ each time)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh demo.sh

test: $(VENV)/.test  ## the test suite (18 minutes on two cores)
	$(BIN)/pytest -q -n $(WORKERS) --dist worksteal

test-all: $(VENV)/.test  ## the test suite and the long tests
	$(BIN)/pytest -q -n $(WORKERS) --dist worksteal -m 'slow or not slow'

fuzz: $(VENV)/.test  ## libFuzzer on the C++ export under sanitizers (FUZZ_SECONDS=60 per network; KEEP=DIR keeps the corpus)
	$(BIN)/python -m tests.exporters.fuzz.run --seconds $(FUZZ_SECONDS) $(if $(KEEP),--keep $(KEEP))

lint: $(VENV)/.test  ## ruff, rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow the mapping of cli/ and datasets/ into the package, so it is shown a tree of links that has the installed layout.
types: $(VENV)/.test  ## mypy --strict on our packages
	@rm -rf build/types && mkdir -p build/types
	@cp -rs $(CURDIR)/hlt_train build/types/hlt_train
	@ln -s $(CURDIR)/cli build/types/hlt_train/cli && ln -s $(CURDIR)/datasets build/types/hlt_train/datasets
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p hlt_train

bench: $(VENV)/.test  ## every benchmark, one after the other (about an hour)
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

docs: $(VENV)/.test  ## write the pages of docs/ that the program and the tests generate
	$(BIN)/python docs/make.py

clean:  ## remove what the other targets made (not your runs)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
