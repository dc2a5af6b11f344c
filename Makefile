# make serve   install into $(VENV) and serve the bundled demo models; ARGS="..." for other models and options
# make test    the test suite, some minutes, in TEST_JOBS processes (2); make test-all runs what is slow as well
# make test-levels  what computes, tested at each level of the CPU kernels that this machine has, and without the kernels
# make check   format, lint, types
# make wheels  the sdist and wheels for Linux on x86-64 and aarch64, into dist; ARGS="aarch64" for one of them
# make clients the environments of the clients that are tested: each generation of the openai package, anthropic's, what is
#              built on them, and those from npm where there is npm; and of llama.cpp's server, which is tested as an upstream
# make compatibility  the tests of the clients, and from what they did README.md's table of clients
# make lm-eval an environment with lm-evaluation-harness (1.8 GB), for the test that compares scores

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TEST_JOBS ?= 2
# A file's tests stay in one process, where they share the servers that they start.
PYTEST = $(VENV)/bin/python -m pytest -n $(TEST_JOBS) --dist loadfile
PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

CLIENTS = .venv-clients
OPENAI_VERSIONS = 0.28.1 1.0.0 1.109.1 2.54.0 3.54.0
ANTHROPIC_VERSION = 2.13.0
TOOL_VERSIONS = langchain-openai==1.7.4 litellm==1.110.2 pydantic-ai-slim[openai]==2.68.0 llm==0.36
INSTRUCTOR_VERSION = 1.17.0
NPM_VERSIONS = openai@7.57.0 ai@7.0.173 @ai-sdk/openai-compatible@3.0.92 zod@4.6.7 node@24.9.0
LM_EVAL_VERSION = 0.4.13
WHEEL_TOOLS = auditwheel==6.8.2 build==1.6.1 setuptools==84.2.1 ziglang==0.17.1
XLLAMACPP_VERSION = 2026.10.11549
export LANGPORT_CLIENTS ?= $(if $(wildcard $(CLIENTS)),$(abspath $(CLIENTS)))

.PHONY: serve test test-all test-levels wheels check format clients without-npm compatibility lm-eval clean

serve: $(VENV)/.installed
	$(VENV)/bin/langport serve $(ARGS)

test: $(VENV)/.installed-test
	$(PYTEST) -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-test clients lm-eval
	LANGPORT_CLIENTS=$(abspath $(CLIENTS)) $(PYTEST) $(ARGS)

test-levels: $(VENV)/.installed-test
	$(VENV)/bin/python -m tests.levels $(ARGS)

wheels: $(VENV)-wheels/.installed
	$(VENV)-wheels/bin/python scripts/wheels.py $(ARGS)

check: $(VENV)/.installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed-test
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clients: $(OPENAI_VERSIONS:%=$(CLIENTS)/openai-%/.installed) $(CLIENTS)/anthropic-$(ANTHROPIC_VERSION)/.installed \
	$(CLIENTS)/tools/.installed $(CLIENTS)/instructor-$(INSTRUCTOR_VERSION)/.installed $(CLIENTS)/llama-cpp/.installed \
	$(if $(shell command -v npm),$(CLIENTS)/npm/.installed,without-npm)

compatibility: $(VENV)/.installed-test clients
	LANGPORT_CLIENTS=$(abspath $(CLIENTS)) LANGPORT_COMPATIBILITY=$(abspath $(CLIENTS))/compatibility.json \
		$(VENV)/bin/python -m pytest --deselect tests/clients/test_table.py tests/clients
	$(VENV)/bin/python -m tests.clients.table $(abspath $(CLIENTS))/compatibility.json

without-npm:
	@echo "There is no npm here: the clients from npm are left out, and their tests will be skipped."

lm-eval: $(CLIENTS)/lm-eval/.installed

clean:
	rm -rf $(CLIENTS) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find langport tests -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The venv's python is a link to an older file, so it may only be required to exist.
$(VENV)/.installed: pyproject.toml constraints.txt setup.py $(wildcard langport/csrc/*) | $(VENV)/bin/python
	$(PIP_INSTALL) torch==2.13.0
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP_INSTALL) --editable ".[test]"
	touch $@

# openai 0.28.1 reads embeddings with numpy, and does not say so in its requirements.
$(CLIENTS)/openai-0.28.1/.installed: EXTRA = numpy
# openai 1.0.0 calls httpx with an argument that httpx 0.28 removed.
$(CLIENTS)/openai-1.0.0/.installed: EXTRA = "httpx<0.28"

$(VENV)-wheels/.installed: Makefile
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(WHEEL_TOOLS)
	touch $@

$(CLIENTS)/openai-%/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check openai==$* $(EXTRA)
	touch $@

$(CLIENTS)/anthropic-%/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check anthropic==$*
	touch $@

$(CLIENTS)/tools/.installed: Makefile
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(TOOL_VERSIONS:%="%")
	touch $@

# Alone, because it wants an older jiter than today's openai, which the others want.
$(CLIENTS)/instructor-%/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check instructor==$*
	touch $@

# No client but a server: llama.cpp's, behind the gateway.
$(CLIENTS)/llama-cpp/.installed: Makefile
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check xllamacpp==$(XLLAMACPP_VERSION)
	touch $@

# node is one of the packages: today's clients want a newer one than many machines have.
$(CLIENTS)/npm/.installed: Makefile
	mkdir -p $(@D)
	npm install --prefix $(@D) --no-audit --no-fund --loglevel error $(NPM_VERSIONS)
	touch $@

# Its own model runs the weights that the server has, with the same torch and transformers. torch comes first, and so
# spelled, as in $(VENV).
$(CLIENTS)/lm-eval/.installed: PIP = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check
$(CLIENTS)/lm-eval/.installed: constraints.txt
	$(PYTHON) -m venv $(@D)
	$(PIP) --constraint constraints.txt torch==2.13.0
	$(PIP) --constraint constraints.txt "lm-eval[api,hf]==$(LM_EVAL_VERSION)"
	touch $@
