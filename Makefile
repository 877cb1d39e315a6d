# make demo           make everything in the default catalog and show the results
# make ui             start the Dagster UI
# make test           run the tests
# make check          check the formatting and style of the code, its types and the direction of its imports
# make test-wheel     test the built wheel in an empty environment, outside the checkout
# make test-services  test an installation for several machines on this one: PostgreSQL, S3 and a Ray cluster. Needs
#                     Debian's postgresql and several minutes
# make bench          measure speed (about 50 minutes on two cores) and update the table and figures of docs/speed.md.
#                     Nothing else should run on the machine meanwhile
# make audit          look up whether a pinned package has a known vulnerability (tools/audit.py)
# make lock           pin the packages of pyproject.toml again, with the hashes of their files (tools/lock.py)
#
# Each of them first makes .venv (make setup) if it is missing or older than the pinned packages.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
SERVICES_READY := $(VENV)/.services-ready
LOCKS := requirements.lock requirements-torch.lock requirements-torch-cpu.lock
PIP_INSTALL := $(VENV)/bin/pip install --disable-pip-version-check --no-deps --no-build-isolation
export DAGSTER_HOME ?= $(CURDIR)/dagster_home
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test test-wheel test-services check ui bench audit lock

setup: $(READY)

# Torch's lock file comes first, because it has setuptools, which builds the packages without a wheel.
$(READY): pyproject.toml $(LOCKS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with make PYTHON=...")'
	@echo 'Installing the pinned packages into $(VENV), which takes 2 to 4 minutes'
	$(PYTHON) -m venv $(VENV)
	@echo 'PyTorch: the CPU build if pip can find it; otherwise pip reports an error, which is expected, and the build of the package index is installed'
	$(PIP_INSTALL) --require-hashes --requirement requirements-torch-cpu.lock || $(PIP_INSTALL) --require-hashes --requirement requirements-torch.lock
	$(PIP_INSTALL) --require-hashes --requirement requirements.lock
	$(PIP_INSTALL) --editable .
	touch $(READY)

demo: $(READY)
	$(VENV)/bin/jsae demo

# In up to four processes, since most tests do not wait for the processor; a process that is done takes over tests of
# another. One thread for torch in each, since the tensors of the tests are too small for more.
test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# The first run of the type checker takes a minute or two, later ones seconds, because it keeps results in .mypy_cache.
check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/mypy

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
