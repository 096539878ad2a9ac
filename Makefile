# make train ARGS="model=reinforce_vae data=fashion_mnist"; make test ARGS="-k estimators"
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# What is installed: for training and the commands that a run names at its end; or all.
TRAINING = $(VENV)/.training
ALL = $(VENV)/.all

.PHONY: setup train test fuzz lint zoo bench docs

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(TRAINING): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[train,explore]"
	touch $@

$(ALL): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(TRAINING) $@

setup: $(ALL)

train: $(TRAINING)
	$(BIN)/python train.py $(ARGS)

test: $(ALL)
	$(BIN)/python -m pytest -n auto $(ARGS)

fuzz: $(ALL)
	FUZZ_CASES=2000 $(BIN)/python -m pytest -n 0 tests/test_fuzz.py $(ARGS)

lint: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(ALL)
	$(BIN)/python -m pip install --quiet --no-deps pythae cloudpickle imageio
	$(BIN)/python benchmarks/speed.py $(ARGS)
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/estimator_cost.py

docs: $(ALL)
	$(BIN)/python docs/notebooks.py
	$(BIN)/python -m sphinx --fail-on-warning --quiet docs docs/_build

zoo: $(ALL)
	$(BIN)/python benchmarks/train_zoo.py $(ARGS)
