# make serve   the server on http://127.0.0.1:8000, with everything it needs set up first
# make test    everything that CI runs
# make check   format, lint, types
# make train-tiny   the embedded model from nothing; resumable; about two hours on two cores

PYTHON ?= python3
PIP_VERSION = 26.2
BIN = .venv/bin

.PHONY: serve test check format train-tiny replay-dockerfile clients
.DELETE_ON_ERROR:

serve: .venv/serve.stamp
	$(BIN)/python -m server $(ARGS)

test: check clients
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: .venv/test.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/test.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

train-tiny: .venv/train.stamp
	OMP_WAIT_POLICY=passive $(BIN)/python -m model.training $(ARGS)

# Official clients that cannot be in the environment: those for Node, and other versions of packages that are
# in it. Only a machine without npm goes without those for Node.
clients: .venv/test.stamp build/clients/replicate2.stamp build/clients/openai1.stamp
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory build/clients/node.stamp; \
	else echo "npm is not there: the tests of clients for Node are skipped"; fi

build/clients/node.stamp: tests/e2e/node/package-lock.json
	npm ci --prefix tests/e2e/node --no-audit --no-fund
	mkdir -p $(@D) && touch $@

build/clients/replicate2.stamp: PACKAGES = replicate==2.0.0b4 distro==1.9.0
build/clients/openai1.stamp: PACKAGES = openai==1.109.1 distro==1.9.0
build/clients/%.stamp: Makefile | .venv/bin/python
	rm -rf build/clients/$*
	$(BIN)/python -m pip install --quiet --no-deps --target build/clients/$* $(PACKAGES)
	touch $@

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
