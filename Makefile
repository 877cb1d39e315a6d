# make demo: materialise the default catalog.  make test: run the tests.  make ui: the Dagster UI.
# make bench: measure speed (about 50 minutes on two cores), and draw what docs/speed.md shows. It wants the machine to itself.
# All of them prepare .venv first, where it is missing or older than the pinned versions.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
export DAGSTER_HOME := $(CURDIR)/dagster_home
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test ui bench

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY)
	$(VENV)/bin/python -m jsae_assets.demo

# by files, side by side: what most tests wait for is not the processor, and torch has nothing to share out in them
test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

ui: $(READY)
	$(VENV)/bin/dagster dev --workspace workspace.yaml

bench: $(READY)
	$(VENV)/bin/python -m benchmarks
	$(VENV)/bin/python -m benchmarks report
