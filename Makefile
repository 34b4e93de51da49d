# make search | test | check | bench | serve | image   (make help explains)
# Needs Python 3.11 or newer, make, and a package registry; everything else is installed in .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help search serve test chaos check format bench image clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mpsearch needs Python 3.11 or newer; name one with PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

search: $(STAMP)  ## run a real search on the bundled example; results in out/
	$(BIN)/mpsearch search digits-resnet --data digits --options w2a8,w3a8,w4a8,w6a8,w8a8 \
	  --estimator measured_loss --budget weight_memory=0.12x --out out

serve: $(STAMP)  ## run the job service on http://127.0.0.1:8000; its files in mpsearch-data/
	$(BIN)/mpsearch serve

test: $(STAMP)  ## run every test this machine can, with coverage
	@tests/export_environments.sh || echo "tools with clashing pins could not be installed: their tests are skipped"
	$(BIN)/python -m pytest --cov --cov-report=term

chaos: $(STAMP)  ## the service under random kills, in long: about ten minutes
	MPSEARCH_TEST_CHAOS=long $(BIN)/python -m pytest tests/mpsearch_api/chaos

check: $(STAMP)  ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## rewrite files in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## measure what is claimed about speed
	for name in formats engine solvers solvers_quadratic sensitivity service; do \
	  $(BIN)/python benchmarks/$$name.py || exit 1; done

image:  ## build the Docker image mpsearch:latest (needs a Docker engine)
	docker build --tag mpsearch:latest .

clean:  ## remove the environment and everything generated
	rm -rf $(VENV) out build dist .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis
