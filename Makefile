# Every target brings up what it needs: `make demo` and `make test` work on a fresh Debian 12 machine.

PYTHON ?= python3
BIN := .venv/bin
IMAGE ?=
COMMAND ?=
FUZZ ?= tests/fuzz
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 1800
SOAK_SEED ?= 1
# The recipe reads them from the environment: quotes in them must not end the recipe's own.
export IMAGE COMMAND
# What make install and make uninstall take, as the scripts of the tarball do.
PREFIX ?= /usr/local
DESTDIR ?=
export PREFIX DESTDIR
# The interpreter that a release carries: Debian's own gets Debian's security updates.
DIST_PYTHON ?= $(firstword $(wildcard /usr/bin/python3) $(PYTHON))
export DIST_PYTHON

# Test files at a time. More than processors: most tests wait.
JOBS ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup setup-build demo test test-again test-long fuzz soak bench lint api docs lock install uninstall dist clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install system packages (as root) and the locked virtual environment; does nothing when all is there
	@PYTHON="$(PYTHON)" dev/setup.sh

setup-build:
	@PYTHON="$(PYTHON)" dev/setup.sh build

demo: setup ## Pull an image lazily and whole, side by side; IMAGE=host/name:tag takes that one (COMMAND='…' what it runs)
	@$(BIN)/python -m integration.demo $(if $(IMAGE),--image "$$IMAGE") $(if $(COMMAND),--command "$$COMMAND")

test: setup ## Unit, property, real-mount and containerd tests, short forms; JOBS files side by side
	@$(BIN)/pytest -n $(JOBS) --dist loadfile

test-again: setup ## Run what failed last once more, one after the other, until one of them fails again
	@$(BIN)/pytest -v --last-failed --last-failed-no-failures none --exitfirst

test-long: setup ## The same with full figures, and the long ones
	@$(BIN)/pytest -m "" --hypothesis-profile=long

fuzz: setup ## Feed the parsers and sockets random damage, FUZZ_SECONDS (60) for each target; one alone: FUZZ=tests/fuzz/test_tocs.py
	@FUZZ_SECONDS="$(FUZZ_SECONDS)" $(BIN)/pytest $(FUZZ)

soak: setup ## Containers come and go while registry and daemon fail, for SOAK_SECONDS (1800); SOAK_SEED (1) rolls other dice
	@$(BIN)/python -m integration.soak --seconds "$(SOAK_SECONDS)" --seed "$(SOAK_SEED)"

bench: setup ## The figures, as ratios; one alone: .venv/bin/python -m integration.bench NAME
	@$(BIN)/python -m integration.bench

lint: setup ## Format check, ruff, mypy --strict
	@$(BIN)/ruff format --check snapshotter tests integration dev docs
	@$(BIN)/ruff check snapshotter tests integration dev docs
	@$(BIN)/mypy snapshotter integration tests dev

api: setup ## Generate Python from the .proto files
	@$(BIN)/python proto/generate.py
	@$(BIN)/python -m grpc_tools.protoc -Iintegration/api=integration/proto --python_out=. --pyi_out=. integration/api/cri.proto

docs: setup ## Generate the configuration and command line references in docs/
	@$(BIN)/python docs/generate.py

lock: ## Resolve the development dependencies anew into dev/requirements.lock
	@$(PYTHON) -m venv build/lock
	@build/lock/bin/pip install --quiet uv
	@build/lock/bin/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-header --no-annotate --quiet --upgrade --output-file dev/requirements.lock

install: setup-build ## Build and install below PREFIX (/usr/local), in DESTDIR if given; over an older version too
	@$(BIN)/python -m dev.distribution stage --python "$(DIST_PYTHON)"
	@sh build/dist/estargz-snapshotter-*/install.sh

uninstall: ## Remove it again; what the daemon keeps and the configuration stay
	@sh deploy/install/uninstall.sh

dist: setup-build ## Make dist/….tar.gz: a release that needs no compiler and no network on the node
	@$(BIN)/python -m dev.distribution archive --python "$(DIST_PYTHON)"

clean: ## Remove what was built, the cached sample images and the virtual environment
	@rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find snapshotter tests integration -name __pycache__ -type d -prune -exec rm -rf {} +
