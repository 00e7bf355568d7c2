# make demo: set everything up and run the main job.   make test: set everything up and pass the tests.
# Both need only Python 3.11 or newer, git and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# What the tests compare with, kept aside: transformers imports torch wherever it finds it, which
# would slow down every process and is not what most users have.
TORCH := torch==2.13.0 peft==0.21.2 accelerate==1.15.0
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test lab clean

demo: .venv/run.stamp
	$(BIN)/tunix-rt demo

test: .venv/dev.stamp
	PATH="$(CURDIR)/$(BIN):$$PATH" sh .ci/check

lab: .venv/dev.stamp
	$(BIN)/jupyter lab --notebook-dir=nbs

clean:
	rm -rf .venv build dist *.egg-info outputs/runs

.venv/run.stamp: settings.ini setup.py
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

# Most of what this installs is never imported by a test, and what is compiles then.
.venv/dev.stamp: settings.ini setup.py
	$(PYTHON) -m venv .venv
	$(PIP) --no-compile --no-deps --target .venv/torch/site-packages $(TORCH) & torch=$$!; \
	$(PIP) --no-compile -e ".[dev,serve,postgres,kaggle]" && wait $$torch
	touch .venv/run.stamp $@
