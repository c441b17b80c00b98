# Two commands on a fresh machine: `make demo` and `make test`. Each sets up its own environment in .venv.

PYTHON ?= python3
# The newest torch that is tested; >= 2.9 works. A machine with a GPU may want another build here.
TORCH ?= torch==2.13.0
# Versions that the tests passed with; set it to nothing for the newest ones.
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.DEFAULT_GOAL := help
.PHONY: help demo quick test check types format docs bench lab real clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: $(VENV)/.demo  ## The whole method on generated speech: both stages, a table, plots (10 minutes on 2 cores, 20 without AVX-512)
	$(BIN)/ossicle demo

quick: $(VENV)/.demo  ## The same, smaller (about 3 minutes once installed)
	$(BIN)/ossicle demo --quick

test: $(VENV)/.dev  ## Run the tests, with the coverage of the core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term --cov-fail-under=90

check: $(VENV)/.dev types  ## Formatting, lint, types and the import contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs  ## Build the documentation site in site/, with every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.dev  ## Run the benchmarks; each prints one table
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

lab: $(VENV)/.demo  ## Train the laboratory's tiny encoder and LLM again (about 40 minutes on 2 cores; continues if stopped)
	$(BIN)/python -m ossicle_lab.models.build

real: $(VENV)/.demo  ## A SpeechLLM of published models from recordings: make real RECORDINGS=FOLDER [SIZE=full|short] (under 3 hours on 2 cores)
	$(INSTALL) -e . -e './lab[real]'
	$(BIN)/python -m ossicle_lab.real \
		$(or $(RECORDINGS),$(wildcard ../shared/data),$(error say where the recordings are: make real RECORDINGS=FOLDER)) --out $(or $(OUT),runs/real) --size $(or $(SIZE),auto)

clean:  ## Delete the environment and caches, not the runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache site

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml lab/pyproject.toml | $(VENV)/bin/python
	@echo "Installing Ossicle and $(TORCH) into $(VENV) (once) ..."
	@$(PIP) install $(TORCH)
	@$(INSTALL) -e '.[tts]' -e ./lab
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(INSTALL) -e '.[dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.dev
	@$(INSTALL) -e '.[docs]'
	@touch $@
