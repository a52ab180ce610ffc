# One command runs all checks: make check. Elsewhere than in .venv: make check BIN=path/to/bin
BIN ?= .venv/bin
TOOLS := $(abspath $(BIN))

.PHONY: check format lint spelling types test site

check: lint spelling types test

format:  ## rewrite files in the project's format and mend what ruff can
	$(TOOLS)/ruff check --fix .
	$(TOOLS)/ruff format .

lint:
	$(TOOLS)/ruff check .
	$(TOOLS)/ruff format --check .
	$(TOOLS)/lint-imports --no-logo

spelling:
	$(TOOLS)/codespell

# The root is the package, so mypy needs a folder that holds a link of the package's name.
types:
	mkdir -p build/types && ln -sfn ../.. build/types/maskgym
	cd build/types && $(TOOLS)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p maskgym

test:
	$(TOOLS)/pytest

site:  ## the documentation, in build/site; the tests build it too
	NO_MKDOCS_2_WARNING=1 $(TOOLS)/mkdocs build --strict
