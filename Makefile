# `make quickstart` and `make test` need Python 3.11 or later and nothing else.
PYTHON ?= python3
BIN := .venv/bin
# Tests start many processes of the package: compiled once, not by each of them.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup quickstart test test-first test-second test-rest test-all test-lmeval lint docs teacher clean

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stillhouse needs Python 3.11 or later")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

quickstart: setup
	$(BIN)/stillhouse run examples/quickstart/recipe.toml
	$(BIN)/stillhouse audit verify "$$(ls -td .stillhouse/runs/quickstart-*/release | head -1)"

# In three processes for two cores, which take about as long: many tests wait for servers and for the disk.
FIRST := tests/gateway tests/pipeline
SECOND := tests/ask tests/cli tests/collect tests/ledger

test: setup lint
	$(MAKE) --jobs 3 --keep-going test-first test-second test-rest

test-first: setup
	$(BIN)/python -m pytest -m "not slow" $(FIRST)

test-second: setup
	$(BIN)/python -m pytest -m "not slow" $(SECOND)

test-rest: setup
	$(BIN)/python -m pytest -m "not slow" $(addprefix --ignore ,$(FIRST) $(SECOND))

test-all: setup lint
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix -r requirements-,ray.lock triton.lock gguf.lock oms.lock)
	npm install --silent --no-audit --no-fund --prefix .venv/npm openai@7.57.0 || echo "no npm: its client is not tested"
	$(BIN)/python -m pytest --hypothesis-profile default

# lm-eval holds python-dateutil at an older version than the rest, so it has an environment of its own.
test-lmeval: .venv-lmeval/ready
	.venv-lmeval/bin/python -m pytest tests/evaluate/test_harness.py

.venv-lmeval/ready: requirements.lock requirements-lmeval.lock pyproject.toml
	$(PYTHON) -m venv .venv-lmeval
	.venv-lmeval/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	.venv-lmeval/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-lmeval.lock
	.venv-lmeval/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check
	$(BIN)/python docs/controller.py --check
	$(BIN)/python docs/arena_plot.py --check
	$(BIN)/python docs/benchmarks_page.py --check

docs: setup
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/controller.py
	$(BIN)/python docs/arena_plot.py
	$(BIN)/python docs/benchmarks_page.py

# Trains the shipped teacher and base student from nothing; hours on a CPU.
teacher: setup
	$(BIN)/python -m stillhouse.models.embedded.make all

# Leaves .stillhouse alone: the ledger and its keys cannot be made again.
clean:
	rm -rf .venv build
