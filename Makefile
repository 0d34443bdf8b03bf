# make demo   sets up .venv, then draws scenes, trains, evaluates and predicts on them
# make test   sets up .venv, then runs the tests
#
# Both need nothing but Python 3.11 or newer (PYTHON=python3.12 names another one) and may be repeated.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.installed

.PHONY: demo test
.DELETE_ON_ERROR:

demo: $(READY)
	$(VENV)/bin/rahf demo

# The tests of a file share what they compile, so a file stays in one process; conftest.py puts long files first.
test: $(READY)
	$(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit("rahf needs Python 3.11 or newer, $(PYTHON) is " + v + "; name another one: make PYTHON=python3.12")'
	@echo "setting up $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@touch $@
