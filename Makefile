# Everything here needs only Python 3.11+, make and a package index. Each target makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Other people's clients, which the tests try against the server.
NPM := tests/npm/node_modules/.package-lock.json

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint bench flames docs lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(READY): requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements/dev.txt
	@touch $@

$(NPM): tests/npm/package-lock.json
	cd tests/npm && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

demo: $(READY) ## the live board, in your browser
	$(BIN)/rowcast demo

test: $(READY) $(NPM) ## the whole suite, on a real Postgres that comes as a wheel
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

test-fast: $(READY) ## unit tests only
	$(BIN)/python -m pytest tests/unit $(ARGS)

lint: $(READY) ## ruff, ruff format, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY) ## the benchmarks; prints tables, writes a dated result and plots (benchmarks/README.md)
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(READY) ## the documents as a site, in docs/_build; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --quiet docs docs/_build
	@echo "open docs/_build/index.html"

flames: $(READY) ## flame graphs of the benchmarks' cases, into docs/images/flames
	$(BIN)/python -m benchmarks.flames $(ARGS)

lock: $(READY) ## resolve requirements/dev.in anew into requirements/dev.txt
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		--output-file requirements/dev.txt requirements/dev.in

clean: ## remove what make made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache dist docs/_build
