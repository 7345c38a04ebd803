PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The tests start hundreds of processes: without compiled modules each of them takes twice as long to begin.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install test check demo soak lint types bench clean

install: $(STAMP)

# The stamp makes a second install a matter of milliseconds; it is older than pyproject.toml when that changes.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

# Four at a time also on two cores: they wait for disks and other processes as much as they compute. Who is done takes
# over from the others, which otherwise end minutes apart.
test: $(STAMP)
	$(BIN)/python -m pytest -m "not soak" -n 4 --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

demo: $(STAMP)
	@$(BIN)/python -m examples.demo

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak --timeout 0

bench: $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m benchmarks all --quick
	$(BIN)/python -m benchmarks flushes --quick
	$(BIN)/python -m benchmarks check

clean:
	rm -rf $(VENV) .demo .hypothesis .mypy_cache .ruff_cache .pytest_cache
