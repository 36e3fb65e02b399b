# Everything a newcomer, CI and a maintainer need. `make quickstart` and `make test` do their own
# set-up; nothing but Python >= 3.11, make and a network is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= quickstart

.PHONY: quickstart test check format clean constraints

quickstart: $(VENV)/ready
	$(BIN)/multimae-eo quickstart --out $(OUT)

test: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The environment is complete only when the last line has run, so an interrupted one is made again.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,geo,dask,demo,export,hub,docs]'
	touch $@

constraints:
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  -c torch-pin.txt --no-annotate --no-header -o constraints.txt

clean:
	rm -rf $(VENV) quickstart .pytest_cache .mypy_cache .ruff_cache .hypothesis
