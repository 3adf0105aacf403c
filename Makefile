# make install     create .venv and install everything (torch first, exact versions)
# make quickstart  distil a student from the shipped teacher, score it, hear it (about eighteen minutes)
# make test        run the tests
# make reliability  kill every long command, give it bad inputs and full disks; write docs/reliability.md (20 minutes)
# make lint        run ruff
# make bench       measure speed, as ratios, into benchmarks/results (about an hour; 10 GB of memory)
# make assets      rebuild every shipped artefact from nothing (hours)
# make readme      write the results table of the last quickstart into README.md
# make demo        serve a page to speak to the models, at http://127.0.0.1:7860 (PORT=... for another)
# make docs        build the documentation site into outputs/site
# make expressive  distil with pitch and style, and write its results into docs/expressive.md
# make interleaved  the same with text as well, into docs/interleaved.md

PYTHON ?= $(shell command -v python3.11 || command -v python3)
OUTPUT ?= outputs/quickstart
PORT ?= 7860
export PIP_NO_INPUT := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install quickstart test reliability lint bench assets readme expressive interleaved demo docs

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

install: .venv/installed

# torch goes first, so that no other package's requirements choose its build.
.venv/installed: setup.py pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --progress-bar on torch -c constraints.txt
	.venv/bin/python -m pip install --progress-bar on -e '.[all]' -c constraints.txt
	@touch $@

quickstart: install
	.venv/bin/tinywave quickstart --output-dir $(OUTPUT)

test: install
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile

reliability: install
	rm -rf outputs/reliability
	OMP_NUM_THREADS=1 .venv/bin/pytest tests/reliability -n 2 -m "exhaustive or not exhaustive" --records outputs/reliability
	.venv/bin/python -m tinywave.tests.reliability.report outputs/reliability

lint: install
	.venv/bin/ruff check .

bench: install
	.venv/bin/python -m tinywave.benchmarks.speed
	.venv/bin/python -m tinywave.benchmarks.distillation --output benchmarks/results/distill.json
	.venv/bin/python -m tinywave.benchmarks.scoring --suites lexical syntactic story speaker --num-pairs 100 --output benchmarks/results/scoring.json
	.venv/bin/python -m tinywave.benchmarks.decode --output benchmarks/results/decode.json
	.venv/bin/python -m tinywave.benchmarks.batched_decoding --output benchmarks/results/batched_decoding.json
	.venv/bin/python -m tinywave.benchmarks.conversation_turns --output benchmarks/results/conversation_turns.json
	.venv/bin/python -m tinywave.benchmarks.latency --output benchmarks/results/latency.json
	.venv/bin/python -m tinywave.benchmarks.wrapper --output benchmarks/results/wrapper.json
	.venv/bin/python -m tinywave.benchmarks.tables

assets: install
	.venv/bin/tinywave rebuild

readme: install
	.venv/bin/python -m tinywave.eval.results_table $(OUTPUT)/report.json README.md

expressive: install
	.venv/bin/tinywave quickstart --variant expressive --output-dir $(OUTPUT)_expressive
	.venv/bin/python -m tinywave.eval.results_table $(OUTPUT)_expressive/report.json docs/expressive.md

interleaved: install
	.venv/bin/tinywave quickstart --variant interleaved --output-dir $(OUTPUT)_interleaved
	.venv/bin/python -m tinywave.eval.results_table $(OUTPUT)_interleaved/report.json docs/interleaved.md

demo: install
	.venv/bin/tinywave demo --port $(PORT)

docs: install
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
