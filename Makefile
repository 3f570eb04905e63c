# Every target brings up what it needs: `make demo` and `make test` work on a fresh Debian 12 machine.

PYTHON ?= python3
BIN := .venv/bin
IMAGE ?=
COMMAND ?=
# The recipe reads them from the environment: quotes in them must not end the recipe's own.
export IMAGE COMMAND

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long bench lint api lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install system packages (as root) and the locked virtual environment; does nothing when all is there
	@PYTHON="$(PYTHON)" dev/setup.sh

demo: setup ## Pull an image lazily and whole, side by side; IMAGE=host/name:tag takes that one (COMMAND='…' what it runs)
	@$(BIN)/python -m integration.demo $(if $(IMAGE),--image "$$IMAGE") $(if $(COMMAND),--command "$$COMMAND")

test: setup ## Unit, property, real-mount and containerd tests, short forms
	@$(BIN)/pytest

test-long: setup ## The same with full figures, and the long ones
	@$(BIN)/pytest -m "" --hypothesis-profile=long

bench: setup ## The figures, as ratios; one alone: .venv/bin/python -m integration.bench NAME
	@$(BIN)/python -m integration.bench

lint: setup ## Format check, ruff, mypy --strict
	@$(BIN)/ruff format --check snapshotter tests integration
	@$(BIN)/ruff check snapshotter tests integration
	@$(BIN)/mypy snapshotter integration tests

api: setup ## Generate Python from the .proto files
	@$(BIN)/python proto/generate.py
	@$(BIN)/python -m grpc_tools.protoc -Iintegration/api=integration/proto --python_out=. --pyi_out=. integration/api/cri.proto

lock: ## Resolve the development dependencies anew into dev/requirements.lock
	@$(PYTHON) -m venv build/lock
	@build/lock/bin/pip install --quiet uv
	@build/lock/bin/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url \
		--no-emit-find-links --no-header --no-annotate --quiet --upgrade --output-file dev/requirements.lock

clean: ## Remove what was built, the cached sample images and the virtual environment
	@rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find snapshotter tests integration -name __pycache__ -type d -prune -exec rm -rf {} +
