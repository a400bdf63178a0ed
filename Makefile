# The commands of README.md and DEVELOPMENT.md by short names; a test compares them. "make" lists them.
.PHONY: help install demo test slow lint generated bench bounds coverage ci

help:
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

install: ## make .venv with everything that a developer needs
	python3 -m venv .venv && .venv/bin/python -m pip install -q -e '.[lint]'
	.venv/bin/pre-commit install

demo: ## run every stage once, on a sample store
	.venv/bin/l2inv demo

test: ## all tests but the slow ones
	.venv/bin/python -m pytest

slow: ## the slow tests: real cron, real Slurm, the long attacks
	.venv/bin/python -m pytest -m slow -rs

lint: ## lint, format, types
	.venv/bin/pre-commit run --all-files

generated: ## generate the reference, the manual page and docs/schema.sql
	.venv/bin/python -m tests.reference
	.venv/bin/python -m tests.manpage
	.venv/bin/python -m tests.schema

bench: ## measure what people wait for, beside its targets
	.venv/bin/python -m tests.bench

bounds: ## test with the oldest and with the newest dependencies
	.venv/bin/python -m tests.bounds

coverage: ## which lines and branches the tests reach
	.venv/bin/coverage run -m pytest; .venv/bin/coverage combine; .venv/bin/coverage report

ci: ## all that must pass before a change lands; recreates .venv
	.ci/run
