PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
UV := $(BIN)/uv

.PHONY: demo test test-quick test-acceptance test-again matrix bench sizing proof workers soak screenshots docs release-check lint types constraints clean

demo: .venv  ## run the main job: simulator, Airflow, both example DAGs
	@$(BIN)/python -m halo_provider.demo $(ARGS)

test: test-quick test-acceptance  ## every test, the acceptance tests included

test-quick: .venv
	$(BIN)/python -m pytest -m "not acceptance" --ignore tests/matrix --numprocesses 2 --dist loadfile $(ARGS)

test-acceptance: .venv
	$(BIN)/python -m pytest -m acceptance --numprocesses 2 --dist loadfile $(ARGS)

test-again: .venv  ## what failed in the last `make test`, once more and by itself
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures=none --ignore tests/matrix $(ARGS)

matrix: .venv  ## every Airflow from 2.11 on, and Python 3.12 and 3.13, in environments of their own; ARGS=2.11 for one
	$(BIN)/python -m tests.matrix $(ARGS)

bench: .venv  ## the benchmarks: ratios within one run, against a bare loop and others
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --group bench
	$(BIN)/python -m tests.benchmarks $(ARGS)

sizing: .venv  ## a ledger of ten million rows on PostgreSQL, and the tables of docs/guides/sizing.md
	$(BIN)/python -m tests.benchmarks.sizing --measure $(ARGS)

proof: .venv  ## kill, cut off and overlap deliveries in every way, and write the table of what came of the rows
	$(BIN)/python -m tests.acceptance.proof $(ARGS)

workers: .venv  ## one Celery worker, two, and two of which one is killed, and the table of docs/guides/many-workers.md
	$(BIN)/python -m tests.acceptance.celery_workers $(ARGS)

soak: .venv  ## kill, stop and cut off three workers again and again, for 10 minutes, before an independent judge
	$(BIN)/python -m tests.soak $(ARGS)

screenshots: .venv  ## renew the README's pictures of the pages; ARGS=FOLDER takes every page, light and dark, wide and narrow
	$(BIN)/python -m tests.acceptance.sample_pages $(ARGS)

docs: .venv  ## the site, strict about dead links, into site/; ARGS=serve shows it while you write
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(or $(ARGS),build --strict --quiet)

.venv: pyproject.toml constraints.txt
	test -x $(UV) || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet --constraint constraints.txt uv; }
	$(UV) pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable . --group dev
	@touch .venv

release-check: .venv  ## build, check and install what would be released; writes dist/; ARGS=--dry-run without a public address
	.ci/release-check $(ARGS)

lint: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: .venv
	$(BIN)/mypy

constraints:  ## renew constraints.txt with the newest versions pyproject.toml allows
	test -x $(UV) || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet uv; }
	$(UV) pip compile --quiet --universal --upgrade --no-header --no-annotate --no-emit-index-url \
		--no-emit-package airflow-provider-halo --group dev --group bench --group docs --group release pyproject.toml --output-file constraints.txt
	echo "uv==$$($(UV) --version | cut -d' ' -f2)" >> constraints.txt

clean:
	rm -rf .venv .matrix .demo dist build site
