# make serve   the server on http://127.0.0.1:8000, with everything it needs set up first
# make test    everything that CI runs
# make check   format, lint, types
# make train-tiny   the embedded model from nothing; resumable; about two hours on two cores

PYTHON ?= python3
PIP_VERSION = 26.2
BIN = .venv/bin

.PHONY: serve test check format train-tiny replay-dockerfile
.DELETE_ON_ERROR:

serve: .venv/serve.stamp
	$(BIN)/python -m server $(ARGS)

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: .venv/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/test.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

train-tiny: .venv/train.stamp
	OMP_WAIT_POLICY=passive $(BIN)/python -m model.training $(ARGS)

# Replays the Dockerfile's build, entry point and health check where no Docker engine runs.
replay-dockerfile: .venv/test.stamp
	rm -rf build/replay
	$(BIN)/python -m tests.deploy.dockerfile build/replay
	rm -rf build/replay

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet pip==$(PIP_VERSION)

.venv/%.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --group $* --constraint constraints.txt
	touch $@
