# make serve   install into $(VENV) and serve the bundled demo models; ARGS="..." for other models and options
# make test    the test suite, a few minutes; make test-all runs what is slow as well
# make check   format, lint, types
# make clients one environment per generation of the openai package and one with anthropic's, for the tests that use them
# make lm-eval an environment with lm-evaluation-harness (1.8 GB), for the test that compares scores

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

CLIENTS = .venv-clients
OPENAI_VERSIONS = 0.28.1 1.0.0 1.109.1 2.54.0 3.54.0
ANTHROPIC_VERSION = 2.13.0
LM_EVAL_VERSION = 0.4.13
export LANGPORT_CLIENTS ?= $(if $(wildcard $(CLIENTS)),$(abspath $(CLIENTS)))

.PHONY: serve test test-all check format clients lm-eval clean

serve: $(VENV)/.installed
	$(VENV)/bin/langport serve $(ARGS)

test: $(VENV)/.installed-test
	$(VENV)/bin/python -m pytest -m "not slow" $(ARGS)

test-all: $(VENV)/.installed-test clients lm-eval
	LANGPORT_CLIENTS=$(abspath $(CLIENTS)) $(VENV)/bin/python -m pytest $(ARGS)

check: $(VENV)/.installed-test
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed-test
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clients: $(OPENAI_VERSIONS:%=$(CLIENTS)/openai-%/.installed) $(CLIENTS)/anthropic-$(ANTHROPIC_VERSION)/.installed

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

$(CLIENTS)/openai-%/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check openai==$* $(EXTRA)
	touch $@

$(CLIENTS)/anthropic-%/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check anthropic==$*
	touch $@

# Its own model runs the weights that the server has, with the same torch and transformers. torch comes first, and so
# spelled, as in $(VENV).
$(CLIENTS)/lm-eval/.installed: PIP = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check
$(CLIENTS)/lm-eval/.installed: constraints.txt
	$(PYTHON) -m venv $(@D)
	$(PIP) --constraint constraints.txt torch==2.13.0
	$(PIP) --constraint constraints.txt "lm-eval[api,hf]==$(LM_EVAL_VERSION)"
	touch $@
