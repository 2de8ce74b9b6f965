# make book   the whole run, from training to the built book   (CORES=2 PROFILE=micro SEED=0)
#             PROFILE=paper: DATA=FOLDER, and if wanted FINETUNED=hub TASKS=A,B WEIGHTS=FILE LIMIT=4
# make test   all tests
# make check  the pages whose inputs have changed since they were made
# make zip    the book in one archive that needs no server and no network
# make bench  what choosing alpha costs in evaluations and seconds, and how fast CLIP ViT-B/32 runs here
# make env    the environment in .venv, which both need
# make lint   ruff and mypy
PYTHON ?= python3
CORES ?= 2
PROFILE ?= micro
SEED ?= 0
DATA ?= $(or $(PAINTLIB_DATA),data)
FINETUNED ?= own
BIN := .venv/bin

.PHONY: book test check zip bench env lint clean
.DEFAULT_GOAL := book

env: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	@echo "environment: about 3 minutes the first time"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --requirement requirements.lock | grep --line-buffered -E '^(Collecting|Installing|Successfully)' | cut -c1-100
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	@touch $@

book: env
	@$(BIN)/python -m paintlib book --profile $(PROFILE) --seed $(SEED) --cores $(CORES) \
	  --data '$(DATA)' --limit '$(LIMIT)' --tasks '$(TASKS)' --finetuned '$(FINETUNED)' --weights '$(WEIGHTS)'

test: env
	$(BIN)/python -m pytest

check: env
	@$(BIN)/python -m paintlib check --profile $(PROFILE) --seed $(SEED) \
	  --limit '$(LIMIT)' --tasks '$(TASKS)' --finetuned '$(FINETUNED)'

zip: env
	$(if $(filter-out micro0,$(PROFILE)$(SEED)),$(error make zip packs the committed book, of profile micro at seed 0))
	$(BIN)/jupyter-book build book --all -W -n --keep-going -q
	cd book/_build && $(abspath $(BIN))/python -m zipfile -c paintlib-book.zip html
	@echo "the book is in book/_build/paintlib-book.zip; unpack it and open html/index.html"

bench: env
	GOMP_SPINCOUNT=3000 $(BIN)/python benchmarks/solving.py
	$(BIN)/python benchmarks/throughput.py

lint: env
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	find artifacts -mindepth 1 -maxdepth 1 ! -name cache -exec rm -rf {} +
	rm -rf .snakemake book/_build
