# Everything is installed into .venv and runs from there; a second run installs nothing.
.DEFAULT_GOAL := help
.PHONY: help demo test check bench redteam sandbox image clean
.DELETE_ON_ERROR:

BIN := .venv/bin
comma := ,
space := $(subst ,, )

# A folder of local wheels that pip is told of is meant for uv too; elsewhere uv fetches CPU torch.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))
else
TORCH := --torch-backend=cpu
endif

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' Makefile

demo: .venv/installed-cpu-demo ## start a guarded vLLM on the CPU, send it a dozen requests
	$(BIN)/vauban demo

test: .venv/apt-test .venv/installed-cpu-dev .venv/triton/complete .venv/sandbox/manifest.json ## run the tests, with a real vLLM and a real Triton
	$(BIN)/pytest

redteam: .venv/apt-test .venv/installed-cpu-dev ## attack a guarded vLLM with garak and PyRIT, and judge what they find
	$(BIN)/pytest tests/live/test_live_redteam.py

sandbox: .venv/sandbox/manifest.json ## build the image of the virtual machine that code runs in

check: .venv/installed-cpu-dev ## lint and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/installed-cpu-dev ## run the benchmarks
	$(BIN)/python -m benchmarks.run

image: ## build the image `cpu` with buildah, as root on Debian
	setup/image.sh

clean: ## remove .venv, caches and builds
	rm -rf .venv .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# .venv/installed-cpu-demo: the extras cpu and demo are there.
.venv/installed-%: $(BIN)/uv pyproject.toml setup/uv-overrides.txt
	$(BIN)/uv pip install --python $(BIN)/python --overrides setup/uv-overrides.txt $(TORCH) \
		-e '.[$(subst -,$(comma),$*)]'
	@touch $@

.venv/apt-%: $(BIN)/uv
	setup/apt.sh $*
	@touch $@

# A tritonserver in an environment of its own.
.venv/triton/complete: .venv/installed-cpu-dev
	$(BIN)/vauban triton install
	@touch $@

# The guest of the sandbox, from Debian's packages.
.venv/sandbox/manifest.json: .venv/installed-cpu-dev setup/apt-packages.txt \
		plugin/vauban/agents/image_build.py $(wildcard plugin/vauban/agents/guest/*)
	setup/apt.sh sandbox
	$(BIN)/vauban sandbox build

$(BIN)/uv: setup/venv.sh setup/apt.sh setup/apt-packages.txt
	setup/venv.sh
	@touch $@
