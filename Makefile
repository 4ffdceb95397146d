# SPDX-License-Identifier: Apache-2.0
# All targets do their own set-up, on a Debian 12 or 13 machine, as root. What takes long is built once and
# kept below /var/cache/hypemand-build ($HYPEMAND_BUILD_CACHE) by content.

SUITES = bookworm trixie
# make test-new-machine SUITE=trixie TARGETS='demo test-local'
SUITE = bookworm
TARGETS = test
# for pytest: make test-host SUITES=trixie ARGS='-k journal -x'
ARGS =

# with a place for what Python and pytest compile: half of what it takes to collect the tests
RUN = venv=$$(tools/setup) && PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX="$(CURDIR)/build/pycache" "$$venv/bin/python"
PYTEST = $(RUN) -m pytest -p no:cacheprovider --durations=15
SUITE_OPTIONS = $(SUITES:%=--suite=%)
# side by side, in the groups of tests/schedule.py; ARGS='-n 0 --pdb' for one process
GROUPS = --numprocesses=4 --dist=loadgroup

.PHONY: help parts setup deb compiled test test-new-machine test-local test-unit test-host test-warm test-cluster durations lint
.PHONY: check-guest check-nss check-launcher format demo bench bench-hostile bench-many bench-health bench-limits bench-standby bench-warm bench-compare soak clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# what is to come, before anything of it
parts:
	@for target in $(filter demo test,$(MAKECMDGOALS)); do tools/parts "$$target" $(SUITES); done

setup: ## install what building and testing need
	@tools/setup

deb: ## build the Debian packages into dist/
	@tools/setup >/dev/null
	@tools/build-debs

# once for all processes that collect them: to compile the tests takes three times as long as to load them
compiled:
	@[ -d build/pycache ] || { $(RUN) -m pytest -p no:cacheprovider --collect-only -q >/dev/null 2>&1 || :; }

test: parts ## lint, guest C tests, unit tests, and tests on Debian 12 and 13
	@tools/setup >/dev/null
	@$(MAKE) --no-print-directory --jobs=2 deb compiled
	@$(RUN) -m tests.host.roots $(SUITES)
	@$(PYTEST) $(GROUPS) $(SUITE_OPTIONS) $(ARGS)

test-new-machine: ## the same in a clean Debian root: SUITE=trixie for Debian 13, TARGETS=... for other targets
	@tools/setup new-machine
	@setpriv --pdeathsig TERM /usr/bin/python3 -m tests.host.newmachine $(SUITE) make $(TARGETS)

test-local: deb ## lint, guest C tests and unit tests: all that needs no test host
	@$(PYTEST) -m 'not host' $(GROUPS) $(ARGS)

# those of what a start is followed by
WARM = lifecycle guest_faults systemd_mode volumes network
test-warm: deb ## tests of VMs, with VMs that start warm
	@$(PYTEST) $(WARM:%=tests/host/test_%.py) --warm $(GROUPS) $(SUITE_OPTIONS) $(ARGS)

test-cluster: deb ## VMs in a cluster of three hosts with corosync and Pacemaker, which are killed, shut down and cut off
	@$(PYTEST) tests/host/test_cluster.py --long $(SUITE_OPTIONS) $(ARGS)

durations: ## run all tests and record how long each group of them takes, by which they are scheduled
	@$(MAKE) --no-print-directory test ARGS='--record-durations $(ARGS)'

test-unit: ## unit tests alone, in seconds: those that send through the kernel are left to test
	@$(PYTEST) tests/unit -m 'not netns' --numprocesses=5 --dist=worksteal $(ARGS)

test-host: deb ## the tests on real Debian alone; SUITES=trixie for one release
	@$(PYTEST) -m host $(GROUPS) $(SUITE_OPTIONS) $(ARGS)

lint: deb ## all linters
	@$(PYTEST) tests/lint $(ARGS)

check-guest: ## the tests of the guest's C under sanitizers
	@tools/setup >/dev/null
	@$(MAKE) --no-print-directory -C guest check

check-nss: ## the same for the host's module of names
	@tools/setup >/dev/null
	@$(MAKE) --no-print-directory -C nss check

check-launcher: ## the same for what VMs are started by
	@tools/setup >/dev/null
	@$(MAKE) --no-print-directory -C launcher check

format: ## bring Python and C into shape
	@$(RUN) -m ruff format .
	@$(MAKE) --no-print-directory -C guest format
	@$(MAKE) --no-print-directory -C nss format
	@$(MAKE) --no-print-directory -C launcher format

demo: parts deb ## the main job on a fresh test host, from package install to Running
	@$(RUN) -m bench.demo $(ARGS)

soak: deb ## 200 kills of the daemon, VMMs and what they stand on, at random moments; ARGS='--seed N --kills N --rounds N'
	@$(RUN) -m tests.host.soak $(SUITES:%=--suite=%) $(ARGS)

bench: deb ## times and memory against bare QEMU, in one run
	@$(RUN) -m bench.measure $(ARGS)

bench-hostile: deb ## the daemon's event loop while a guest does its worst, and how exposed each unit is
	@$(RUN) -m bench.hostile $(ARGS)

bench-many: deb ## the daemon where a thousand VMs are defined and forty of them run
	@$(RUN) -m bench.many $(ARGS)

bench-limits: deb ## limits of disk IO and CPU, and memory that returns to the host
	@$(RUN) -m bench.limits $(ARGS)

bench-standby: deb ## standby, restore and forks of VMs beside the same by hand
	@$(RUN) -m bench.standby $(ARGS)

bench-warm: deb ## warm starts beside bare QEMU and beside boots
	@$(RUN) -m bench.warm $(ARGS)

bench-health: deb ## what health checks of forty VMs, each second, cost the daemon
	@$(RUN) -m bench.health $(ARGS)

bench-compare: deb ## starts by another commit's packages and by these, in turns: ARGS=COMMIT
	@$(RUN) -m bench.compare $(ARGS)

clean: ## remove what was built in this checkout; the cache stays
	@rm -rf dist build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +
	@$(MAKE) --no-print-directory -C guest clean
	@$(MAKE) --no-print-directory -C nss clean
	@$(MAKE) --no-print-directory -C launcher clean
