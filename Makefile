# Every target does all its own set-up on a fresh machine: `make transfer` (the main job), `make test`, `make predict`.

PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= runs/transfer
SEEDS ?= 1
BUDGET ?= 1
FROM ?= spectrafm-small
SPECTRUM ?= spectrafm_hf/examples/h-band-red-giant.fits
CHROMIUM := /usr/bin/chromium
PY := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --disable-pip-version-check

# The versions everything was tested with; pyproject.toml gives the ranges.
PINS := torch==2.13.0 transformers==5.23.0 datasets==5.2.0 huggingface-hub==2.4.0 accelerate==1.15.0 \
	safetensors==0.8.0 evaluate==0.4.6 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 pyarrow==26.0.1

# Bytecode is kept, whatever the environment says: the tests begin dozens of Pythons, and each would compile all anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup transfer predict test test-hub test-demo test-network test-mixins lint clean

# What all the others need, in one go.
setup: $(VENV)/.demo $(CHROMIUM)

transfer: $(VENV)/.transfer
	$(PY) training/transfer.py --from $(FROM) --output $(OUTPUT) --seeds $(SEEDS) --budget $(BUDGET) $(if $(PUSH_TO),--push-to $(PUSH_TO))

# Labels of one star, from nothing; more with .venv/bin/spectrafm predict.
predict: $(VENV)/.transfer
	$(VENV)/bin/spectrafm predict $(SPECTRUM)

# Two processes; one that is done takes over tests of the other.
test: $(VENV)/.dev
	$(PY) -m pytest -n 2 --dist worksteal -m "not network and not hub and not demo"

# The whole way over the Hub, and what may go wrong on it, with the real clients and a Hub of our own on this machine.
test-hub: $(VENV)/.dev
	HF_HUB_OFFLINE=0 $(PY) -m pytest -n 2 --dist worksteal -m hub tests/hub

# The page of the Space (hub_cards/space) in a browser, offline; its pictures end in runs/demo.
test-demo: $(VENV)/.demo $(CHROMIUM)
	$(PY) -m pytest -m demo tests/demo

# What needs the package index, or the stars it brought: run by CI after a transfer.
test-network: $(VENV)/.dev
	$(PY) -m pytest -m network $$(grep -l "mark\.network" tests/test_*.py)

# transformers' own tests of models, configurations and feature extractors, on ours; skips come with their reasons.
# They are in the source distribution of the installed version: pip fetches it once.
test-mixins: $(VENV)/.dev
	$(PY) -m pytest -m mixins -rs tests/transformers_mixins

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/bin/python:
	@echo "making $(VENV) (once, about two minutes with the packages)"
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, got " + sys.version.split()[0] + "; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# Where the index has several builds of torch, TORCH_INDEX chooses: make transfer TORCH_INDEX="--index-url URL-of-CPU-builds".
# torch first, and alone: later requirements then find it in place and fetch no other build.
$(VENV)/.torch: $(VENV)/bin/python
	$(PIP) install -q $(TORCH_INDEX) $(firstword $(PINS))
	@touch $@

$(VENV)/.transfer: pyproject.toml $(VENV)/.torch
	$(PIP) install -q $(PINS) -e ".[transfer,predict]"
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.torch
	$(PIP) install -q $(PINS) trackio==0.43.0 -e ".[dev]"
	@touch $@ $(VENV)/.transfer

$(VENV)/.demo: pyproject.toml $(VENV)/.dev
	$(PIP) install -q $(PINS) gradio==6.31.0 plotly==6.9.0 playwright==1.65.2 -e ".[demo]"
	@touch $@

# The distribution's own browser; playwright would fetch another one.
$(CHROMIUM):
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "installing $(CHROMIUM) (once, about a minute)"; \
		apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core > /dev/null; \
	else echo "make test-demo needs the browser $(CHROMIUM); install it, as root: apt-get install chromium"; exit 1; fi

clean:
	rm -rf $(VENV) runs build dist *.egg-info
