# Everything runs in .venv, made with the tested versions of constraints.txt. `make PYTHON=python3.12 test` for another Python.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
DOCS := .venv/.docs
FLOOR := .venv-floor
NEWEST := .venv-newest
RECORD := .venv-record
TORCH ?= 2.13.0
FLOOR_TORCH ?= torch==2.11.*
# one process a core; each loads torch, so no more than that
EACH_CORE := -n logical --dist worksteal
.DEFAULT_GOAL := help
.PHONY: help venv demo demo-short test test-lm-eval test-trl test-floor test-newest test-newest-all census hub-matrix ledger lint types format tables ci clean

help:  ## This list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

venv: $(READY)  ## A virtual environment with hf_longctx and its tools

# Stamped last, so that an interrupted installation starts over.
$(READY): pyproject.toml constraints.txt
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e ".[dev]" -c constraints.txt
	touch $(READY)

demo: $(READY)  ## The main job on a real model, about 5 minutes on 2 CPU cores beyond the downloads; results in demo-out/
	$(BIN)/hf-longctx demo --out demo-out

demo-short: $(READY)  ## The same with tiny lengths, about a minute
	$(BIN)/hf-longctx demo --short --out demo-out/short

test: $(READY)  ## All tests; those for GPUs are skipped without one
	$(BIN)/python -m pytest $(EACH_CORE)

test-lm-eval: $(READY)  ## The tests that need lm-eval, which brings some fifty packages
	$(BIN)/python -m pip install --quiet -e ".[lm-eval]" -c constraints.txt
	$(BIN)/python -m pytest tests/evaluation/test_harness.py tests/cli/test_eval_tasks.py

test-trl: $(READY)  ## The tests that need TRL, which brings datasets and pyarrow
	$(BIN)/python -m pip install --quiet -e ".[trl]" -c constraints.txt
	$(BIN)/python -m pytest tests/training tests/evaluation/test_long_output.py \
		tests/parallel/test_trl.py tests/parallel/test_weighted_trl.py tests/parallel/test_long_dpo.py

test-floor: $(FLOOR)/.installed  ## The short form of the contract on the oldest supported transformers
	$(FLOOR)/bin/python -m pytest $(EACH_CORE) -m floor

test-newest: newest  ## The same on the newest transformers that the registry serves, and the newest of all else but torch
	$(NEWEST)/bin/python -m pytest $(EACH_CORE) -m floor

test-newest-all: newest  ## All tests on the newest transformers
	$(NEWEST)/bin/python -m pytest $(EACH_CORE)

census: $(READY) newest  ## Every causal language model of the pinned and of the newest transformers under attention methods
	$(BIN)/python -m tests.families.census
	$(NEWEST)/bin/python -m tests.families.census

hub-matrix: $(READY) newest $(FLOOR)/.installed  ## Published models loaded in every way, on the pinned, newest and oldest transformers
	$(BIN)/python -m tests.hub.matrix --write
	$(NEWEST)/bin/python -m tests.hub.matrix --write
	$(FLOOR)/bin/python -m tests.hub.matrix --write

ledger: $(READY) newest $(FLOOR)/.installed  ## The scripts of patches/ on the pinned, newest and oldest releases; writes what was seen
	$(BIN)/python -m tests.ledger --write
	$(NEWEST)/bin/python -m tests.ledger --write
	$(FLOOR)/bin/python -m tests.ledger --write

# Resolved every time, since what is newest changes; torch stays, as the newest brings gigabytes of CUDA.
.PHONY: newest newest-record site
newest:
	test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager -e ".[dev]" transformers torch==$(TORCH)
	$(NEWEST)/bin/python -c "import transformers; print('transformers', transformers.__version__)"

# Over .venv by a .pth, so that torch is not downloaded again; in .venv-record itself are the three packages alone.
newest-record: $(READY)  ## The short form on the newest transformers, peft and accelerate, recorded in recipes/compat/
	$(PYTHON) -m venv --clear --without-pip $(RECORD)
	$(BIN)/python -m pip --python $(RECORD) install --quiet --no-deps transformers peft accelerate
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $$($(RECORD)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/over.pth
	$(RECORD)/bin/python -m recipes.compat $(EACH_CORE); ended=$$?; $(BIN)/python -m recipes.benchmarks tables; exit $$ended

$(FLOOR)/.installed: pyproject.toml
	rm -rf $(FLOOR)
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet -e ".[dev]" "transformers==5.17.*" "$(FLOOR_TORCH)"
	touch $@

site: $(DOCS)  ## The documentation as HTML, in build/site/; a warning, such as a link that leads nowhere, is an error
	$(BIN)/python -m sphinx -q -W --keep-going -j auto -b html -c docs/site . build/site

$(DOCS): $(READY)
	$(BIN)/python -m pip install --quiet -e ".[docs]" -c constraints.txt
	touch $@

lint: $(READY)  ## ruff, rules and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## mypy
	$(BIN)/mypy

format: $(READY)  ## Lay out the code and fix what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tables: $(READY)  ## Render README's, the guides' and the cards' tables, docs/composition.md, docs/families.md, registry.json
	$(BIN)/python -m recipes.benchmarks tables
	$(BIN)/python -c "from hf_longctx.registry import FILE, text; FILE.write_text(text(), encoding='utf-8')"
	$(BIN)/python -m tests.composition
	$(BIN)/python -m tests.families

ci: lint types site demo-short test-newest test  ## What CI runs

clean:  ## Remove the environment and everything that was built
	rm -rf .venv $(FLOOR) $(NEWEST) $(RECORD) build dist demo-out .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
