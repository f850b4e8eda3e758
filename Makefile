# make test     install into .venv, then run every test that this machine can run
# make check    formatting, lint and types, and lint of shell scripts and Dockerfiles
# make format   apply the formatting and the fixes that ruff can make
# make test-containers   build both images and run them; needs root, buildah and debootstrap
# make pack     copy what the nodes use of trainer/ into the node pack, which works without the trainer
# make docs     write docs/reference/kohya.md from the program's own tables
# make demo     train the tiny FLUX for a few minutes; images before and after; no GPU, no download

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup test test-containers check format pack docs demo

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-containers: setup
	FLUX_CONTAINERS=1 $(BIN)/python -m pytest -m container $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/shell/test_linters.py
	$(BIN)/python tools/korean.py

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pack: setup
	$(BIN)/python tools/pack_nodes.py

docs: setup
	$(BIN)/python tools/kohya_docs.py

demo: setup
	$(BIN)/python -m trainer demo $(ARGS)
