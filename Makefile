# make notebooks   run every notebook with its defaults; the results are in outputs/index.html
# make test        lint, format, import rules, doctests and tests
# make lab         open JupyterLab on the notebooks
# make app         a page to ask a model about your picture (MODEL_ID=… for another model)
# make gallery     a site of all that was executed, sweeps too, in outputs/site/index.html
# make checkpoints train the small checkpoints in data/checkpoints again (some hours)
# make benchmark   time and memory against plain code and other packages; outputs/benchmark.md
#                  (DEVICE=cuda: recorded layers on a GPU)
# make families    what is recorded of every image-text type; data/results/families.md
# make exams       how often the small models answer correctly; data/results/answers.csv
# make trust       how well a check tells right peaks of maps from wrong ones; data/results/trust.csv
# make trials      other ways to check a peak, on scenes apart; data/results/trust_trials.csv
# Each makes .venv first where it is missing or older than what it installs.

PYTHON ?= python3
# Seconds that one notebook may take.
TIMEOUT ?= 900
# GB that must be free to make .venv, downloads included. Without CUDA it takes less.
SPACE ?= 8
# Notebooks at a time; empty: one for each core, fewer where memory is short.
JOBS ?=
# More options for JupyterLab, such as --no-browser.
LAB ?=
# Processes that run the tests, one more than cores: some wait for a browser or a kernel.
TESTERS ?= 3
# The app's port, and what its page lets choose, with blanks between: models and LoRA adapters,
# each a folder or a Hugging Face id, and devices as in transformers' device_map.
PORT ?= 8866
MODEL_ID ?= data/checkpoints/tiny-llava
ADAPTER_ID ?=
DTYPE ?= auto
DEVICE_MAP ?= cpu
# More options of `make trust` and `make trials`, such as --models tiny-llava.
ANSWERS ?=
# Where the benchmark runs: cpu or cuda.
DEVICE ?= cpu

# Containers often switch bytecode off; each of some hundred processes would compile it again.
export PYTHONDONTWRITEBYTECODE :=

# Memory in large pages, some of it kept when it is freed: a tenth less time. Only glibc reads this.
notebooks test: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=536870912:glibc.malloc.mmap_threshold=33554432

BIN := .venv/bin
READY := .venv/.ready
STRIPPED := --keep-id --extra-keys "metadata.papermill cell.metadata.papermill"
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

# On a full disk pip complains of the network ("Connection interrupted"), after minutes.
ENOUGH_SPACE = df -Pk . | awk 'NR == 2 && (free = $$4 * 1.024e-6) < $(SPACE) { \
  printf "%.1f GB are free here, .venv takes $(SPACE): make room, or say SPACE=…\n", free; \
  exit 1 }' >&2

.PHONY: notebooks test lab app gallery checkpoints benchmark families exams trust trials

notebooks: $(READY)
	$(BIN)/rollout run-all notebooks --out outputs --timeout $(TIMEOUT) $(if $(JOBS),--jobs $(JOBS))

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	find notebooks -name '*.ipynb' -exec $(BIN)/nbstripout --verify $(STRIPPED) {} +
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

# Kernels talk by sockets in a folder that only this user can read, instead of ports, which all
# users of the machine can reach. The folder has a short name, as sockets need one.
lab: $(READY)
	sockets=$$(mktemp -d) && trap 'rm -r "$$sockets"' EXIT && trap : INT TERM && \
	  JUPYTER_PREFER_ENV_PATH=1 JUPYTER_RUNTIME_DIR="$$sockets" $(BIN)/jupyter lab \
	  --ip=127.0.0.1 --KernelManager.transport=ipc $(AS_ROOT) $(LAB) notebooks

app: $(READY)
	$(BIN)/python -m rolloutlib.app $(MODEL_ID) --adapter $(ADAPTER_ID) \
	  --device-map $(DEVICE_MAP) --dtype="$(DTYPE)" --port=$(PORT)

gallery: $(READY)
	$(BIN)/python docs/make_reference.py outputs/site/reference
	$(BIN)/rollout gallery --outputs outputs --out outputs/site --figures notebooks data/figures
	$(BIN)/python docs/make_readme_figures.py outputs/site/02_llava.html data/figures

checkpoints: $(READY)
	set -e; for notebook in notebooks/training/*.ipynb; do \
	  name=$$(basename $$notebook .ipynb | tr _ -); \
	  $(BIN)/rollout run $$notebook --echo \
	    -p scale 1.0 -p checkpoint_path data/checkpoints/$$name; \
	done

benchmark: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --ignore-requires-python \
	  -r tests/benchmarks/peers.txt
	test -d .venv/other_versions || $(BIN)/python -m pip install --quiet --no-deps \
	  --ignore-requires-python --target .venv/other_versions -r tests/benchmarks/other_versions.txt
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m benchmarks --out outputs --device $(DEVICE)

families: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps -r tests/benchmarks/families.txt
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m benchmarks.families

exams: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m benchmarks.exams

trust: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m benchmarks.trust $(ANSWERS)

trials: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m benchmarks.trust_trials $(ANSWERS)

$(READY): pyproject.toml constraints.txt no-deps.txt
	@echo "Installing into .venv: a few minutes and about $(SPACE) GB"
	@test -x $(BIN)/python || { $(ENOUGH_SPACE) && $(PYTHON) -m venv .venv; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,test]'
	$(BIN)/python -m pip install --quiet --no-deps -r no-deps.txt
	touch $@
