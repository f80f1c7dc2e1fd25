# The two commands of the README, and what developers run. `make help` lists them.
PYTHON ?= python3
# Another PyTorch than the pinned one: make test TORCH=2.7.1
TORCH ?=
# The model of the demo: make demo MODEL=mask2former, or MODEL=eomt
MODEL ?= maskformer
# Options of the benchmark: make bench BENCH="--only training --rounds 3"
BENCH ?=
# Another Python or PyTorch has an environment of its own: .venv-python3.12, .venv-torch2.7.1, .venv-python3.12-torch2.7.1
VERSION = $(or $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'),$(error PYTHON=$(PYTHON) does not run))
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-python$(VERSION))$(if $(TORCH),-torch$(TORCH))
RUN := $(VENV)/bin/python
READY := $(VENV)/installed.stamp
# Most tests use one core, or wait for a process: two files at a time.
TWO_AT_ONCE := OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses 2 --dist loadfile

.PHONY: help demo bench house faults fuzz soak test test_fast check install_dev clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z_]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## Train a model on the built-in dataset, measure it and draw its results (5 to 10 minutes; MODEL=mask2former, MODEL=eomt)
	@$(RUN) -W ignore::FutureWarning -m maskformer.tools.demo --model $(MODEL)

bench: $(READY)  ## Measure time and memory against peers and the plain definitions (BENCH="--only training")
	@$(RUN) -W ignore::FutureWarning -m benchmarks $(BENCH)

house: $(READY)  ## Print the size and shape of the code beside its limits
	@$(RUN) -W ignore -m benchmarks.house

test: $(READY)  ## Run all tests
	@$(TWO_AT_ONCE)

faults: $(READY)  ## Kill, corrupt, fill and starve real trainings; print what was survived and lost
	@$(RUN) -m pytest tests/faults

fuzz: $(READY)  ## Read 20,000 and more damaged files and command lines; print the counts (about half an hour)
	@MASKFORMER_FUZZ_EXAMPLES=2200 $(RUN) -m pytest -s tests/fuzz
soak: $(READY)  ## Train 2,000 steps and evaluate 10,000 images; print the slope of memory and what is left over
	@$(RUN) -W ignore tests/faults/soak.py

test_fast: $(READY)  ## Run the tests that take seconds
	@$(TWO_AT_ONCE) -m "not slow"

check: $(READY)  ## Lint, check the format, check the types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy

install_dev: $(READY)  ## Create .venv with all that the other commands need (another Python: make install_dev PYTHON=...)

clean:  ## Remove every .venv and every cache (not the results of the demo)
	rm -rf .venv .venv-python* .venv-torch* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find maskformer tests install datasets -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation is taken up again by the next call.
$(READY): setup.py pyproject.toml $(wildcard install/*)
	@$(PYTHON) install/python_range.py
	@$(PYTHON) install/create_environment.py $(VENV) $(if $(TORCH),--torch $(TORCH))
	@touch $@
