# make demo: materialise the default catalog.  make test: run the tests.  make ui: the Dagster UI.
# make check: the form of the code, its types and which way its imports run.
# make test-services: an installation of several machines, on this one: PostgreSQL, S3, a Ray cluster. It takes Debian's
# postgresql, and minutes.
# make bench: measure speed (about 50 minutes on two cores), and draw what docs/speed.md shows. It wants the machine to itself.
# make audit: whether a pinned package has a known vulnerability, where the list of them can be reached (tools/audit.py).
# make lock: pin the packages that pyproject.toml asks for anew, with the hashes of their files (tools/lock.py).
# All of them prepare .venv first, where it is missing or older than the pinned packages.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
SERVICES_READY := $(VENV)/.services-ready
LOCKS := requirements.lock requirements-torch.lock requirements-torch-cpu.lock
PIP_INSTALL := $(VENV)/bin/pip install --disable-pip-version-check --no-deps --no-build-isolation
export DAGSTER_HOME := $(CURDIR)/dagster_home
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test test-wheel test-services check ui bench audit lock

setup: $(READY)

# Torch comes first, and with it setuptools, which builds what comes without a wheel.
$(READY): pyproject.toml $(LOCKS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@echo 'PyTorch: a CPU build if pip is set up to find one (its absence is no error), else the build of the package index'
	$(PIP_INSTALL) --require-hashes --requirement requirements-torch-cpu.lock || $(PIP_INSTALL) --require-hashes --requirement requirements-torch.lock
	$(PIP_INSTALL) --require-hashes --requirement requirements.lock
	$(PIP_INSTALL) --editable .
	touch $(READY)

demo: $(READY)
	$(VENV)/bin/jsae demo

# side by side, whoever is done takes tests from another: what most wait for is not the processor, and torch has nothing
# to share out in them
test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# the type checker's first run takes a minute or two, the next ones seconds: it keeps what it knows in .mypy_cache
check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/mypy

# the wheel in an empty environment, outside the checkout
test-wheel: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m wheel tests/test_wheel.py

test-services: $(SERVICES_READY)
	$(VENV)/bin/python -m pytest -m services tests/jsae_assets/services

$(SERVICES_READY): $(READY) requirements-services.lock
	$(PIP_INSTALL) --require-hashes --requirement requirements-services.lock
	touch $(SERVICES_READY)

ui: $(READY)
	$(VENV)/bin/jsae ui

bench: $(READY)
	$(VENV)/bin/python -m benchmarks
	$(VENV)/bin/python -m benchmarks report

audit: $(READY)
	$(VENV)/bin/python tools/audit.py

lock: $(READY)
	$(VENV)/bin/python tools/lock.py
