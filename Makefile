# `make demo` and `make test` do all set-up by themselves; `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := train,lite,dask,browse,s3,export,tune,heif,interop,dev
# One test on each core; tests/__init__.py has each of them compute with one thread.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all gpu check docs clean distclean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

HAD_STAMP := $(wildcard $(STAMP))

setup: $(STAMP) ## Make .venv, install everything with pinned versions, then pillow-simd over Pillow.
	@$(if $(HAD_STAMP),bash .ci/pillow_simd.sh $(VENV))

$(STAMP): pyproject.toml constraints.txt .ci/pillow_simd.sh
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}; make PYTHON=..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@bash .ci/pillow_simd.sh $(VENV)
	@touch $@

demo: $(STAMP) ## Sample -> build -> report -> train -> evaluate, offline, in minutes.
	$(BIN)/python -m pipelines.demo

test: $(STAMP) ## The tests that run in minutes.
	$(PYTEST) -m 'not slow'

test-all: $(STAMP) ## Every test, also the slow ones: browser, training to an accuracy, faults.
	$(PYTEST) --durations=30

# With GPU_PYTHON=python3 nothing is installed: that Python's own torch is measured.
gpu: $(if $(GPU_PYTHON),,$(STAMP)) ## On a machine with a CUDA device: its tests, speed, memory and faults, in 8 minutes.
	PYTHONPATH=.$${PYTHONPATH:+:$$PYTHONPATH} $(or $(GPU_PYTHON),$(BIN)/python) -m pipelines.bench.gpu $(GPU_OPTIONS)

check: $(STAMP) ## Format, lint, types, and the direction of imports.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

docs: $(STAMP) ## The public API as pages, from the docstrings: build/docs/index.html.
	$(BIN)/pdoc --docformat google --no-show-source --output-directory build/docs lmk_data lmk_train

clean: ## Remove what was built here, but not .venv.
	rm -rf build dist *.egg-info demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find lmk_data lmk_train pipelines tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## Remove .venv too.
	rm -rf $(VENV)
