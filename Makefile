# Every target first installs .venv; nothing outside the checkout is changed.
# `make run CORES=8` limits a run to 8 cores. PYTHON is the interpreter that .venv is made from, 3.11 to 3.14
# (`make clean` first if .venv is from another one).

PYTHON ?= python3
CORES ?= all
COVERAGE :=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# from an existing environment; `make lock UV=uv` uses another uv
UV ?= $(BIN)/uv
PLUGIN := plugins/snakemake-executor-plugin-submitit
SOURCES := envs kt tests benchmarks plugins

.PHONY: run run-more test test-kt coverage test-executor test-beside quick lint format status clean lock help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

run: $(READY) ## run the study in config.yaml, from images to results/report.html
	$(BIN)/snakemake --cores $(CORES)

run-more: $(READY) ## run presets/digits-more.yaml: several specialists teach one student
	$(BIN)/snakemake --cores $(CORES) --configfile presets/digits-more.yaml

test: $(READY) ## all tests; the SLURM tests need root and Debian's slurmctld slurmd slurm-client munge
	@echo "ten to twenty minutes; the tests of the executor, which mostly wait, run beside the others"
	$(MAKE) --jobs=2 --keep-going test-kt test-beside

test-kt: $(READY) ## the tests of kt alone
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(COVERAGE)

coverage: COVERAGE := --cov=kt --cov-report=term --cov-fail-under=90
coverage: test-kt ## the tests of kt with their coverage, which take a third longer

test-executor: $(READY) ## the tests of the executor alone
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PLUGIN)/tests

# shown when they end, so that they do not break into the progress of the others
test-beside: $(READY)
	@log=$$(mktemp) && { $(MAKE) test-executor >"$$log" 2>&1; ended=$$?; cat "$$log"; rm "$$log"; exit $$ended; }

quick: $(READY) ## tests that start no whole study, SLURM or browser; `make quick VENV=.venv-3.12 PYTHON=python3.12`
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(TESTS)

lint: $(READY) ## check format, style, types and workflow
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	cd $(PLUGIN) && $(abspath $(BIN))/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

format: $(READY) ## format the code
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/snakefmt Snakefile workflow

status: $(READY) ## jobs and trainings that are done, failed and left
	$(BIN)/kt status

clean: ## delete the environment and caches; results are kept
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*

# The marker is made last, so that an incomplete environment is never used.
$(READY): envs/install.py envs/requirements.lock pyproject.toml $(PLUGIN)/pyproject.toml
	@echo "setting up $(VENV): about 6 GB of packages, a few minutes the first time"
	$(PYTHON) envs/install.py $(VENV)
	touch $@

lock: ## update the pins after a change of dependencies; other pins stay, `make lock UPGRADE=timm` updates one
	$(UV) pip compile pyproject.toml $(PLUGIN)/pyproject.toml --extra dev --extra control --universal --python-version 3.11 \
		$(addprefix --upgrade-package ,$(UPGRADE)) --generate-hashes --no-strip-extras --no-emit-index-url \
		--custom-compile-command "make lock" --quiet --output-file envs/requirements.lock
