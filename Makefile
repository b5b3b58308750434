# The two commands of the README are `make run` and `make test`; both may be run again at no cost.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: run test bench lint train-detection train-moe

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
	$(BIN)/python -m pipelines.detection.bench
	$(BIN)/python -m pipelines.action.bench
	$(BIN)/python -m pipelines.diffusion.bench
	$(BIN)/python -m pipelines.moe.bench

# DATA is a folder in COCO format: train.json, val.json, images/.
train-detection: .venv/.dev
	$(BIN)/python -m pipelines.detection.train --data $(DATA)

# STORIES is a folder with tinystories.txt and tales.txt.
train-moe: .venv/.dev
	$(BIN)/python -m pipelines.moe.train data --stories $(STORIES) --out runs/moe
	$(BIN)/python -m pipelines.moe.train model --out runs/moe

# A stamp says that this requirements.txt is installed; a broken install leaves none.
.venv/.run: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	touch $@

.venv/.dev: .venv/.run pyproject.toml
	$(PIP) -e '.[dev]'
	touch $@
