# Two commands do everything on a machine with Python, make and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH := $(VENV)/.torch
CLI := $(VENV)/.cli
DEV := $(VENV)/.dev

.PHONY: demo test lint docs nightly mutations clean

demo: $(CLI)
	$(BIN)/hf-eft demo

test: $(DEV)
	$(BIN)/python -m pytest -n 2 -q

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DEV)
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

nightly: $(DEV)
	$(BIN)/python -m pytest -n 2 -q -m nightly

mutations: $(DEV)
	$(BIN)/python tests/mutations.py

# Where there is no GPU, the CPU build of torch is taken if the package index that pip is set up with has one
# (PIP_EXTRA_INDEX_URL adds an index), since the default build downloads gigabytes of CUDA libraries.
$(TORCH): constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	torch=$$(sed -n 's/^torch==//p' constraints.txt); \
	{ command -v nvidia-smi >/dev/null || $(BIN)/pip install -q "torch==$$torch+cpu" 2>/dev/null; } \
	&& $(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install "torch==$$torch"
	touch $@

$(CLI): $(TORCH) pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e ".[cli]"
	touch $@

$(DEV): $(TORCH) pyproject.toml
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@ $(CLI)

clean:
	rm -rf $(VENV) build dist site *.egg-info
