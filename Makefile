# make book    run the notebooks and build the pages     (PROFILE=smoke or PROFILE=path/to/mine.yml)
# make test    every test                                (ARGS="tests/test_book.py -k stale")
# make lint    code style, and notebooks fit to be committed
# make clean   remove what was built here, .venv included
#
# Each target makes .venv first from constraints.txt, and again when the versions change.

SHELL := bash
PROFILE ?= default
ARGS ?=
# Test files are shared by as many processes as there are cores; the longest, the book's, is early.
SPREAD ?= -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
BIN := .venv/bin
INSTALLED := .venv/installed

# Real data for tests and workshops, where they lie beside the clone.
ifeq ($(origin CELLVQ_DATA),undefined)
ifneq ($(wildcard ../shared/data),)
export CELLVQ_DATA := $(abspath ../shared/data)
endif
endif

.PHONY: book test lint clean
.DEFAULT_GOAL := book

book: $(INSTALLED)
	@$(BIN)/cellvq book --profile "$(PROFILE)"

test: $(INSTALLED)
	@OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD) $(ARGS)

lint: $(INSTALLED)
	@$(BIN)/ruff check . && $(BIN)/python -m cellvq.notebooks check

clean:
	rm -rf _build .venv .pytest_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt .ci/install
	@bash .ci/install .venv
	@touch $@
