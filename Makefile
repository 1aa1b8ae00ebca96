# Two commands do everything on a machine with Python, make and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint nightly mutations clean

demo: $(STAMP)
	$(BIN)/hf-eft demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

nightly: $(STAMP)
	$(BIN)/python -m pytest -n 2 -q -m nightly

mutations: $(STAMP)
	$(BIN)/python tests/mutations.py

# Where there is no GPU, the CPU build of torch is taken if the package index that pip is set up with has one
# (PIP_EXTRA_INDEX_URL adds an index), since the default build downloads gigabytes of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	torch=$$(sed -n 's/^torch==//p' constraints.txt); \
	{ command -v nvidia-smi >/dev/null || $(BIN)/pip install -q "torch==$$torch+cpu" 2>/dev/null; } \
	&& $(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install "torch==$$torch"
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
