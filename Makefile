# SPDX-License-Identifier: BSD-3-Clause
# Needs Python 3.10 to 3.13 with its headers and venv, a C compiler and make.  All else comes
# from PyPI into folders named .venv-*, one for each interpreter.

PYTHON ?= python3
# The oldest and the newest interpreter found, which are the ones the tests run on.
PYTHONS ?= $(shell sh tools/find_pythons.sh)
VENV = .venv-$(notdir $(PYTHON))
BIN = $(VENV)/bin
C_FILES = ext/*.c ext/*.h tests/engine/*.c tests/engine/*.h tests/stress/*.c tests/stress/*.h \
    tests/crash/*.c benchmarks/*.c benchmarks/*.h benchmarks/*.cpp
ENGINE_TESTS = tests/engine tests/stress/test_stress.py::test_stress_of_the_engine
# Where the figures of a bench go; the README's are of benchmarks/results.
RESULTS = build/bench
SECONDS = 60
DEPTH = 200
SEED =
SOURCES = $(wildcard ext/*.c ext/*.h ext/*.py lazymem/_version.py) setup.py setup.cfg

.PHONY: help demo test test-one check lint format docs asan tsan crash stress bench bench-smoke \
    clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

# An editable install with the extras of the target's own name.
$(VENV)/%.done: $(SOURCES)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	    echo "$(PYTHON) has no venv module: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	@touch $@

demo: $(VENV)/demo.done ## set up, then the main job on real data
	$(BIN)/lazymem demo

test: ## set up, then the tests on the oldest and the newest Python found
	@for python in $(PYTHONS); do \
	    $(MAKE) --no-print-directory test-one PYTHON=$$python || exit 1; done

test-one: $(VENV)/test.done
	$(BIN)/python -m pytest $(ARGS)

check: lint docs test bench-smoke ## all that CI runs

lint: $(VENV)/lint.done ## ruff, mypy, clang-format, codespell
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(C_FILES)
	$(BIN)/codespell

format: $(VENV)/lint.done ## let the tools rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(C_FILES)

docs: $(VENV)/docs.done ## the site, in build/docs: a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs build/docs

asan: $(VENV)/test.done ## the engine's own tests under ASan and UBSan
	LAZYMEM_SANITIZERS=asan $(BIN)/python -m pytest $(ENGINE_TESTS)

tsan: $(VENV)/test.done ## the engine's own tests under TSan
	LAZYMEM_SANITIZERS=tsan $(BIN)/python -m pytest $(ENGINE_TESTS)

crash: $(VENV)/test.done ## every crash point of the store file: DEPTH=200 images at each, SEED=
	LAZYMEM_CRASH_DEPTH=$(DEPTH) LAZYMEM_CRASH_SEED=$(SEED) \
	    $(BIN)/python -m pytest -s -o faulthandler_timeout=0 tests/crash

stress: $(VENV)/test.done ## everything at once, and new examples: SECONDS=60 for each layer, SEED= to repeat
	LAZYMEM_STRESS_SECONDS=$(SECONDS) LAZYMEM_STRESS_SEED=$(SEED) \
	    $(BIN)/python -m pytest -s -o faulthandler_timeout=0 tests/stress tests/property

bench: $(VENV)/bench.done ## measure beside the peers, an hour or more: RESULTS=build/bench
	mkdir -p $(RESULTS)
	for b in benchmarks/bench_*.py; do n=$$(basename $$b .py); \
	    $(BIN)/python $$b --out $(RESULTS)/$${n#bench_}.json || exit 1; done
	$(BIN)/python benchmarks/plot.py $(RESULTS)

bench-smoke: $(VENV)/bench.done ## the same with small data, to see that it runs
	for b in benchmarks/bench_*.py; do $(BIN)/python $$b --smoke || exit 1; done

clean: ## remove what was built
	rm -rf .venv-* build dist *.egg-info lazymem/*.so lazymem/_lazymem.c
	find . -name __pycache__ -prune -exec rm -rf {} +
