# make demo    the main job on the embedded world, from nothing to a report
# make test    style, types, tests; continuous integration runs it, and make test-faults
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS := --numprocesses=2 --dist=loadscope

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-faults lint type system real-smoke fuzz study ablation prestudy prestudy-cost refresh benchmark store checkpoint packing efficiency world-teachers map docs clean

help:
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(STAMP) ## make .venv with the tested versions

# Made anew, not patched, when what it is made from changes: nothing left over can hide a missing
# dependency. The stamp lies inside, so an interrupted installation starts again.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup ## distil a student on the embedded world; writes out/demo
	$(BIN)/drivekd demo

# Types are checked beside the tests, on whatever processor time these leave.
test: setup lint ## style, types and the default test suite
	@$(BIN)/mypy & types=$$!; $(BIN)/pytest $(WORKERS); tests=$$?; wait $$types && exit $$tests

test-faults: setup ## what runs and judges must survive: kills, full disks, damaged data, bad servers
	$(BIN)/pytest $(WORKERS) -m faults tests/faults tests/evaluate

lint: setup ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: setup ## mypy --strict
	$(BIN)/mypy

system: ## Debian packages for rendering and for looking at the report (needs root)
	@dpkg -s libx11-6 chromium >/dev/null 2>&1 || \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends libx11-6 chromium; }

real-smoke: setup ## wiring proof on real pictures (needs DRIVEKD_REAL_DATA); writes out/real_smoke
	$(BIN)/python benchmarks/real_smoke.py

fuzz: setup ## odd files for the readers and the data tools, for five minutes
	$(BIN)/pytest -m slow tests/data/test_fuzz.py

study: setup ## arms over five seeds on the test scenes; writes results/study.json
	$(BIN)/python benchmarks/study.py test

ablation: setup ## every row of the ablation tables, three seeds; writes results/ablation.json
	$(BIN)/python benchmarks/ablation.py

prestudy: setup ## the world's teachers: panels, stability, capacity gap; writes results/prestudy.json and two more
	$(BIN)/python benchmarks/prestudy_world.py

prestudy-cost: setup ## its pass beside a plain forward pass; writes results/prestudy_cost.json
	$(BIN)/python benchmarks/prestudy.py

refresh: setup ## kept coefficients beside exact ones over a run; writes results/refresh.json
	$(BIN)/python benchmarks/refresh.py

benchmark: setup ## time and memory of one step, size M; writes results/step_cpu.json
	$(BIN)/python benchmarks/step.py --size M

store: setup ## what stored attention costs and saves, size M; writes results/store.json
	$(BIN)/python benchmarks/store.py

checkpoint: setup ## a checkpoint against writing its bytes plainly; writes results/checkpoint.json
	$(BIN)/python benchmarks/checkpoint.py

packing: setup ## packed rows against single questions (needs DRIVEKD_REAL_DATA); writes results/packing.json
	$(BIN)/python benchmarks/packing.py

efficiency: setup ## memory and speed of full-size models, about 20 minutes; writes results/efficiency_cpu.json
	$(BIN)/python benchmarks/efficiency.py

world-teachers: setup ## make the shipped models anew (about an hour); writes src/drivekd/assets
	$(BIN)/python benchmarks/world_teachers.py

map: setup ## docs/map.md from the files' docstrings
	$(BIN)/python benchmarks/map.py

docs: setup ## README and docs/ as a site that can be searched without network; writes out/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean: ## remove what was built, but neither .venv nor out
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
