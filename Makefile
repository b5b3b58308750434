# The two commands of the README are `make run` and `make test`; both may be run again at no cost.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test bench lint

run: .venv/.run
	$(BIN)/python app.py

test: .venv/.dev lint
	$(BIN)/python -m pytest

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/.run
	$(BIN)/python -m pipelines.face.bench

# A stamp says that this requirements.txt is installed; a broken install leaves none.
.venv/.run: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	touch $@

.venv/.dev: .venv/.run pyproject.toml
	$(PIP) -e '.[dev]'
	touch $@
