# Two commands are all that a new machine needs: `make demo` and `make test`.
# Both make their own environment in .venv, from the pinned versions in requirements/.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
BENCH := .venv-bench
DOCS := .venv-docs
ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
# What many processes import need not be compiled by each of them.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-input

.PHONY: help demo test test-all test-frameworks wheel wheel-test bench lint fuzz docs docs-tables prose screenshots changelog lock clean

help: ## list what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## play through the examples over HTTP; FRAMEWORK=flask for one, KEEP=1 leaves it running
	@$(BIN)/python -m examples.demo $(if $(FRAMEWORK),--framework $(FRAMEWORK)) $(if $(KEEP),--keep)

# Real servers, sockets and clocks share the machine, so tests that fail are run once more, alone.
AGAIN := $(BIN)/python -m pytest -q --last-failed --last-failed-no-failures=none

# Coverage doubles the time that a test takes. These tests repeat for many servers, faults, pages or
# orders of events what the tests of each part measure; many of them wait, so one more runs at once.
UNMEASURED := tests/conformance tests/docs tests/faults tests/faults_of_peers tests/servers \
    $(wildcard tests/*/test_*interleavings.py)

test: lint ## format, lint, types, import contract, all tests, coverage
	@rm -f .coverage .coverage.*
	@failed=; \
	$(BIN)/python -m pytest -q --numprocesses=auto --cov --cov-report= --no-cov-on-fail \
	    $(UNMEASURED:%=--ignore=%) || failed=1; \
	$(BIN)/python -m pytest -q --numprocesses=$$(($$(getconf _NPROCESSORS_ONLN) + 1)) $(UNMEASURED) || failed=1; \
	test -z "$$failed" || $(AGAIN)
	@$(BIN)/coverage report --fail-under=$(COVERAGE) > $(VENV)/coverage.log 2>&1 || { cat $(VENV)/coverage.log; exit 1; }

# One at a time, as some measure; only their files are collected, since collecting all takes ten seconds.
MARKED := "node or slow or browser"

test-all: test docs prose ## the same, the site, a soak, and what needs Node (the JavaScript SDKs, pyright), Chromium (the console) and Varnish (a CDN)
	@command -v npm >/dev/null || { $(ROOT) apt-get -qq update && $(ROOT) apt-get -qq install -y nodejs npm; }
	@cd tests/node && npm ci --silent --no-audit --no-fund
	@$(CHROMIUM)
	@$(VARNISH)
	@$(BIN)/python -m pytest -q -m $(MARKED) $$(grep -rlE 'mark\.(node|slow|browser)' tests --include='*.py') \
	    || $(AGAIN) -m $(MARKED)

VARNISH := command -v varnishd >/dev/null || \
    { $(ROOT) apt-get -qq update && $(ROOT) apt-get -qq install -y --no-install-recommends varnish; }

test-frameworks: $(READY) ## run the frameworks' own tests through the middleware; ONLY="flask django", MODE=cache
	@$(BIN)/python -m tests.frameworks $(foreach name,$(ONLY),--framework $(name)) $(foreach mode,$(MODE),--mode $(mode))

CHROMIUM := command -v chromium >/dev/null || \
    { $(ROOT) apt-get -qq update && $(ROOT) apt-get -qq install -y --no-install-recommends chromium; }

# Not the tree: tests and examples import what the wheel has put into each environment.
WHEEL_PARTS := tests/test_package.py tests/test_readme.py tests/contract/test_budgets.py \
    tests/cli/test_entry.py tests/local/test_plugin.py
PYTHONS ?= $(PYTHON)

wheel: $(READY) $(DOCS)/ready ## build the wheel and the sdist into dist, and check what PyPI will show of them
	@rm -rf dist
	@$(BIN)/uv build --quiet --out-dir dist
	@$(DOCS)/bin/twine check --strict dist/* > $(DOCS)/twine.log 2>&1 || { cat $(DOCS)/twine.log; exit 1; }

wheel-test: $(READY) $(if $(WHEEL),,wheel) ## test the wheel, not the tree; PYTHONS="3.12 3.13", WHEEL=PATH for one that is built
	@for python in $(PYTHONS); do .ci/wheel $(BIN)/uv $$python "$(or $(WHEEL),dist/*.whl)" $(WHEEL_PARTS) || exit 1; done

# The floor is what the suite reaches, rounded down.
COVERAGE := 97

bench: $(BENCH)/ready ## speed beside the peers, into docs/benchmarks.md; ROWS='Flask*' ROUNDS=7 QUICK=1
	@PYTHONPATH=src $(BENCH)/bin/python -m benchmarks $(if $(QUICK),--quick) $(if $(QUICK)$(ROWS),,--write) \
	    $(if $(ROWS),--rows '$(ROWS)') $(if $(ROUNDS),--rounds $(ROUNDS))

lint: $(READY) ## format, lint, types, import contract and changelog fragments alone
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports > $(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }
	@$(BIN)/python .ci/changelog.py

fuzz: $(READY) ## fuzz the entry codec, the wire and HTTP with atheris, SECONDS=60 each; cases stay in fuzz/cases
	@$(BIN)/uv pip install --quiet --group fuzz
	@for target in entries wire answers; do $(BIN)/python -m fuzz $$target $(or $(SECONDS),60) || exit 1; done

docs: $(DOCS)/ready ## build the documentation's site into site/, strictly, and check its links
	@PYTHONPATH=. $(DOCS)/bin/zensical build --clean --strict > $(DOCS)/build.log 2>&1 || { cat $(DOCS)/build.log; exit 1; }
	@$(DOCS)/bin/python -m documentation.site site
	@$(DOCS)/bin/python -m documentation.readme

prose: $(DOCS)/ready ## check that the pages are easy to read; PAGES=docs/caching.md, ALL=1 prints what is accepted for now, RECORD=1 fewer
	@PYTHONPATH=. $(DOCS)/bin/python -m documentation.prose $(if $(ALL),--all) $(if $(RECORD),--record) $(PAGES)

docs-tables: $(READY) ## write the documentation's tables and pictures that the tests hold us to
	@WRITE_DOCS_TABLES=1 $(BIN)/python -m pytest -q tests/faults tests/docs -k documentation

changelog: $(READY) ## show what changelog.d makes of the next version; RELEASE=1 writes it
	@$(BIN)/towncrier build $(if $(RELEASE),--yes,--draft 2>/dev/null)

screenshots: $(READY) ## photograph the local Upstash's console in Chromium, into docs/images
	@$(CHROMIUM)
	@$(BIN)/python -m tests.local.screenshots

lock: $(READY) ## pin the newest versions that pyproject.toml admits
	@$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --all-extras \
	    --group dev --no-header --no-annotate --no-emit-index-url pyproject.toml \
	    --output-file requirements/dev.txt
	@$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --no-header --no-annotate \
	    --no-emit-index-url requirements/bench.in pyproject.toml --output-file requirements/bench.txt
	@$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --no-header --no-annotate \
	    --no-emit-index-url --group docs --output-file requirements/docs.txt
	@$(BIN)/python -m tests.frameworks --lock

clean: ## remove what the other commands made
	rm -rf $(VENV) $(BENCH) $(DOCS) site build dist .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "upstash-middleware needs Python 3.11 or newer as '$(PYTHON)'; if it is installed" \
	         "under another name, say: make $(or $(MAKECMDGOALS),test) PYTHON=python3.13"; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); \
	    echo "'$(PYTHON)' cannot make virtual environments: install its venv module" \
	         "(on Debian and Ubuntu: apt-get install python3-venv)"; exit 1; }
	@echo "setting up $(VENV) (once)" >&2
	@{ $(PIP) -r requirements/dev.txt && $(PIP) --no-deps --no-build-isolation --editable .; } \
	    > $(VENV)/install.log 2>&1 || { cat $(VENV)/install.log; exit 1; }
	@touch $@

$(BENCH)/ready: requirements/bench.txt
	@$(PYTHON) -m venv $(BENCH)
	@echo "setting up $(BENCH) (once)" >&2
	@$(BENCH)/bin/python -m pip install --disable-pip-version-check --no-input \
	    -r requirements/bench.txt > $(BENCH)/install.log 2>&1 || { cat $(BENCH)/install.log; exit 1; }
	@touch $@

$(DOCS)/ready: requirements/docs.txt
	@$(PYTHON) -m venv $(DOCS)
	@echo "setting up $(DOCS) (once)" >&2
	@$(DOCS)/bin/python -m pip install --disable-pip-version-check --no-input -r requirements/docs.txt \
	    > $(DOCS)/install.log 2>&1 || { cat $(DOCS)/install.log; exit 1; }
	@touch $@
