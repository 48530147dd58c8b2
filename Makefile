# `make demo` shows what there is, `make quick` tests the core and the data,
# `make test` everything. All install first.

PYTHON ?= python3
EXTRAS ?= dev
BIN := .venv/bin

.PHONY: setup demo quick test fuzz kill versions lint types clean

setup: .venv/installed

# uses the exact versions that were tested; pyproject.toml says what may vary
.venv/installed: pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
	  f"trm_jax needs Python 3.11 or newer, this is {v.major}.{v.minor}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

demo: setup
	$(BIN)/trm demo

# the core and the data, without the files that compile most
quick: setup
	$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile \
	  --no-loadscope-reorder -m 'not (aot or draw or hosts or launch)' \
	  $(addprefix --ignore=tests/,core/test_attention.py core/test_depth.py \
	  core/test_flops.py) tests/core tests/data

# three workers for two cores: some tests wait for processes that they start
test: setup
	$(BIN)/python -m pytest --numprocesses=3 --dist=loadfile \
	  --no-loadscope-reorder

# campaigns: damaged files, and runs that are killed, for some minutes
MINUTES ?= 10
SEED ?= 0
fuzz kill: setup
	PYTHONPATH=tests JAX_PLATFORMS=cpu \
	  $(BIN)/python tests/campaigns/$@.py --minutes=$(MINUTES) --seed=$(SEED)

# the laws on several versions of Python and jax, as in PAIRS=3.12:0.11.2
PAIRS ?=
versions: setup
	$(BIN)/python tests/versions.py .cache/versions $(PAIRS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/basedpyright --level error

clean:
	rm -rf .venv runs
