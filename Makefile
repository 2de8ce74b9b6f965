# make book       the whole run, from training to the built book, in artifacts/
#                 (CORES=2 PROFILE=micro SEED=0)
#                 PROFILE=paper: DATA=FOLDER or hub, and if wanted FINETUNED=hub TASKS=A,B WEIGHTS=FILE LIMIT=4,
#                 IMAGES=500 (a sample), CHOOSE_ON=halves|test, ACCEPT=A,B (known deviations),
#                 VARIANTS=gtsrb-tracks,cifar100-spaces
# make plan       what `make book` would do now
# make test       all tests, and every page of the reference run again by nbval
# make reference  for maintainers: the committed results and pages, made again from a run
# make seeds      for maintainers: the headline numbers at seeds 0 to SEEDS - 1, kept in results/micro
# make evidence   that, the truth on fresh images, other rules for alpha, and ablations (2 hours);
#                 PROFILE=paper: the truth and the other rules on the test images of that run
# make zip        the committed book in one archive that needs no server and no network
# make bench      what choosing alpha costs in evaluations and seconds, and how fast CLIP runs here;
#                 MERGEKIT=PROGRAM: `paintlib patch` beside that `mergekit-pytorch`
# make gpu-check  whether this machine's GPU computes what a CPU does, how fast, and what the paper's
#                 experiment will take on it: ten minutes, no data needed
# make mutants    how many faults put into the library its tests find
# make env        the environment in .venv, which all of these need
# make lint       ruff and mypy
PYTHON ?= python3
CORES ?= 2
PROFILE ?= micro
SEED ?= 0
SEEDS ?= 5
DATA ?= $(or $(PAINTLIB_DATA),data)
BIN := .venv/bin
# only so many steps run side by side as memory holds, and one on each GPU
MEMORY = $(shell $(BIN)/python -c 'import os; print(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20)')
ALL_GPUS = nvidia-smi --list-gpus 2>/dev/null | grep -c GPU
VISIBLE = printf '%s' "$$CUDA_VISIBLE_DEVICES" | tr , '\n' | grep -c '^[^-]'
GPUS = $(filter-out 0,$(shell n=$$($(ALL_GPUS)); if [ "$$n" -gt 0 -a "$${CUDA_VISIBLE_DEVICES+set}" ]; then $(VISIBLE); else echo $$n; fi))
RUN = --cores $(CORES) --keep-going --rerun-incomplete --scheduler greedy --quiet host reason \
  $$([ -t 2 ] && echo --logger steps || echo rules) --resources mem_mb=$(MEMORY) $(GPUS:%=gpu=%) \
  $(if $(GPUS)$(filter-out paper,$(PROFILE)),,--set-threads finetune=2 baseline=2 solve=2) \
  --config profile=$(PROFILE) seed=$(SEED) data=$(call quoted,$(DATA)) limit='$(LIMIT)' tasks='$(TASKS)' \
  finetuned=$(call quoted,$(FINETUNED)) weights=$(call quoted,$(WEIGHTS)) sample='$(IMAGES)' \
  choose_on='$(CHOOSE_ON)' accept='$(ACCEPT)' variants='$(VARIANTS)'
quoted = '$(subst ','\'',$(1))'

THREADS = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}  # of each test, since they run side by side

.PHONY: book plan test reference seeds evidence kept zip bench gpu-check mutants env lint clean
.DEFAULT_GOAL := book

env: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml experiment/pyproject.toml
	@echo "environment: about 3 minutes the first time"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --requirement requirements.lock | grep --line-buffered -E '^(Collecting|Installing|Successfully)' | cut -c1-100
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable . --editable experiment
	@touch $@

book: env
	@exec $(BIN)/snakemake book $(RUN)

plan: env
	@exec $(BIN)/snakemake book --dry-run $(RUN)

reference: env
	@exec $(BIN)/snakemake reference $(RUN)

seeds: env
	@for seed in $$(seq 0 $$(($(SEEDS) - 1))); do $(MAKE) --no-print-directory kept SEED=$$seed || exit 1; done

evidence: env $(if $(filter micro,$(PROFILE)),seeds)
ifeq ($(PROFILE),micro)
	@for profile in micro-true-captions micro-good-pictures micro-clean; do $(MAKE) --no-print-directory kept PROFILE=$$profile || exit 1; done
else
	@exec $(BIN)/snakemake evidence $(RUN) images=10000
endif

kept: env
	@exec $(BIN)/snakemake $(if $(filter micro,$(PROFILE)),evidence,solved) $(RUN) $(if $(filter micro0,$(PROFILE)$(SEED)),images=10000)
	@$(BIN)/python -m experiment keep --profile $(PROFILE) --seed $(SEED)

test: env
	$(THREADS) $(BIN)/python -m pytest -n $(CORES) --nbval

zip: env
	$(if $(filter-out micro0,$(PROFILE)$(SEED)),$(error make zip packs the committed book, of profile micro at seed 0))
	$(BIN)/jupyter-book build book --all -W -n --keep-going -q
	cd book/_build && $(abspath $(BIN))/python -m zipfile -c paintlib-book.zip html
	@echo "the book is in book/_build/paintlib-book.zip; unpack it and open html/index.html"

bench: env
	GOMP_SPINCOUNT=3000 $(BIN)/python benchmarks/solving.py
	$(BIN)/python benchmarks/throughput.py
	$(if $(MERGEKIT),$(BIN)/python benchmarks/merging.py --mergekit $(MERGEKIT))

gpu-check: env
	@$(BIN)/python benchmarks/gpu_check.py

mutants: env
	OMP_NUM_THREADS=1 $(BIN)/mutmut run; $(BIN)/mutmut results

lint: env
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	find artifacts -mindepth 1 -maxdepth 1 ! -name cache -exec rm -rf {} +
	rm -rf .snakemake book/_build
