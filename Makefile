# Everything a newcomer, CI and a maintainer need. `make quickstart` and `make test` do their own
# set-up; nothing but Python >= 3.11, make and a network is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= quickstart
PLUGINS ?= .venv-plugins
LOWEST ?= .venv-lowest
INSTALLED ?= .venv-installed
TOOLS ?= .venv-tools

.PHONY: quickstart demo test fuzz test-fast test-release test-lowest test-package check \
  check-workflows check-constraints package format docs reference clean constraints plugins

quickstart: $(VENV)/ready
	$(BIN)/multimae-eo quickstart --out $(OUT)

demo: $(VENV)/ready
	test -d $(OUT)/model || $(BIN)/multimae-eo quickstart --out $(OUT)
	$(BIN)/multimae-eo demo --model $(OUT)/model --scene $(OUT)/world/scene.yaml --runs $(OUT)/run

# Broken input of every kind; FUZZ_SEED=n starts elsewhere.
fuzz: $(VENV)/ready
	FUZZ_CASES=$${FUZZ_CASES:-5000} $(BIN)/python -m pytest tests/fuzz -n auto --timeout 3600

test: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not release"

# What an edit should not break, in two to three minutes.
test-fast: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not release"

# With the variations that only a release runs.
test-release: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --dist worksteal

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py tests/test_duplicates.py

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The site, in site/index.html: strict, so that a broken link is an error.
docs: reference
	$(BIN)/zensical build --clean --strict

reference: $(VENV)/ready
	$(BIN)/python docs/figures/method.py
	$(BIN)/python docs/reference/generate.py

# The environment is complete only when the last line has run, so an interrupted one is made again.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,geo,dask,xarray,demo,export,hub,docs]'
	touch $@

# TerraTorch and torchgeo-bench need torchvision, whose wheel wants the ordinary torch: an
# environment of their own, several GB; stac-model, which validates items, is no extra of ours
# either. Python 3.11 gets TorchGeo 0.8 and no torchgeo-bench.
plugins: $(PLUGINS)/ready
	PYTHONPATH=src $(PLUGINS)/bin/python -m pytest tests/plugins tests/benchmarks/test_peers.py \
	  tests/model_folder/test_mlm_item.py

# Time, memory and seams beside these packages, in one run of a few minutes.
.PHONY: peers
peers: $(PLUGINS)/ready
	PYTHONPATH=src:benchmarks $(PLUGINS)/bin/python -m peers --require TerraTorch,TorchGeo,timm

$(PLUGINS)/ready: pyproject.toml
	$(PYTHON) -m venv --clear $(PLUGINS)
	$(PLUGINS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  torch==2.14.1 torchvision==0.29.1 terratorch torchgeo timm pytortilla \
	  "torchgeo-bench; python_version >= '3.12'" "tacoreader; python_version < '3.14'" \
	  stac-model fsspec pandas requests -e '.[test,geo,export]'
	touch $@

# The lowest versions that pyproject.toml admits, on the lowest Python: PYTHON must be 3.11.
test-lowest: $(LOWEST)/ready
	$(LOWEST)/bin/python -m pytest -n auto --dist worksteal -m "not slow and not release" \
	  @tests/core.txt @tests/geo.txt

$(LOWEST)/ready: pyproject.toml $(TOOLS)/ready
	$(PYTHON) -m venv --clear $(LOWEST)
	$(TOOLS)/bin/uv pip compile pyproject.toml --resolution lowest-direct --quiet --no-header \
	  $(foreach extra,test geo dask xarray demo export hub,--extra $(extra)) \
	  --python $(LOWEST)/bin/python -o $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -r $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

# dist/: the sdist, and the wheel built from it.
package: $(TOOLS)/ready
	rm -rf dist
	$(TOOLS)/bin/python -m build --outdir dist .
	$(TOOLS)/bin/twine check --strict dist/*

# The wheel in an environment of its own, used outside of this folder.
test-package:
	$(PYTHON) -m venv --clear $(INSTALLED)
	$(INSTALLED)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
	  "$$(echo dist/*.whl)[geo]"
	cd $(INSTALLED) && bin/multimae-eo --version && bin/multimae-eo quickstart --out quickstart
	cd $(INSTALLED) && bin/multimae-eo info quickstart/model

# What only a server reads: workflows, forms, hooks, citation.
CHECK_SCHEMA = $(TOOLS)/bin/check-jsonschema --builtin-schema

check-workflows: $(TOOLS)/ready
	$(CHECK_SCHEMA) vendor.github-workflows .github/workflows/*.yml
	$(CHECK_SCHEMA) vendor.dependabot .github/dependabot.yml
	$(CHECK_SCHEMA) vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/feature.yml
	$(CHECK_SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(CHECK_SCHEMA) vendor.citation-file-format CITATION.cff
	$(TOOLS)/bin/pre-commit validate-config
	$(TOOLS)/bin/zizmor --offline --no-progress --quiet .

$(TOOLS)/ready: .github/tools.txt
	$(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check -r .github/tools.txt
	touch $@

COMPILE = $(TOOLS)/bin/uv pip compile pyproject.toml --all-extras --universal \
  --python-version 3.11 --no-annotate --no-header

constraints: $(TOOLS)/ready
	$(COMPILE) -c torch-pin.txt -o constraints.txt

# constraints.txt can be installed on every Python, and pins everything that is.
check-constraints: $(TOOLS)/ready
	$(COMPILE) --quiet -c constraints.txt -o $(TOOLS)/constraints.txt
	diff constraints.txt $(TOOLS)/constraints.txt

clean:
	rm -rf $(VENV) $(PLUGINS) $(LOWEST) $(INSTALLED) $(TOOLS) dist quickstart tutorial site .pytest_cache .mypy_cache .ruff_cache .hypothesis
