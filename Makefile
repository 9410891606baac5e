# `make test` and `make demo` set up .venv by themselves; nothing needs to be installed beforehand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint readme clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# The loader is tested with torchvision and without it: here it lies beside the environment, not in it.
$(VENV)/torchvision-for-tests: $(VENV)/.ready
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $@ torchvision==0.28.0

demo: $(VENV)/.ready
	$(BIN)/ptp demo --html demo.html --force

test: $(VENV)/.ready $(VENV)/torchvision-for-tests
	$(BIN)/python -m pytest

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Write the tables of docs/results into the README and the model card.
readme: $(VENV)/.ready
	$(BIN)/cog -r -I docs README.md src/ptp/tiny/weights/README.md docs/results/ablation.md docs/results/models.md docs/results/rivals.md

clean:
	rm -rf $(VENV) demo.html
