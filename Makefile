# `make demo` draws a picture, `make test` proves the code right; both do all set-up in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export TOKENIZERS_PARALLELISM := false
# On a shared machine, threads that spin while they wait cost far more than they save.
export OMP_WAIT_POLICY := passive
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test test-slow check format zoo results benchmark clean

demo: $(READY)
	$(BIN)/diffusemble generate --config examples/demo.yaml

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

zoo: $(READY)  ## train the shipped experts again (hours on a CPU)
	$(BIN)/python -m recipes.zoo

results: $(READY)  ## measure the main tables again (an hour on two cores)
	$(BIN)/python -m recipes.zoo data
	PATH=$(CURDIR)/$(BIN):$$PATH recipes/results/merge.sh
	$(BIN)/diffusemble evaluate --config recipes/results/topics.yaml
	$(BIN)/diffusemble evaluate --config recipes/results/styles.yaml

benchmark: $(READY)
	$(BIN)/python benchmarks/forward.py --size zoo

# An environment that already has a working torch (CUDA, ROCm, ...) keeps it; a bare one gets the pinned release.
$(READY): pyproject.toml constraints.txt scores.txt
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) \
		$$($(PYTHON) -c "import torch" 2>/dev/null && echo --system-site-packages)
	@if grep -q "packages = true" $(VENV)/pyvenv.cfg; then grep -v '^torch==' constraints.txt; \
		else cat constraints.txt; fi > $(VENV)/constraints.txt
	@$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet -c $(VENV)/constraints.txt -e ".[train,evaluate,zoo,dev]"
	$(BIN)/pip install --quiet --no-deps -r scores.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist site
