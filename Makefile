# make run    the series from images to table, figures and report     PROFILE=quick|cpu|paper|best DATA=folder RUN=name ARGS="--only 04,08"
# make test   style, unit tests, every notebook and the documentation
# make docs   the documentation, from notebooks, docstrings and texts, into docs/_build/html
# make lab    the notebooks in JupyterLab, the first one open
# make bench  the benchmarks
# make store  the notebooks that have run, ready to commit; make new-notebook NAME=11_topic begins one; make hooks: pre-commit
# make clean  removes .venv and caches; runs/ and data/ stay
# run, test, docs, lab and bench set .venv up by themselves the first time; PYTHON=/path/to/python3.12 chooses the Python for it.

PROFILE = quick
DATA =
RUN =
ARGS =
PYTHON =

BIN = .venv/bin
STAMP = .venv/.stamp

.PHONY: run test docs lab bench store new-notebook hooks clean

run: $(STAMP)
	$(BIN)/hcm run --profile "$(PROFILE)" $(if $(DATA),--data "$(DATA)") $(if $(RUN),--run "$(RUN)") $(ARGS)

# A core each, for tests as for the models' notebooks, of which none reads what another one writes.
ATONCE = --numprocesses auto --maxprocesses 6
NBVAL = --nbval-lax --nbval-current-env --nbval-cell-timeout=900

test: export HCM_HEADLESS = 1
test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/pytest $(ATONCE) --dist worksteal tests
	$(BIN)/pytest $(NBVAL) notebooks/0[01]_*.ipynb
	OMP_NUM_THREADS=1 $(BIN)/pytest $(NBVAL) $(ATONCE) --dist loadfile notebooks/0[2-7]_*.ipynb
	$(BIN)/pytest $(NBVAL) notebooks/0[89]_*.ipynb notebooks/10_*.ipynb
	OMP_NUM_THREADS=1 $(BIN)/pytest $(NBVAL) $(ATONCE) --dist loadfile notebooks/solutions/*.ipynb
	$(BIN)/pytest $(NBVAL) examples/*.ipynb
	rm -rf runs/quick/flow # which a later `hcm run` would measure without training it
	$(MAKE) --no-print-directory docs

docs: $(STAMP)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

lab: $(STAMP)
	$(BIN)/jupyter lab $(firstword $(sort $(wildcard notebooks/*.ipynb))) $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

bench: $(STAMP)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[bench]"
	@for benchmark in benchmarks/*.py; do \
	    if [ -f "$$benchmark" ]; then echo "$$benchmark"; $(BIN)/python "$$benchmark" || exit 1; fi; \
	done

store: $(STAMP)
	$(BIN)/python tools/notebooks.py store $(wildcard notebooks/*.ipynb notebooks/solutions/*.ipynb)

new-notebook: $(STAMP)
	$(BIN)/python tools/notebooks.py new "$(NAME)"

hooks: $(STAMP)
	$(BIN)/pre-commit install

clean:
	rm -rf .venv .hypothesis .pytest_cache .ruff_cache build *.egg-info docs/_build docs/_texts docs/notebooks docs/examples
	find hcm_helpers tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@found=; for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11); do \
	    if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "No Python from 3.11 to 3.14 was found; install one (Debian 12, Ubuntu 24.04: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
	    echo "$$found lacks the venv module; install it (Debian, Ubuntu: apt install python3-venv) and run make again" >&2; exit 1; \
	fi; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    echo "Setting .venv up with $$($$found --version); the packages come once, about 1.5 GB or more."; \
	    "$$found" -m venv --clear .venv; \
	fi
	$(BIN)/python -m pip install -c constraints.txt -e ".[dev]"
	@test -f .venv/share/jupyter/kernels/python3/kernel.json || $(BIN)/python -m ipykernel install --sys-prefix
	@touch $@
