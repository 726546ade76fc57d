# demo: the main job on procedural data, in minutes on two CPU cores.  test: the suite.  check: format, lint, types.
# torture: 200 kills, and what else is too long for the suite.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
export TUTELAGE_DATA ?= $(abspath ../shared/data)
BIN := .venv/bin

.PHONY: demo test torture check bench
demo: .venv/ready
	$(BIN)/tutelage demo --out demo-run

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

torture: .venv/ready
	$(BIN)/python -m pytest -m torture

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks

.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Tutelage needs Python 3.11 or 3.12; none was found."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
