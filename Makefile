# Every target sets up .venv by itself when it is missing or older than the pins. PYTHON=python3.12 chooses another Python.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-full test-gpu test-page test-integrations test-comparison test-extras test-ray bench bench-kernels lint format wheel wheel-cuda clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP)  ## create .venv with the pinned dependencies and this package, editable

# A Python without ensurepip makes an environment without pip; the pip of $(PYTHON) then installs one there.
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard csrc/*.py csrc/cpu/* csrc/cuda/* csrc/cuda/device/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}. Try make PYTHON=python3.12")'
	@echo "==> creating $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || $(PYTHON) -m venv --clear --without-pip $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m pip --python $(BIN)/python install --quiet pip
	@echo "==> installing PyTorch, Triton and the other pinned dependencies (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "==> $(VENV) is ready"

demo: $(STAMP)  ## upscale examples/photo.jpg to out/photo_x4.png, and show it beside the input and bicubic
	@mkdir -p out
	$(BIN)/varsr upscale examples/photo.jpg -o out/photo_x4.png --overwrite --compare
	@echo "==> the picture is in $(CURDIR)/out/photo_x4.png, beside input and bicubic in $(CURDIR)/out/photo_x4_compare.png"

# A process a processor, up to four; a thread each, as threads of several processes that wait in turn slow all down.
test: $(STAMP)  ## run the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-full: $(STAMP)  ## run every test a CPU can run, the full-size network included (minutes, gigabytes)
	$(BIN)/python -m pytest -m 'not gpu' $(ARGS)

test-gpu: $(STAMP)  ## run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS)

# $(call on_top,FOLDER): an environment without pip that also holds what $(VENV) holds.
define on_top
	@echo "==> creating $(1)"
	@$(BIN)/python -m venv --clear --without-pip $(1)
	@$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(1)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
endef

# The hosts lie in an environment of their own, on top of $(VENV): nothing in $(VENV) changes, and torch is $(VENV)'s.
# Pillow is the one that Gradio takes. spandrel comes alone: its torchvision would bring a torch of its own.
HOSTS := .venv-integrations
PIP_HOSTS = $(BIN)/python -m pip --disable-pip-version-check --python $(HOSTS)/bin/python install --quiet

$(HOSTS)/.installed: $(STAMP) constraints-integrations.txt
	$(call on_top,$(HOSTS))
	@grep -v '^pillow==' constraints.txt > $(HOSTS)/constraints.txt
	@$(PIP_HOSTS) -c $(HOSTS)/constraints.txt -c constraints-integrations.txt diffusers gradio litserve
	@$(PIP_HOSTS) -c constraints-integrations.txt --no-deps spandrel
	@touch $@

test-integrations: $(HOSTS)/.installed  ## run the integrations, and their docs' snippets, on the hosts that can be installed
	$(HOSTS)/bin/python -m pytest -m 'slow or not slow' tests/integrations $(ARGS)

test-comparison: $(HOSTS)/.installed  ## check the diffusion models of benchmarks/, small and at full size (minutes)
	$(HOSTS)/bin/python -m pytest -m 'slow or not slow' tests/benchmarks/test_compare_diffusion.py $(ARGS)

test-extras: $(STAMP)  ## ask pip what each extra would install: none may bring another torch (minutes)
	$(BIN)/python tests/integrations/check_extras.py

RAY := .venv-ray

$(RAY)/.installed: $(STAMP) constraints-ray.txt
	$(call on_top,$(RAY))
	@$(BIN)/python -m pip --disable-pip-version-check --python $(RAY)/bin/python install --quiet \
		-c constraints.txt -c constraints-ray.txt 'ray[serve,data]'
	@touch $@

test-ray: $(RAY)/.installed  ## run the tests of Ray, on clusters of this machine (minutes)
	$(RAY)/bin/python -m pytest -m 'slow or not slow' tests/integrations/test_ray.py tests/integrations/test_ray_units.py $(ARGS)

test-page: $(STAMP)  ## drive the page of `varsr serve` in a headless Chromium (apt-get install chromium)
	$(BIN)/python -m pytest -m browser tests/page $(ARGS)

bench: $(STAMP)  ## measure the engine on this CPU against the published way and the machine (15 minutes), and make the docs' tables
	$(BIN)/python -m benchmarks.cpu_suite $(ARGS)

bench-kernels: $(STAMP)  ## time each kernel beside torch, torch.compile and libraries; ARGS="-k mlp" for one op
	$(BIN)/python -m pytest benchmarks/kernels --benchmark-quiet $(ARGS)

# mypy runs inside an installed copy, the only place where kernels/ is varsr_engine.kernels.
lint: $(STAMP)  ## ruff check, ruff format --check, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/typecheck build/lib* build/bdist*
	@VARSR_BUILD_CPU=0 VARSR_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache varsr_engine

format: $(STAMP)  ## sort imports, apply the safe fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(STAMP)  ## build the wheel and the sdist into dist/
	@rm -rf build/lib* build/bdist* dist
	@echo "==> building"
	@VARSR_BUILD_CUDA=0 $(BIN)/python -m build --no-isolation --outdir dist . >build.log 2>&1 || { cat build.log; exit 1; }
	@rm -f build.log
	@ls -l dist

wheel-cuda: $(STAMP)  ## build a wheel with the CUDA kernels into dist/cuda/; needs nvcc, no GPU
	@rm -rf build/lib* build/bdist* dist/cuda
	@echo "==> building"
	@VARSR_BUILD_CUDA=1 $(BIN)/python -m build --no-isolation --wheel --outdir dist/cuda . >build.log 2>&1 || { cat build.log; exit 1; }
	@rm -f build.log
	@ls -l dist/cuda

clean:  ## remove what the other targets made, .venv included
	rm -rf $(VENV) $(HOSTS) $(RAY) build dist out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
