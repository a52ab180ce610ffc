# One command runs all checks: make check. Elsewhere than in .venv: make check BIN=path/to/bin
BIN ?= .venv/bin
TOOLS := $(abspath $(BIN))

.PHONY: check format lint spelling types test e2e site wheel

check: lint spelling types test e2e

format:  ## rewrite files in the project's format and mend what ruff can
	$(TOOLS)/ruff check --fix .
	$(TOOLS)/ruff format .

lint:
	$(TOOLS)/ruff check .
	$(TOOLS)/ruff format --check .
	$(TOOLS)/lint-imports --no-logo
	$(TOOLS)/python docs/plain_words.py

spelling:
	$(TOOLS)/codespell

# The root is the package, so mypy needs a folder that holds a link of the package's name.
types:
	mkdir -p build/types && ln -sfn ../.. build/types/maskgym
	cd build/types && $(TOOLS)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p maskgym

test:  ## what a change breaks first, in minutes
	$(TOOLS)/pytest

e2e:  ## the rest: site, browser, Ray, several workers, wheel, tutorials
	$(TOOLS)/pytest -m e2e -n4

site:  ## the documentation, in build/site; `make e2e` builds it too
	NO_MKDOCS_2_WARNING=1 $(TOOLS)/mkdocs build --strict

wheel:  ## the wheel alone in a fresh environment of each Python here: downloads gigabytes
	.ci/wheel
