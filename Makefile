# `make run` and `make test` do all their own set-up; nothing but Python 3.11+ and make is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
DATA ?= data
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: help run dev test check lint types imports unit cluster golden coverage seeds proof interop suites secure soak soak-members scale bench compiled interpreted clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "raftkv needs Python 3.11 or newer; name one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

run: $(STAMP)  ## a store on 127.0.0.1:2379, data in ./data, until Ctrl-C
	@echo "In other terminals first: source $(BIN)/activate"
	@$(BIN)/raftkv serve --data-dir $(DATA)/default

dev: $(STAMP)  ## a local cluster of three members, until Ctrl-C
	@$(BIN)/raftkv dev --members 3

test: $(STAMP)  ## every test, about ten minutes
	$(BIN)/python -m pytest

check: lint types imports unit  ## what to run before a commit, under a minute

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports --no-cache

unit: $(STAMP)
	$(BIN)/python -m pytest -x tests/unit tests/paper tests/interaction

cluster: $(STAMP)  ## the tests with real processes only
	$(BIN)/python -m pytest tests/cluster

golden: $(STAMP)  ## rewrite the interaction traces; commit only what you understand
	$(BIN)/python -m pytest tests/interaction --rewrite-golden

coverage: $(STAMP)  ## branch coverage of everything that runs in one process
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest tests/unit tests/paper tests/interaction
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

SEEDS ?= 500
KILLS ?= 100
IMAGES ?= 5000
seeds: $(STAMP)  ## whole clusters in the simulation, SEEDS=500
	$(BIN)/python -m tests.simulation.run --seeds $(SEEDS)

proof: seeds  ## what it promises: seeds, crash images, kill -9 cycles; twenty minutes at most
	$(BIN)/python -m tests.crash.images --images $(IMAGES)
	$(BIN)/python -m tests.cluster.kills --cycles $(KILLS)
	$(BIN)/python -m tests.linearizability.crosscheck --seeds 200

OPERATIONS ?= 2000
interop: $(STAMP)  ## held against real etcd and its tools; five minutes
	$(BIN)/python -m tests.interop.differential --operations $(OPERATIONS)
	$(BIN)/python -m tests.interop.differential --operations $(OPERATIONS) --json
	$(BIN)/python -m tests.interop.cli
	$(BIN)/python -m tests.interop.etcdctl --size 1
	$(BIN)/python -m tests.interop.etcdctl --size 3
	$(BIN)/python -m tests.interop.perf --small

suites: $(STAMP)  ## the suites of etcd's Python clients, and a watch over leader kills; a quarter of an hour
	$(BIN)/python -m tests.interop.suites --size 1
	$(BIN)/python -m tests.interop.suites --size 3
	$(BIN)/python -m tests.interop.failover

secure: $(STAMP)  ## the same on three members with mTLS everywhere and users; twenty minutes
	$(BIN)/python -m tests.interop.differential --operations $(OPERATIONS) --secure
	$(BIN)/python -m tests.interop.differential --operations $(OPERATIONS) --json --secure
	$(BIN)/python -m tests.interop.cli --secure
	$(BIN)/python -m tests.interop.etcdctl --secure
	$(BIN)/python -m tests.interop.tls --size 3
	$(BIN)/python -m tests.interop.suites --secure
	$(BIN)/python -m tests.interop.failover --secure

HOURS ?= 1
soak: $(STAMP)  ## new seeds for HOURS=1; a failure says how to repeat it
	$(BIN)/python -m tests.simulation.run --hours $(HOURS) --first $$(date +%s)

MINUTES ?= 3
soak-members: $(STAMP)  ## everything at once on three real members; MINUTES=60 for the hour
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

scale: $(STAMP)  ## ten thousand services, a million keys; some minutes
	$(BIN)/python -m tests.scale.services
	$(BIN)/python -m tests.scale.keys

BENCH := $(VENV)/.bench
$(BENCH): $(STAMP)
	@echo "Installing what it is compared with (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $(BENCH)

bench: $(BENCH) compiled  ## beside etcd, in the compiled form, every ratio; over an hour, with QUICK=1 five minutes
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick) $(BENCH_OPTIONS)

compiled: $(STAMP)  ## compile the hot path in place; minutes, and a C compiler
	@find raftkv api -name '*.so' -delete  # what an earlier text had compiled and this one has not
	RAFTKV_COMPILE=1 $(BIN)/python setup.py --quiet build_ext --inplace
	@$(BIN)/raftkv version --output table

interpreted:  ## the way back from `make compiled`
	rm -rf build
	find raftkv api -name '*.so' -delete
	rm -f .compiled

clean: interpreted  ## remove what the other targets made, except data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
