# One command for each need, the same for people and for CI. `make help` lists them.
#
# Paths are relative, for a folder with a space in its name; Python programs are run as
# `python -m`, since a script's first line cannot hold such a path. Nothing needs activating.

PYTHON  ?= python3       # makes .venv: 3.11 or newer
ARGS    ?=               # more for pytest or the benchmark: make test ARGS="-k heads -x"
SECONDS ?= 60            # for all targets of the fuzzer together
LIVES   ?= 20000         # of the simulation

PY := .venv/bin/python
# What opens a socket or starts a program is left out of test-fast.
FAST := tests/house tests/words tests/policy tests/protocol tests/control \
	--ignore=tests/house/test_package.py --ignore=tests/house/test_wheel.py \
	--ignore=tests/control/test_cli.py \
	--ignore=tests/control/test_doctor.py --ignore=tests/control/test_listening.py \
	--ignore=tests/control/test_admin.py --ignore=tests/control/test_control_socket.py \
	--ignore=tests/control/test_reloading.py --ignore=tests/control/test_swapping.py \
	--ignore=tests/control/test_watching.py \
	--ignore=tests/control/test_supervisor.py \
	--ignore=tests/control/test_replacing.py \
	--ignore=tests/control/test_sockets.py \
	--ignore=tests/control/test_systemd.py \
	--ignore=tests/control/test_channel.py
MAKEFLAGS += --no-print-directory

# $(call serve,TABLE) until Ctrl and C, or SIGTERM. 4: somebody was connected at that moment.
define serve
@trap : INT; trap 'kill $$gateway' TERM; \
$(PY) -m gateway --routes $(1) & gateway=$$!; \
wait $$gateway; code=$$?; if [ $$code -gt 128 ]; then wait $$gateway; code=$$?; fi; \
if [ $$code -ne 4 ]; then exit $$code; fi
endef

.DEFAULT_GOAL := help
.PHONY: help demo demo-tls test test-fast test-debug test-asan clean-root ktls autobahn fuzz simulation reloads scale bench bench-prepare check lint types format lock wheel clean ready ready-to-test

help:            ## this list
	@sed -n 's/^\([a-z-]*\): *[a-z -]*## /\1|/p' Makefile | while IFS='|' read -r name text; do \
		printf '  make %-13s %s\n' "$$name" "$$text"; done

demo: ready      ## run the gateway on routes/demo.toml, http://127.0.0.1:8080
	@echo "Open http://127.0.0.1:8080/ in a browser; Ctrl and C ends it."
	$(call serve,routes/demo.toml)

demo-tls: ready  ## the same by https, with certificates of its own, https://localhost:8443
	@test -f certs/server.crt || $(PY) -m gateway certs
	@echo "Open https://localhost:8443/ in a browser that trusts certs/ca.crt (certs/README.md)."
	$(call serve,routes/demo-tls.toml)

test: check      ## ruff, mypy, and all tests but those with a target of their own
	$(PY) -m pytest -n 2 --dist loadfile --ignore=tests/house/test_clean_root.py --ignore=tests/ktls $(ARGS)

test-fast: ready-to-test   ## tests without sockets and programs: about a minute
	$(PY) -m pytest $(FAST) $(ARGS)

test-debug: ready-to-test  ## relays and engines, with everything made and freed counted
	$(PY) tools/sanitize.py 1 $(ARGS)

test-asan: ready-to-test   ## the same under AddressSanitizer and UBSan
	$(PY) tools/sanitize.py asan $(ARGS)

clean-root: ready-to-test  ## the wheel in a fresh Debian without compiler, headers, liburing (root)
	$(PY) -m pytest tests/house/test_clean_root.py $(ARGS)

ktls: ready-to-test        ## TLS in the kernel, in a virtual machine (qemu, a kernel of Debian's)
	$(PY) -m tests.ktls $(ARGS)

autobahn: ready-to-test    ## all cases of the Autobahn suite, as client and as server, on both engines
	$(PY) -m tests.autobahn.run

fuzz: ready-to-test        ## coverage-guided fuzzing: make fuzz SECONDS=3600
	$(PY) -m tests.fuzz.run --seconds $(SECONDS) $(ARGS)

simulation: ready-to-test  ## fresh seeded lives with faults: make simulation LIVES=100000
	$(PY) -m tests.simulation --lives $(LIVES) $(ARGS)

reloads: ready-to-test     ## a minute of reloads under load, on both engines
	RELOAD_SECONDS=60 $(PY) -m pytest -s -k reloads_under_load tests/end_to_end/test_reload.py $(ARGS)

scale: ready-to-test       ## hold 18,000 sessions over two workers, and meet a storm of 10,000
	$(PY) -m tests.scale $(ARGS)

bench: ready-to-test       ## measure beside other proxies: make bench ARGS=--quick
	$(PY) -m tests.bench $(ARGS)

bench-prepare: ready-to-test   ## fetch proxies for it, name those that Debian has
	$(PY) -m tests.bench --prepare

check: lint types   ## ruff and mypy

lint: ready-to-test   ## ruff
	$(PY) -m ruff check .

types: ready-to-test   ## mypy, strict
	$(PY) -m mypy

format: ready-to-test   ## sort imports, mend what ruff can, seal the page, draw the states
	$(PY) -m ruff check --fix .
	$(PY) tools/seal_page.py
	$(PY) tools/draw_states.py

lock: ready-to-test   ## take today's versions of all packages into requirements/
	$(PY) tools/lock.py

wheel: ready     ## dist/*.whl
	$(PY) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:           ## remove all that was made, .venv included
	rm -rf .venv .tools build dist *.egg-info tests/end_to_end/node/node_modules
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find gateway tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

ready:
	@$(PYTHON) tools/set_up.py run

ready-to-test:
	@$(PYTHON) tools/set_up.py test
