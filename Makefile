# Everything a person types here. Works with GNU make 3.81.
#   make demo            set up, then train and compare; results in out/demo
#   make setup PYTHON=python3.12 TORCH_ARGS='--index-url ...'   another Python, another build of torch
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
EPSILON ?= 8
SEED ?= 1
# One more than the cores that CI has: tests of processes wait a good part of their time.
WORKERS ?= 3
RUN := .venv/bin/python
TORCH := $(shell grep '^torch==' constraints.txt)
# One torch thread a process, and idle threads that sleep: two busy pools on two cores are many times slower.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export TORCH_ARGS

.PHONY: setup demo demo-clients up test test-browser fuzz check gates openapi messages sdk-check bench-setup clean
setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(or $(PYTHON),python3) cli/preflight.py
	$(or $(PYTHON),python3) -m venv .venv
	.venv/bin/pip install $(TORCH_ARGS) $(TORCH)
	.venv/bin/pip install -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(RUN) -m demo --epsilon $(EPSILON) --seed $(SEED)

demo-clients: setup
	$(RUN) -m demo.clients --epsilon $(EPSILON) --seed $(SEED)

up: setup
	.venv/bin/dpfl up

test: setup
	$(RUN) -m pytest -n $(WORKERS) --dist=worksteal $(ARGS)

# Swagger UI in headless Chromium, as an administrator uses it; a screenshot of each step in out/browser.
test-browser: setup
	$(RUN) -m tests.browser.preflight
	.venv/bin/pip install -q -c constraints.txt -e '.[browser]'
	$(RUN) -m pytest -n 0 tests/browser/swagger_ui.py $(ARGS)

# Every operation as every role, for longer than the suite has time: -k auditor tries one role.
fuzz: setup
	$(RUN) -m pytest -n 0 -s tests/fuzz/every_role.py $(ARGS)

check: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/bandit -q -r -c pyproject.toml app workers engines modelling client cli demo migrations
	$(RUN) -m tests.secret_scan
	for file in docker/*.Dockerfile; do .venv/bin/hadolint $$file || exit 1; done
	.venv/bin/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml
	$(RUN) -m cli.catalogs check
	$(RUN) -m pytest -n 0 tests/contracts

gates: setup
	@$(RUN) -m tests.gates

openapi: setup
	$(RUN) -m app openapi > openapi.new && mv openapi.new openapi.json

messages: setup
	$(RUN) -m cli.catalogs update

# Clients in other languages: generated, compiled, and run against a live server. Needs Node and npm.
sdk-check: setup
	$(RUN) -m sdk

# What others' code is measured against, each in a folder of its own; nothing of ours needs it.
bench-setup: setup
	for peer in benchmarks/peers/*.txt; do \
		.venv/bin/pip install --no-deps --upgrade --target .venv-peers/$$(basename $$peer .txt) -r $$peer || exit 1; \
	done

bench-%: setup
	$(RUN) -m benchmarks.$(subst -,_,$*) $(ARGS)

clean:
	rm -rf out build dist .coverage* .mypy_cache .ruff_cache .hypothesis .import_linter_cache .schemathesis
