PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench bench-compare bench-steps bench-routing bench-kubernetes bench-scraping bench-knowledge bench-posts bench-transports h2spec fuzz chaos protos docs constraints clean

demo: $(VENV)/demo.installed ## Run engines, router and Envoy here; KEEP=1 leaves them running
	$(BIN)/pdrouter demo $(if $(KEEP),--keep)

# A cluster is changed by tests only if it is named: make test KUBECONFIG=...
CLUSTER = $(if $(filter command line,$(origin KUBECONFIG)),KUBECONFIG=$(KUBECONFIG),-u KUBECONFIG)

# A process of its own for each core; tests of one file share what they have started.
PROCESSES = --numprocesses=auto --maxprocesses=4 --dist=loadfile

# Coverage doubles the time of a test: it is taken where the rooms that are held to it are tested.
COVERED = tests/unit tests/contract

# What carries requests differs here; all end-to-end tests run over the default.
CARRYING = tests/e2e/test_streams.py tests/e2e/test_tls.py tests/e2e/test_process.py tests/e2e/test_tokens.py
GRPCIO = -p benchmarks.transports.pytest_plugin --transport grpcio $(CARRYING)

# Envoys, routers and engines of several tests share the cores: what fails there must pass by itself.
AGAIN = $(BIN)/pytest $(COVERED:%=--ignore=%) --last-failed --last-failed-no-failures=none --exitfirst

test: lint ## All checks
	env $(CLUSTER) $(BIN)/pytest $(PROCESSES) $(COVERED) --cov --cov-report=
	$(BIN)/coverage report --fail-under=95 --include='pdrouter/openai/*,pdrouter/engines/*,pdrouter/routing/*,pdrouter/serving/*,pdrouter/extproc/*'
	env $(CLUSTER) $(BIN)/pytest $(PROCESSES) $(COVERED:%=--ignore=%) || { test $$? = 1 && env $(CLUSTER) $(AGAIN); }
	$(BIN)/pytest $(PROCESSES) $(GRPCIO) || { test $$? = 1 && $(AGAIN) $(GRPCIO); }

h2spec: $(VENV)/dev.installed ## The HTTP/2 server before an independent judge; needs Go
	GOBIN=$(CURDIR)/$(BIN) go install github.com/summerwind/h2spec/cmd/h2spec@latest
	env PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/pytest tests/contract/test_h2spec.py

FUZZ_SECONDS = 3600
fuzz: $(VENV)/dev.installed ## The HTTP/2 server before atheris, for an hour or FUZZ_SECONDS
	$(BIN)/python -m pip install --quiet atheris
	mkdir -p benchmarks/runs/fuzz
	$(BIN)/python tests/fuzz_http2.py -max_total_time=$(FUZZ_SECONDS) -max_len=2048 benchmarks/runs/fuzz tests/data/http2

lint: $(VENV)/dev.installed ## Format, lint, types, order of the rooms
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/dev.installed ## The router behind the real Envoy, beside its own first edition; 10 minutes
	$(BIN)/python -m benchmarks.speed $(BENCH)

bench-compare: $(VENV)/dev.installed ## What differs between two of its reports: OLD=a.json NEW=b.json
	$(BIN)/python -m benchmarks.speed.comparison $(OLD) $(NEW)

bench-steps: $(VENV)/dev.installed ## What the steps of a request cost, beside parsing and dumping its body
	$(BIN)/python -m benchmarks.steps

bench-routing: $(VENV)/dev.installed ## Ways to choose pods at rising load, in a simulator; an hour
	$(BIN)/python -m benchmarks.routing

bench-kubernetes: $(VENV)/dev.installed ## What following 5,000 pods costs
	$(BIN)/python -m benchmarks.kubernetes

bench-scraping: $(VENV)/dev.installed ## What reading the metrics of many engines costs
	$(BIN)/python -m benchmarks.scraping

bench-knowledge: $(VENV)/dev.installed ## What it costs that several workers know the same
	$(BIN)/python -m benchmarks.knowledge

bench-posts: $(VENV)/dev.installed ## What a POST to an engine costs, beside aiohttp
	$(BIN)/python -m benchmarks.posts

bench-transports: $(VENV)/dev.installed ## The exchange over other transports than grpcio; 5 minutes
	$(BIN)/python -m benchmarks.transports

chaos: $(VENV)/dev.installed ## 10,000 requests for each wire while everything fails; CHAOS='--requests 300 --seed 7'
	$(BIN)/python -m benchmarks.chaos $(CHAOS)

protos: $(VENV)/dev.installed ## Compile the schemas of Envoy's protocols
	$(BIN)/python protos/generate.py

docs: $(VENV)/dev.installed ## Write the pages that are made from code
	$(BIN)/python docs/generate.py

PIN := uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --custom-compile-command 'make constraints'

constraints: $(VENV)/dev.installed ## Pin the newest versions of all dependencies
	for extra in demo dev; do printf 'hatchling\neditables\n' | \
	  $(BIN)/$(PIN) --extra $$extra --output-file constraints/$$extra.txt pyproject.toml - || exit 1; done
	$(BIN)/$(PIN) --output-file constraints/runtime.txt pyproject.toml
	for extra in tokenizer tracing; do \
	  $(BIN)/$(PIN) --extra $$extra --output-file constraints/$$extra.txt pyproject.toml || exit 1; done
	echo hatchling | $(BIN)/$(PIN) --output-file constraints/build.txt -

clean:
	rm -rf $(VENV) .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/%.installed: constraints/%.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo 'Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...'; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# The pins are complete: pip 23 would look for newer versions of what an extra is asked of.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
