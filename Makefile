# `make demo` and `make test` each do all their own set-up, and may be run again at any time.
VENV   ?= .venv
PYTHON ?= python3
BIN     = $(VENV)/bin
# Where a CPU build of torch is wanted and the index offers only CUDA builds, name the build here.
TORCH  ?= torch

.PHONY: demo test test-slow test-cluster test-browser soak check install format clean

demo: install
	$(BIN)/lcc fetch +recipe=mt_en_zh_small
	$(BIN)/lcc run +recipe=mt_en_zh_small

test: install check
	$(BIN)/python -m pytest -n 2

test-slow: install
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[ray]"
	$(BIN)/lcc fetch +recipe=mt_en_zh_small
	$(BIN)/python -m pytest -m "slow or network" -x

# Two hundred kills, every file operation of a save failed in turn, full disks, poisoned steps, flipped bits.
soak: install
	LCC_SOAK=1 $(BIN)/python -m pytest tests/soak -q

# A real Slurm from Debian, started in a temporary folder; says why where it cannot be had.
test-cluster: install
	$(BIN)/python -m pytest -m "network and not slow" tests/sweeps

# The page of `lcc serve` in Debian's Chromium, which it installs; says why where it cannot be had.
test-browser: install
	$(BIN)/python -m pytest -m "network and not slow" tests/serving

check: install
	$(BIN)/ruff format --check lcc tests benchmarks
	$(BIN)/ruff check lcc tests benchmarks
	$(BIN)/mypy

format: install
	$(BIN)/ruff format lcc tests benchmarks
	$(BIN)/ruff check --fix lcc tests benchmarks

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lcc needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
