# Every command of this repository. `make` alone lists them.
# Needed: Python 3.11 or newer, git and make. uv is used where it is, else brought into .uv/.

PYTHON ?= python3
UV := $(or $(shell command -v uv 2>/dev/null),$(CURDIR)/.uv/bin/uv)
RUN := "$(UV)" run --no-sync

# What runs below finds the same uv, and no other project's environment.
export PATH := $(CURDIR)/.uv/bin:$(PATH)
# uv trusts what the system trusts, where the system keeps its certificates in a usual place.
CERTIFICATES := $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem)
export UV_SYSTEM_CERTS ?= $(if $(CERTIFICATES),true,false)
export UV_NATIVE_TLS ?= $(UV_SYSTEM_CERTS)
unexport VIRTUAL_ENV PYTHONPATH PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-full check install clean

help: ## List these commands
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

demo: install ## Bake a project and turn the whole wheel once, on real data or your own table (DATA= TARGET=)
	@$(RUN) python tests/demo.py $(if $(DATA),"$(DATA)") $(if $(TARGET),"$(TARGET)")

test: install ## Run the tests, those of a baked project included (about 15 minutes)
	@$(RUN) pytest -m "not full"

test-full: install ## Run every test, the slow ones too: 30 public tables, simulations (about two hours)
	@$(RUN) pytest

test-fast: install ## Run the tests that need no baked project's environment (under a minute)
	@$(RUN) pytest -m "not slow"

check: install ## Check formatting, lint and types of the template's own code
	@$(RUN) ruff format --check hooks tests
	@$(RUN) ruff check hooks tests
	@$(RUN) mypy

install: uv ## Make .venv with what the commands above need
	@"$(UV)" sync --quiet || { \
	  echo "Not to be had as of pyproject.toml's exclude-newer; trying without that date." >&2; \
	  "$(UV)" sync --quiet --no-config; }

clean: ## Remove everything the commands above made
	@rm -rf build .venv .uv uv.lock .pytest_cache .mypy_cache .ruff_cache
	@find hooks tests -name __pycache__ -prune -exec rm -rf {} +

.PHONY: uv
uv:
	@test -x "$(UV)" || { \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Python 3.11 or newer is needed, and $(PYTHON) is not: try make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	  echo "Bringing uv into .uv/" && "$(PYTHON)" -m venv --clear .uv && \
	  .uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.7'; }
