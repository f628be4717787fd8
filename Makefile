# Every target that needs the environment makes it first; `make setup` does nothing when nothing changed.
# The environment is .venv inside this folder. Choose another interpreter with PYTHON=python3.12.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RSFUSE_DATA ?= ../shared/data
# Processes of the tests.
JOBS ?= 2
# Of fuzzing, for each reader.
SECONDS ?= 60
READY := $(VENV)/.ready
# Numerical libraries start one thread per core each; the tests and the demo are faster without.
export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= Agg

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all fuzz fmt lint type arch check docs bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with the exact versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is missing or older than Python 3.11"; \
	  echo "fix: install Python 3.11 or later, or name one: make PYTHON=python3.12 setup"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make virtual environments"; \
	  echo "fix: on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing rsfuse into $(VENV) (some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	@touch $@

demo: setup ## match, detect and classify on simulated scenes, and make the page demo/index.html
	@$(BIN)/rsfuse demo -o demo --overwrite
	@echo "Open $(CURDIR)/demo/index.html in a browser."

test: setup ## run the tests, without those marked slow
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-all: setup ## run every test that needs no GPU
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not gpu"

fuzz: setup ## feed damaged files to every reader, SECONDS=60 each
	@cd $$(mktemp -d) && for reader in $$($(CURDIR)/$(BIN)/python $(CURDIR)/tests/fuzz.py --list 2>/dev/null); do \
	  echo "$$reader ..."; \
	  $(CURDIR)/$(BIN)/python $(CURDIR)/tests/fuzz.py $$reader -max_total_time=$(SECONDS) >log 2>&1 || { \
	    cat log; echo "error: what broke $$reader lies in $$PWD"; exit 1; }; done

fmt: setup ## format the code
	@$(BIN)/ruff check --fix-only --quiet . ; $(BIN)/ruff format .

lint: setup ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

type: setup ## check types
	@$(BIN)/mypy

arch: setup ## check that imports point down
	@$(BIN)/lint-imports

check: lint type arch test ## everything that a change must pass

docs: setup ## build the documentation into site/, to be opened without a server
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	@$(BIN)/mkdocs build --strict --quiet
	@echo "Open $(CURDIR)/site/index.html in a browser."

bench: setup ## measure rsfuse beside its peers; needs the data sets, see RSFUSE_DATA
	@test -f "$(RSFUSE_DATA)/matching/srif/index.json" || { \
	  echo "error: no data sets in $(RSFUSE_DATA)"; \
	  echo "fix: name their folder: make bench RSFUSE_DATA=/path/to/data"; exit 1; }
	@$(BIN)/python benchmarks/match_peers.py "$(RSFUSE_DATA)/matching/srif" -o runs/peers/srif
	@$(BIN)/python benchmarks/match_peers.py "$(RSFUSE_DATA)/matching/s1s2" --upright -o runs/peers/s1s2

clean: ## remove what was built, but not .venv
	@rm -rf build dist demo runs site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
