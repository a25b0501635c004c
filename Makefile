# The commands of a checkout; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all lint format lock clean

PYTHON ?= python3.13 python3.12 python3.11 python3
PY := .venv/bin/python
PIP := -m pip --disable-pip-version-check
STAMP := .venv/.installed
# A test that kills its worker ends the run: with a new worker, pytest-xdist 3.8 may wait for ever.
PYTEST := $(PY) -m pytest -q -n 2 --dist loadfile --max-worker-restart 0

export TF_CPP_MIN_LOG_LEVEL ?= 3

# Sets $python to the first of PYTHON that fits and can make virtual environments.
FIND_PYTHON = \
	python=; bare=; \
	for candidate in $(PYTHON); do \
	  $$candidate -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	    >/dev/null 2>&1 || continue; \
	  if $$candidate -c 'import ensurepip, venv' >/dev/null 2>&1; \
	  then python=$$candidate; break; else bare=$${bare:-$$candidate}; fi; \
	done; \
	if [ -z "$$python" ] && [ -n "$$bare" ]; then \
	  version=$$($$bare -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  echo "error: $$bare cannot make virtual environments (its ensurepip is missing)." \
	    "On Debian and Ubuntu: sudo apt install python$$version-venv" >&2; exit 1; \
	elif [ -z "$$python" ]; then \
	  echo "error: none of '$(PYTHON)' is Python 3.11, 3.12 or 3.13. Install one, or name it:" \
	    "make venv PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Make .venv with the pinned packages (1 to 3 minutes, about 4 GB)

$(STAMP): requirements.lock requirements.txt pyproject.toml
	@$(FIND_PYTHON); \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  echo "Making .venv with $$($$python --version)."; \
	  $$python -m venv --clear .venv || exit 1; \
	fi
	@echo "Installing requirements.lock into .venv; this takes 1 to 3 minutes."
	@$(PY) $(PIP) install -q -r requirements.lock
	@$(PY) $(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: venv ## Train, evaluate and draw on the embedded data set, on the CPU
	@$(PY) -m maskx_tf demo

test: venv ## The quick tests, under 5 minutes (ARGS="-k name" for some of them)
	@$(PYTEST) -m "not thorough and not slow" $(ARGS)

test-all: venv ## All tests (ARGS="-m slow" for one tier)
	@$(PYTEST) $(ARGS)

lint: venv ## Style, formatting and types
	@status=0; \
	$(PY) -m ruff check . || status=1; \
	$(PY) -m ruff format --check . || status=1; \
	$(PY) -m mypy || status=1; \
	exit $$status

format: venv ## Sort imports and format
	@$(PY) -m ruff check --select I --fix .
	@$(PY) -m ruff format .

# The oldest Python decides: newer ones get versions that it cannot install.
lock: PYTHON = python3.11
lock: ## Renew requirements.lock from requirements.txt, dev and serving (needs Python 3.11)
	@$(FIND_PYTHON); set -e; \
	trap 'rm -rf .venv-lock requirements.lock.new' EXIT; \
	set -o pipefail; $$python -m venv --clear .venv-lock; \
	.venv-lock/bin/python $(PIP) install -q ".[dev,serving]"; \
	head -n 1 requirements.lock > requirements.lock.new; \
	.venv-lock/bin/python $(PIP) freeze --all --exclude pip --exclude wheel --exclude maskx-tf \
	  | LC_ALL=C sort -f >> requirements.lock.new; \
	mv requirements.lock.new requirements.lock

clean: ## Remove .venv, caches and build products
	@rm -rf .venv .venv-lock build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
