# Two commands: `make bench` and `make test`. Both set up .venv first; after that they need no network.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: bench bench-all test lint unit zoo zoo-videos recipes figures kernels kernels-bench kernels-share clean

bench: $(VENV)/.bench
	$(BIN)/visgen-bench run quick

bench-all: $(VENV)/.bench
	$(BIN)/visgen-bench run all
	$(BIN)/visgen-bench run moving

test: lint unit

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Two workers with one thread each: the tests are many small tensors.
unit: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10

# Trains the tiny presets from their recipes and writes the weights, hashes and figures to visgen/zoo.
zoo: $(VENV)/.bench
	$(BIN)/visgen-bench run learn
	$(BIN)/python -m visgen_bench.make_zoo weights results/runs/learn
	$(BIN)/visgen-bench run quick --only 'quality/*'
	$(BIN)/python -m visgen_bench.make_zoo figures results/runs/quick

# The same for clips: three VideoGPTs and two predictors, about two hours of one core.
zoo-videos: $(VENV)/.bench
	$(BIN)/visgen-bench run learn_videos
	$(BIN)/python -m visgen_bench.make_zoo weights results/runs/learn_videos
	$(BIN)/visgen-bench run moving
	$(BIN)/python -m visgen_bench.make_zoo figures results/runs/moving

# Two updates of every published recipe at true size and batch 1 on CPU.
recipes: $(VENV)/.bench
	$(BIN)/python bench/benchmarks/recipes.py

# Every speed and memory figure of the README, measured anew.
figures: $(VENV)/.test
	$(BIN)/python bench/benchmarks/frechet.py
	$(BIN)/python bench/benchmarks/sampling_memory.py
	$(BIN)/python bench/benchmarks/harness_overhead.py
	$(BIN)/python bench/benchmarks/performance_share.py
	$(BIN)/python bench/benchmarks/transgan_step.py
	$(BIN)/python kernels/benchmarks/attention_cpu.py
	$(BIN)/python kernels/benchmarks/codebook_cpu.py

# Every kernel of every layer on four targets, read from its machine code; then each entry of the tile
# table, compiled and in Triton's interpreter. No GPU is needed; what is not begun within an hour is
# named.
kernels: $(VENV)/.bench
	OMP_NUM_THREADS=1 $(BIN)/visgen-bench kernels static --time-limit 3600
	OMP_NUM_THREADS=1 $(BIN)/python kernels/benchmarks/check_tiles.py
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python kernels/benchmarks/check_tiles.py

# Attention timed against its peers, and what it is worth to whole models: a GPU if there is one.
kernels-bench: $(VENV)/.bench
	$(BIN)/visgen-bench kernels bench

kernels-share: $(VENV)/.bench
	$(BIN)/visgen-bench kernels share

$(VENV)/.bench: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[lite0]'
	touch $@

$(VENV)/.test: $(VENV)/.bench
	$(PIP) -e '.[lite0,test]'
	$(BIN)/pyright --version >/dev/null
	touch $@

clean:
	rm -rf $(VENV) build dist
