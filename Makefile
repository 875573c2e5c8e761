# `make` alone lists the targets. On a fresh machine it needs python3 (3.10 or newer) and nothing else.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
DEMO ?= $(BIN)/kdlab train -m experiment=demo/nli
DEMO_COT ?= $(BIN)/kdlab train -m experiment=demo/cot hydra/launcher=joblib hydra.launcher.n_jobs=2
DEMO_MUSC ?= $(BIN)/kdlab train -m experiment=demo/musc
PYTEST ?= $(BIN)/python -m pytest
HERMETIC := $(PYTEST) --ignore=tests/real --numprocesses auto --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help install demo demo-cot demo-musc test test-slow test-all real bench check format audit lock clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## Make .venv from requirements.lock, with kdlab itself editable

$(INSTALLED): requirements.lock pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	@# the lock is for 3.11 and newer: Python 3.10 takes what the ranges give
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then \
		$(BIN)/pip install --quiet --requirement requirements.lock && \
		$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .; \
	else \
		$(BIN)/pip install --quiet --editable '.[dev,dashboards,launchers,onnx,tune]'; \
	fi
	@touch $@

demo: install  ## Train teacher and students on the embedded task and show the table (under 3 minutes)
	$(DEMO)

demo-cot: install  ## Fine-tune-CoT from scratch on two embedded tasks (some minutes)
	$(DEMO_COT)

demo-musc: install  ## Train on translations and ask with them, in four languages, from scratch (some minutes)
	$(DEMO_MUSC)

test: install  ## Run the tests that need neither the network nor ../shared, but for some slow ones
	$(HERMETIC) -m "not real and not slow"

test-slow: install  ## Run those: launchers, kill -9, and every method where one of each kind is in `make test`
	$(HERMETIC) -m "slow and not real"

test-all: test test-slow  ## Run all tests that need neither the network nor ../shared

real: install  ## Run the tests on real data and a real model (they skip where ../shared is absent)
	$(PYTEST) tests/real -m real --numprocesses auto --dist loadfile || [ $$? -eq 5 ]

bench: install  ## Measure speed and print tables (about half an hour, on a machine that does nothing else)
	$(BIN)/python -m benchmarks

check: install  ## Formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install  ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit:  ## Ask the advisories of PyPI about every version in requirements.lock (needs the internet)
	$(PYTHON) -m venv --clear build/audit
	build/audit/bin/pip install --quiet pip-audit
	build/audit/bin/pip-audit --strict --no-deps --requirement requirements.lock

lock:  ## Make requirements.lock anew from the ranges in pyproject.toml
	$(PYTHON) scripts/lock.py

clean:  ## Remove .venv, caches and build leftovers, but not outputs/
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find kdlab conf tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
