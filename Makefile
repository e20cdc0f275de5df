# Every target sets up what it needs: a virtual environment in .venv with the pinned versions of constraints.txt.
# PYTHON=... picks the interpreter it is made of (3.11 or later).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GPU = $(shell $(BIN)/python -c "import torch; print(int(torch.cuda.is_available()))" 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help book test notebooks figures record exercises lint clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "make: $(PYTHON) is older than Python 3.11; run make PYTHON=python3.11 (or later)"; exit 1; }
	@$(PYTHON) -c "import ensurepip" 2>/dev/null || { echo "make: $(PYTHON) has no venv module (on Debian: apt-get install python3-venv)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[book,test]'
	@touch $@

# --all: a page that Sphinx takes for unchanged would keep its warnings to itself, and changed style sheets would stay behind.
book: $(READY) ## build the HTML book; warnings are errors
	$(BIN)/jupyter-book build . --all --path-output . --warningiserror --nitpick --keep-going
	@echo "The book: file://$(CURDIR)/_build/html/index.html"

test: $(READY) ## run all tests: CPU suite, notebooks, and the GPU suite where there is a GPU
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -n 2 --dist loadscope tests
	$(BIN)/python book/build_notebooks.py --check
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest --nbval -p no:cacheprovider book/notebooks
	@if [ "$(GPU)" = 1 ]; then $(BIN)/python -m pytest -n 8 -m "not alone" tests && $(BIN)/python -m pytest -m "gpu and alone" tests; else echo "No GPU on this machine: the GPU suite was not run."; fi

notebooks: $(READY) ## regenerate and execute book/notebooks from book/chapters (as on a machine with no GPU)
	CUDA_VISIBLE_DEVICES= $(BIN)/python book/build_notebooks.py

figures: $(READY) ## draw every figure from the published records
	$(BIN)/lab report --all --output _build/figures

record: $(READY) ## measure every experiment again on this machine's GPU
	set -e; for run in book/experiments/*/run.sh; do PATH="$(CURDIR)/$(BIN):$$PATH" bash $$run; done

exercises: $(READY) ## cut exercises/ out of solutions/
	$(BIN)/python solutions/build_exercises.py

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check lab tests solutions book/build_notebooks.py book/_ext
	$(BIN)/mypy

clean: ## remove what was built, and the virtual environment
	rm -rf _build $(VENV)
