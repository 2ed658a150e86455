# One environment for everything: `make quickstart` runs the main job end to end, `make test` tests, `make check` lints.
PYTHON ?= python3
VENV ?= .venv
QUICKSTART ?=
PYTEST ?=
# Test processes; each runs torch on one thread, since small tensors gain nothing from more. One that is done takes over
# what the other has not begun, in the order of the files, so that what a file makes is made once.
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
SOURCES := Cargo.toml Cargo.lock pyproject.toml README.md \
	$(shell find rust/memgraft-core/src rust/memgraft-py/src python/memgraft rust/*/Cargo.toml -name '*.rs' -o -name '*.py' -o -name '*.pyi' -o -name '*.toml' -o -name 'py.typed')

# One line after pip's or cargo's own, for a machine that cannot reach what they need.
FETCHED = || { echo "memgraft: the line above says what could not be fetched or built; connect to the package registries (or set PIP_INDEX_URL to a mirror) and run the same command again: what is done is kept" >&2; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-rust test-python test-slow test-cluster test-oldest test-gpu bench-gpu check format bench wheel tools clean

help:
	@echo "make quickstart   set up $(VENV), then mine, harvest, graft and train on real text with a real donor"
	@echo "make test         set up $(VENV), then run the Rust and the Python tests"
	@echo "make test-slow    the Python tests that take longer"
	@echo "make test-oldest  the tests of grafts with the oldest transformers that pyproject.toml allows"
	@echo "make test-gpu     the tests that need a CUDA device; skipped, and said so, where there is none"
	@echo "make bench-gpu    training steps, decoding, copies and harvest on a CUDA device, as ratios"
	@echo "make check        formatting, lints, types, stubs, import directions"
	@echo "make bench        lookup and gather beside their peers, one table of ratios"
	@echo "make wheel        build the wheel into dist/"

quickstart: $(VENV)/.installed-all
	$(BIN)/memgraft quickstart $(QUICKSTART)

test: test-rust test-python

test-rust: tools
	cargo test --workspace --release --quiet

test-python: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m slow $(PYTEST)

# In one process, with nothing beside it: a cluster counts on its workers being up in time.
test-cluster: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m cluster $(PYTEST)

# In one process: the card is one.
test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu tests $(PYTEST)

bench-gpu: $(VENV)/.installed-dev
	$(BIN)/python benches/gpu.py $(BENCH)

# The oldest transformers that pyproject.toml allows, beside the environment: it needs huggingface_hub 1.
OLDEST := $(VENV)/oldest
test-oldest: $(VENV)/.installed-dev
	rm -rf $(OLDEST) && $(PIP) install --no-deps --target $(OLDEST) transformers==5.16.0 'huggingface_hub<2' httpx httpcore h11 anyio sniffio $(FETCHED)
	PYTHONPATH=$(OLDEST) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/integrations tests/test_mistakes.py tests/test_readme.py $(PYTEST)

check: $(VENV)/.installed-dev
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest memgraft._core
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	cargo fmt --all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-bench
	$(BIN)/python benches/run.py $(BENCH)

wheel: dist/.wheel

tools:
	@command -v cargo >/dev/null || { echo "memgraft needs Rust to build: expected 'cargo' on PATH, found none; install it from https://rustup.rs" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "memgraft needs Python 3.10 or newer, found $$($(PYTHON) --version 2>&1); name one with 'make PYTHON=python3.12 ...'" >&2; exit 2; }

$(BIN)/maturin: | tools
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments; install its venv package (Debian: python3-venv) or name another with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip 'maturin>=1.9,<2' $(FETCHED)

dist/.wheel: $(SOURCES) | $(BIN)/maturin
	rm -rf dist && mkdir -p dist
	$(BIN)/maturin build --release --locked --quiet --out dist $(FETCHED)
	touch $@

# Dependencies first, then the wheel by force: its version stays while its content changes.
$(VENV)/.installed-%: dist/.wheel
	$(PIP) install "$$(echo dist/*.whl)[$*]" $(FETCHED)
	$(PIP) install --force-reinstall --no-deps dist/*.whl
	touch $@

clean:
	rm -rf dist $(VENV) target
