# What a person needs: `make study` and `make test`. Both make .venv where there is none.

PYTHON ?= python3
STUDY ?= quick
OUT ?= runs/$(basename $(notdir $(STUDY)))
DATA ?=
DEVICE ?=
JOBS ?=
SET ?=
# Processes of the test suite: a core each.
TEST_JOBS ?= auto

VENV := .venv
BIN := $(VENV)/bin

RUN_OPTIONS := $(if $(DATA),--data '$(DATA)') $(if $(DEVICE),--device '$(DEVICE)') $(if $(JOBS),--jobs $(JOBS)) $(SET)

.DEFAULT_GOAL := help
.PHONY: help study test plots docs clean

help:  ## Show this
	@echo "make study [STUDY=quick] [DATA=] [DEVICE=] [OUT=runs/STUDY] [JOBS=] [SET='key=value ...']"
	@echo "           run a study (a packaged one or a YAML file); prints the outcomes and the report's path"
	@echo "make test  lint, types and all tests"
	@echo "make plots draw the figures of the committed results again, without training"
	@echo "make docs  the documentation as a site, in build/docs"
	@echo "make clean remove .venv and the tools' caches; runs/ and datasets/ stay"
	@echo "PYTHON=... chooses the Python (3.11 or newer) that .venv is made with"

study: $(VENV)/.installed  ## Run a study
	$(BIN)/gradstudy run '$(STUDY)' --out '$(OUT)' $(RUN_OPTIONS)

test: $(VENV)/.installed-test  ## Lint, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n $(TEST_JOBS) --dist loadscope

plots: $(VENV)/.installed  ## Figures of the committed results
	scripts/reproduce_plots.sh

docs: $(VENV)/.installed-docs  ## The documentation
	$(BIN)/mkdocs build

clean:  ## Remove what this file made, but no result
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is `$(PYTHON) --version 2>&1`; yolo_gradstudy needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 2; }

# pip runs again when pyproject.toml changes, and only then.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	@$(BIN)/python -c 'import cv2' || \
		{ echo "OpenCV can't load. On Debian or Ubuntu: apt-get install libgl1 libglib2.0-0" >&2; exit 2; }
	@touch $@

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[docs]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[test]'
	@touch $@
