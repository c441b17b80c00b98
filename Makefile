# Two commands on a fresh machine: `make demo` and `make test`. Each sets up its own environment in .venv.

PYTHON ?= python3
# The oldest and newest torch that are tested: >= 2.9 works; a GPU machine may want another build here.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo quick test check format bench lab real text clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: $(VENV)/.demo  ## The whole method on generated speech: both stages, a table, plots (10 minutes on 2 cores, 20 without AVX-512)
	$(BIN)/ossicle demo

quick: $(VENV)/.demo  ## The same, smaller (about 3 minutes once installed)
	$(BIN)/ossicle demo --quick

test: $(VENV)/.dev  ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

check: $(VENV)/.dev  ## Formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev  ## Run the benchmarks; each prints one table
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

lab: $(VENV)/.demo  ## Rebuild the lab's tiny encoder and LLM (about 40 minutes on 2 cores; continues if stopped)
	$(BIN)/python -m ossicle_lab.models.build

real: $(VENV)/.demo  ## The paper's table on recorded speech: make real SPEECH=FOLDER TEXT=FOLDER
	$(BIN)/python -m ossicle_lab.real.speech \
		$(or $(SPEECH),$(error say where the recordings are: make real SPEECH=FOLDER TEXT=FOLDER)) \
		$(or $(TEXT),$(error say where the texts are: make real SPEECH=FOLDER TEXT=FOLDER))

text: $(VENV)/.demo  ## Both stages on real text in generated voices: make text DATA=FOLDER (about 25 minutes)
	$(BIN)/python -m ossicle_lab.real.text $(or $(DATA),$(error say where the texts are: make text DATA=FOLDER))

clean:  ## Delete the environment and caches, not the runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@echo "Installing Ossicle and $(TORCH) into $(VENV) (once) ..."
	@$(PIP) install $(TORCH)
	@$(PIP) install -e '.[tts]' -e ./lab
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@$(PIP) install -e '.[dev]'
	@touch $@
