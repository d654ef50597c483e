# make setup | demo | test | lint | bench | shards DATA=pile [INPUT= OUT= TOKENIZER= SEQ_LEN=] | lock | clean
PYTHON ?= python3
BIN := .venv/bin
DATA ?= pile

.PHONY: setup demo test lint format bench shards lock clean

# Everything goes into a plain .venv; running it again does nothing until the lock or the project's file changes.
setup: .venv/.ready

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' \
		|| { echo "mixkit needs Python 3.10 to 3.12; name one with make PYTHON=python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: setup
	$(BIN)/mixkit demo

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python benchmarks/stream.py

shards: setup
	$(BIN)/mixkit shards pipelines/$(DATA).yaml $(if $(INPUT),"input=$(INPUT)") $(if $(OUT),"output=$(OUT)") \
		$(if $(TOKENIZER),"tokenizer=$(TOKENIZER)") $(if $(SEQ_LEN),"seq_len=$(SEQ_LEN)")

lock: setup
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra ray --universal --python-version 3.10 --no-header \
		--no-emit-index-url --generate-hashes --output-file requirements.lock

clean:
	rm -rf .venv data/demo data/demo-shards runs/demo
