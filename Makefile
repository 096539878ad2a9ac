# make train ARGS="model=reinforce_vae data=fashion_mnist"; make test ARGS="-k estimators"
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: setup train test fuzz lint zoo bench docs

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

train: setup
	$(BIN)/python train.py $(ARGS)

test: setup
	$(BIN)/python -m pytest -n auto $(ARGS)

fuzz: setup
	FUZZ_CASES=2000 $(BIN)/python -m pytest -n 0 tests/test_fuzz.py $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m pip install --quiet --no-deps pythae cloudpickle imageio
	$(BIN)/python benchmarks/speed.py $(ARGS)
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/estimator_cost.py

docs: setup
	$(BIN)/python docs/notebooks.py
	$(BIN)/python -m sphinx --fail-on-warning --quiet docs docs/_build

zoo: setup
	$(BIN)/python benchmarks/train_zoo.py $(ARGS)
