# Every target sets itself up in .venv; nothing outside the checkout is touched.
# `make run CORES=8` limits a run to so many cores; PYTHON picks the interpreter that .venv is made from,
# 3.11 to 3.14 (`make clean` first where .venv is of another).

PYTHON ?= python3
CORES ?= all
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# from an environment that is there already; `make lock UV=uv` takes another
UV ?= $(BIN)/uv
PLUGIN := plugins/snakemake-executor-plugin-submitit
SOURCES := envs kt tests benchmarks plugins

.PHONY: run run-more test quick lint format status clean lock help

help: ## say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

run: $(READY) ## the study in config.yaml, from images to results/report.html
	$(BIN)/snakemake --cores $(CORES)

run-more: $(READY) ## the study in presets/digits-more.yaml: specialists, several teachers, one student
	$(BIN)/snakemake --cores $(CORES) --configfile presets/digits-more.yaml

test: $(READY) ## all tests, with coverage; those on a cluster need root and Debian's slurmctld slurmd slurm-client munge
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PLUGIN)/tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov=kt --cov-report=term --cov-fail-under=90

quick: $(READY) ## the tests that start no whole study, SLURM or browser; `make quick VENV=.venv-3.12 PYTHON=python3.12`
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(TESTS)

lint: $(READY) ## format, style, types, workflow
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	cd $(PLUGIN) && $(abspath $(BIN))/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: $(READY) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/snakefmt Snakefile workflow

status: $(READY) ## what is done, failed and left
	$(BIN)/kt status

clean: ## delete the environment and caches; results stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*

# Half an environment is never taken for a whole one: the marker is made last.
$(READY): envs/install.py envs/requirements.lock pyproject.toml $(PLUGIN)/pyproject.toml
	@echo "setting up $(VENV): about 6 GB of packages, a few minutes the first time"
	$(PYTHON) envs/install.py $(VENV)
	touch $@

lock: ## renew the pins after a change of dependencies; what is pinned stays, `make lock UPGRADE=timm` moves one
	$(UV) pip compile pyproject.toml $(PLUGIN)/pyproject.toml --extra dev --universal --python-version 3.11 \
		$(addprefix --upgrade-package ,$(UPGRADE)) --generate-hashes --no-strip-extras --no-emit-index-url \
		--custom-compile-command "make lock" --quiet --output-file envs/requirements.lock
