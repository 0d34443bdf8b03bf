# make demo              sets up .venv, then draws scenes, trains, evaluates and predicts on them
# make test              sets up .venv, then runs the tests
# make test ROOM=critic  runs the tests of one package: those in tests/critic
# make lint              checks style, imports and format
# make versions          tries the lowest and the newest packages that setup.cfg allows, each in a new environment
# make lite REHEARSAL=DIR  trains the critic that comes with the package from the rehearsal set, evaluates, exports it
# make gpu               fills the GPU rows of docs/benchmarks.md; without a GPU the same way in tiny sizes
#
# These need nothing but Python 3.11 or newer (PYTHON=python3.12 names another one) and may be repeated.
# Tests of the parts for PyTorch, diffusers, Ray, videos and the annotation page are skipped where their packages are
# absent. EXTRAS=test,torch,ray,annotate,browser,motion installs them, too, as CI does: with PyPI's build of PyTorch for
# Linux several gigabytes, with its CPU build less. The test in a browser needs Debian's chromium.
#
# make gpu takes PYTHON as it is where gpu_pack/ of benchmarks/gpu_pack.py lies here, for a machine without a network;
# else it sets up .venv: make gpu EXTRAS=gpu,torch. ONLY="train_full limits" measures only these, BUDGET=300 in 300 s.

PYTHON ?= python3
EXTRAS ?= test
ROOM ?=
ONLY ?=
SEED ?= 0
BUDGET ?= 540
PACK := $(wildcard gpu_pack)
VENV := .venv
COMMA := ,
READY := $(VENV)/.installed-$(subst $(COMMA),-,$(EXTRAS))

.PHONY: demo test lint versions lite gpu
.DELETE_ON_ERROR:

demo: $(READY)
	$(VENV)/bin/rahf demo

# The tests of a file share what they compile, so a file stays in one process; conftest.py puts long files first.
test: $(READY)
	$(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder $(or $(addprefix tests/,$(ROOM)),tests)

lint: $(READY)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/lint-imports --no-cache

versions: $(READY)
	$(VENV)/bin/python .ci/versions.py $(VENV)/bin/uv

# Prepared sets are made anew; a training that was stopped goes on. SEED=1 begins with other random numbers.
lite: $(READY)
	$(if $(REHEARSAL),,$(error name the folder of the rehearsal set: make lite REHEARSAL=DIR))
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[lite]"
	$(VENV)/bin/rahf prepare richhf18k --labels $(REHEARSAL) --images $(REHEARSAL)/pickapic --out data/rehearsal
	$(VENV)/bin/python benchmarks/clean_pictures.py $(REHEARSAL) data/rehearsal data/clean
	$(VENV)/bin/rahf prepare planted --images data/clean --out data/planted --copies 3 --dev 0.05 --test 0
	$(VENV)/bin/rahf train configs/critic/lite.py --train.seed $(SEED)
	$(VENV)/bin/rahf train configs/critic/lite_tower.py --train.seed $(SEED)
	$(VENV)/bin/rahf evaluate runs/lite-tower --data data/rehearsal --split test --no-generate
	$(VENV)/bin/rahf export runs/lite-tower lite.rahf --bf16 --name lite --about docs/lite.md

gpu: $(if $(PACK),,$(READY))
	$(if $(PACK),$(PYTHON),$(VENV)/bin/python) benchmarks/gpu.py --budget $(BUDGET) $(if $(ONLY),--only $(ONLY))

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit("rahf needs Python 3.11 or newer, $(PYTHON) is " + v + "; name another one: make PYTHON=python3.12")'
	@echo "setting up $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@
