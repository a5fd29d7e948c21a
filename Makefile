# make demo: the whole product on generated data. make test: the tests; make nightly: the long ones. All set themselves up in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Each worker of the tests takes a core and about 1.5 GB.
SPREAD := -n logical --maxprocesses 8 --dist loadgroup

.PHONY: demo test nightly exhaustive lowest readme bench gpu study study-encodings lint docs clean-demo

demo: $(READY)
	$(BIN)/python -m cache_teacher sample-set data/demo
	test -f teachers/demo.pth || $(BIN)/python -m cache_teacher fit --config configs/demo.yaml --dataset.train_split train --dataset.size 64
	$(BIN)/python -m cache_teacher --config configs/demo.yaml
	$(BIN)/python -m train_student --config configs/demo.yaml --run.resume

test: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest $(SPREAD)

nightly: $(READY)
	$(BIN)/python -m pytest -m nightly --timeout 1800 --durations=20 $(SPREAD)

# Hours: 512 workers and 100,000 groups, hundreds of kills.
exhaustive: $(READY)
	$(BIN)/python -m pytest -m exhaustive

# The oldest releases that pyproject.toml allows, in build/lowest: what reads, writes and computes, and the extras. Not executorch: it
# brings a torch of its own.
LOWEST := build/lowest
UV := $(LOWEST)/uv/bin/uv
OLDEST := --resolution lowest-direct --extra dev --extra docs --extra study --extra wandb
lowest: $(LOWEST)/.ready
	$(LOWEST)/env/bin/python -m pytest tests/machine tests/data tests/cache tests/losses tests/storage/test_storage.py \
		tests/models/test_adapters.py tests/deploy tests/test_api.py tests/programs/test_end_to_end.py

$(LOWEST)/.ready: pyproject.toml
	test -x $(UV) || ($(PYTHON) -m venv $(LOWEST)/uv && $(LOWEST)/uv/bin/python -m pip install --quiet uv)
	$(UV) venv --quiet --clear --python $(PYTHON) $(LOWEST)/env
	$(UV) pip compile --quiet $(OLDEST) --python $(LOWEST)/env pyproject.toml -o $(LOWEST)/requirements.txt
	$(UV) pip install --quiet --python $(LOWEST)/env -r $(LOWEST)/requirements.txt
	$(UV) pip install --quiet --python $(LOWEST)/env --no-deps -e .
	touch $@

# Every command of README.md and docs/ as it is written, on small data; what cannot be run is listed with its reason.
readme: $(READY)
	$(BIN)/python -m tests.readme

# Every figure, about ten minutes on two cores and 2 GB of room (10 with a GPU), into build/bench.json.
bench: $(READY)
	$(BIN)/python -m tests.bench

# Everything that only a GPU can tell, about 25 minutes on an H100, into build/gpu/gpu.json: tests, speeds, a study of CamVid in DATA.
# The same command goes on after a stop; MINUTES=9 stops by itself. GPU_PYTHON: an interpreter that has the packages, for a machine
# without network, where no .venv can be made.
gpu: $(if $(GPU_PYTHON),,$(READY))
	$(or $(GPU_PYTHON),$(BIN)/python) -m tests.gpu --root $(DATA) $(if $(MINUTES),--minutes $(MINUTES))

# What distillation gains in mIoU, by the number of labels: hours; the same command goes on after a stop, started twice the two share it.
DATA ?= data/camvid
TEACHER ?= teachers/fcn_resnet50_camvid.pt
JOBS ?= 1
STUDY ?= build/study
study: $(READY)
	$(BIN)/python -m tests.study gain --root $(DATA) --teacher $(TEACHER) --out $(STUDY) --jobs $(JOBS)

# What an encoding costs in mIoU, with the data set and teacher of CONFIG: fifteen whole runs; the same command goes on after a stop.
CONFIG ?= configs/camvid.yaml
study-encodings: $(READY)
	$(BIN)/python -m tests.study encodings --config $(CONFIG) --out $(STUDY)-encodings

# Form, directions of imports, types of public names, the figures of the architecture with their goals, and how README reads.
lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m mypy
	$(BIN)/python -m tests.architecture
	$(BIN)/python -m tests.reading

# The pages as a site in build/site, which needs no network and no server: open build/site/index.html.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

clean-demo:
	rm -rf data/demo teachers/demo.pth caches/demo runs/demo

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

$(VENV)/.docs: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[docs]' -c constraints.txt
	touch $@
