# Everything a newcomer needs: `make demo` and `make test` set up .venv from nothing but Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev,retrieval,video
WORKERS ?= 2
DEMO_ARGS ?=
# one token of a small model is too little work to share between threads
DEMO_THREADS ?= 1

BIN := $(VENV)/bin
SACCADE := $(BIN)/saccade
PACKAGES := common retrieval datamodules inference modules callbacks cli configs
SOURCES := $(PACKAGES) benchmarks tests
MYPY_PACKAGES := $(foreach package,$(PACKAGES),-p saccade.$(package))

# An editable install in strict mode maps the files that exist when it is made, so a new or a renamed file needs
# another one. The stamp's name is a checksum of the list of files and of the two files that say what to install.
FILES := $(shell find $(PACKAGES) -type f '(' -name '*.py' -o -name '*.yaml' -o -name py.typed ')' | LC_ALL=C sort)
KEY := $(shell (echo '$(FILES) $(EXTRAS)'; cat pyproject.toml constraints.txt) | cksum | cut -d' ' -f1)
STAMP := $(VENV)/.installed-$(KEY)

.DEFAULT_GOAL := help
.PHONY: help install demo test check format tables clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "saccade: error: '$(PYTHON)' is not Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt torch setuptools
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]' --config-settings editable_mode=strict
	@rm -f $(VENV)/.installed-* && touch $@

install: $(STAMP)  ## create .venv and install saccade into it (again, when a file was added)

demo: install  ## train a small language model, validate it with four decoders attached (at most 6 minutes on 2 cores)
	$(SACCADE) fit --config lm/demo-draft.yaml $(DEMO_ARGS)
	$(SACCADE) fit --config lm/demo.yaml $(DEMO_ARGS)
	OMP_NUM_THREADS=$(DEMO_THREADS) $(SACCADE) search-layers --config search/demo.yaml
	OMP_NUM_THREADS=$(DEMO_THREADS) $(SACCADE) validate --config lm/demo.yaml --config decoding/demo.yaml --ckpt_path last

test: check  ## lint, types and tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

check: install  ## lint and types
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/mypy $(MYPY_PACKAGES)

format: install  ## let ruff mend what it can
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	$(BIN)/ruff format $(wildcard $(SOURCES))

tables: install  ## write the tables of README and docs again from benchmarks/results
	@if [ -f benchmarks/tables.py ]; then $(BIN)/python -m benchmarks.tables; else echo "benchmarks/tables.py does not exist yet: nothing to do"; fi

clean:  ## remove what make made, except the results in runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
