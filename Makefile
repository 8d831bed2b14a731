# `make demo` and `make test` need only Python 3.11 or newer and make: they create .venv and install into it.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev,retrieval,video
WORKERS ?= 2
# settings for `saccade fit` in the demo, such as DEMO_ARGS=--trainer.max_steps=50
DEMO_ARGS ?=

BIN := $(VENV)/bin
SACCADE := $(BIN)/saccade
PACKAGES := common retrieval datamodules inference modules callbacks cli configs
SOURCES := $(PACKAGES) benchmarks demo tests
MYPY_PACKAGES := $(foreach package,$(PACKAGES),-p saccade.$(package))

# An editable install in strict mode maps the files that exist when it is made, so it is repeated when a file is added or
# renamed. The stamp's name is a checksum of the list of files and of the two files that determine what is installed.
FILES := $(shell find $(PACKAGES) -type f '(' -name '*.py' -o -name '*.yaml' -o -name '*.jsonl' -o -name py.typed ')' | LC_ALL=C sort)
KEY := $(shell (echo '$(FILES) $(EXTRAS)'; cat pyproject.toml constraints.txt) | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.installed-$(KEY)

.DEFAULT_GOAL := help
.PHONY: help install demo test check format tables clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "saccade: error: '$(PYTHON)' is not Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt torch setuptools
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]' --config-settings editable_mode=strict
	@rm -f $(VENV)/.installed-* && touch $@

install: $(STAMP)  ## create .venv and install saccade into it; again when a file was added

demo: install  ## compare five decoders on a model of 135M weights, with a draft trained for it (at most 8 minutes on 2 cores)
	$(BIN)/python -m demo $(DEMO_ARGS)

test: check  ## run make check, then the tests (at most 12 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

check: install  ## check lint, format and types
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/mypy $(MYPY_PACKAGES)

format: install  ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	$(BIN)/ruff format $(wildcard $(SOURCES))

tables: install  ## write the tables of the README and the documentation again from benchmarks/results
	$(BIN)/python -m benchmarks.tables

clean:  ## remove what make created, except the results in runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
