# The usual targets. They run in .venv, which run.py sets up with the versions of constraints.txt.
PYTHON ?= python3
RUN := .venv/bin/python -m

.DEFAULT_GOAL := help
.PHONY: help install lint format types test slow docs compare digits clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 10

install: ## set up .venv, or bring it up to date
	$(PYTHON) -c "import run; run.set_up()"

lint: install ## check style and format
	$(RUN) ruff check
	$(RUN) ruff format --check

format: install ## repair style and format
	$(RUN) ruff check --fix
	$(RUN) ruff format

types: install ## check types
	$(RUN) mypy

test: ## lint, types and tests
	$(PYTHON) run.py test

slow: install ## the tests that take minutes
	$(RUN) pytest -m slow

docs: install ## build the site into site/
	$(RUN) mkdocs build --strict

compare: ## the main job: ANPrompt and baselines on digits and icons
	$(PYTHON) run.py compare

digits: ## one complete example, on handwritten digits
	$(PYTHON) run.py digits

clean: ## remove builds and caches, but neither .venv nor outputs/
	rm -rf build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
