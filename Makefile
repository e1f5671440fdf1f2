VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help install test slow lint typecheck format docs walkthrough wheel ci

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/pytest:
	python3 -m venv $(VENV)
	$(BIN)/pip install -e ".[test]"

install: $(BIN)/pytest  ## create .venv and install the package into it, with its test tools

test: install  ## the quick tests
	$(BIN)/pytest

slow: install  ## the slow tests (no network, no GPU)
	$(BIN)/pytest -m slow

lint: install  ## what ruff and import-linter have to say
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

typecheck: install  ## mypy, strict
	$(BIN)/mypy dmnn_convert

format: install  ## let ruff rewrite the files
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install  ## the site, in build/docs
	$(BIN)/pip install -e ".[docs]"
	$(BIN)/mkdocs build --strict

walkthrough: install  ## docs/walkthrough.md again, in a few minutes
	$(BIN)/pip install -e ".[deploy]"
	$(BIN)/python tools/walkthrough.py

wheel: install  ## the sdist, and from it a wheel of this machine, in dist/
	$(BIN)/pip install build
	$(BIN)/python -m build

ci:  ## everything, in a fresh environment, as CI runs it
	.ci/run
