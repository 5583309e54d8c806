# Every target sets itself up in .venv; nothing outside the checkout is touched.
# `make run CORES=8` limits a run to so many cores; PYTHON picks the interpreter that .venv is made from (3.11 or newer).

PYTHON ?= python3
CORES ?= all
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PLUGIN := plugins/snakemake-executor-plugin-submitit
SOURCES := kt tests benchmarks plugins

.PHONY: run run-more test lint format status clean lock help

help: ## say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

run: $(READY) ## the study in config.yaml, from images to results/report.html
	$(BIN)/snakemake --cores $(CORES)

run-more: $(READY) ## the study in presets/digits-more.yaml: specialists, several teachers, one student
	$(BIN)/snakemake --cores $(CORES) --configfile presets/digits-more.yaml

test: $(READY) ## all tests, with coverage; those on a cluster need root and Debian's slurmctld slurmd slurm-client munge
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PLUGIN)/tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov=kt --cov-report=term --cov-fail-under=90

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
$(READY): envs/requirements.lock pyproject.toml $(PLUGIN)/pyproject.toml
	@echo "setting up $(VENV): about 6 GB of packages, a few minutes the first time"
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kt needs Python 3.11 or newer; run make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --progress-bar on --disable-pip-version-check --require-hashes -r envs/requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . -e $(PLUGIN)
	touch $@

lock: ## renew the pins (needs uv on the PATH)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --custom-compile-command "make lock" --quiet --output-file envs/requirements.lock
