# What people do with this repository. Everything real is in scripts/, xtask and the programs; this only names it.
# Cargo's target directory may be elsewhere (CARGO_TARGET_DIR).

TARGET ?= $(or $(CARGO_TARGET_DIR),target)
BIN := $(TARGET)/debug
LAB := $(BIN)/fleetward-lab
# Every suite that there is, so that none can be forgotten here.
SUITES := $(sort $(basename $(notdir $(wildcard crates/e2e/tests/*.rs))) \
	$(notdir $(patsubst %/main.rs,%,$(wildcard crates/e2e/tests/*/main.rs))))
LANES := scripts/test-lanes

.PHONY: help packages build debs demo test fuzz soak bench bench-scale down clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

packages: ## install the Debian packages that are missing
	@scripts/install-packages

# In the programs, where Node is; they say how to get it where it is not.
.PHONY: console
console: ## build the pages of the console (needs Node 18 or newer with npm)
	@scripts/console

build: packages console ## build all programs
	cargo build --workspace --locked

debs: packages ## build the Debian packages fleetward and fleetward-agent into target/debian
	@scripts/debs

demo: build ## two hosts, a VM with an encrypted TPM, a live migration; leaves the lab up
	$(LAB) demo

# Programs as tests need them, tests included: built without them first, everything above tokio would be built twice.
.PHONY: build-tests
build-tests: packages console
	@scripts/room-for-tests $(TARGET)
	cargo build --workspace --all-targets --locked

test: build-tests ## everything that must hold before a change lands (goal: 50 minutes on two cores); needs root
	@scripts/labs-of-tests $(LAB) clear
	cargo xtask lints
	$(LANES) crates fuzz $(SUITES)
	@scripts/labs-of-tests $(LAB) none

fuzz: packages ## every parser of foreign bytes by coverage, an hour each, two at once (FLEETWARD_FUZZ_SECONDS says otherwise)
	scripts/fuzz run $${FLEETWARD_FUZZ_SECONDS:-3600}

soak: build-tests ## the end-to-end tests with every point of every job walked by kill -9, an upgrade from an earlier version, a whole Debian, hosts with AppArmor, known vulnerabilities (hours)
	@scripts/install-packages soak
	scripts/cargo-deny advisories
	@scripts/labs-of-tests $(LAB) clear
	FLEETWARD_MUTANTS=200 cargo test --workspace --locked --test conversion
	FLEETWARD_E2E_SOAK=1 cargo test --workspace --locked --test protector_open pfx_elsewhere
	FLEETWARD_E2E_SOAK=1 $(LANES) $(SUITES)
	@scripts/labs-of-tests $(LAB) none

bench: packages ## ratios against virt-install and virsh migrate, and the size of the idle services
	cargo build --workspace --release --locked
	$(TARGET)/release/fleetward-bench

bench-scale: packages ## what a controller needs for fleets of several sizes (FLEETWARD_SCALE_SIZES says which), as a table in target/scale.md
	cargo build --workspace --release --locked --bin fleetward --bin fleetward-sim
	rm -rf $(TARGET)/scale
	$(TARGET)/release/fleetward-sim scale --program $(TARGET)/release/fleetward --work $(TARGET)/scale \
		--sizes $${FLEETWARD_SCALE_SIZES:-100x20,500x20,1000x25} --commit "$$(git rev-parse --short HEAD)" \
		--markdown $(TARGET)/scale.md --json $(TARGET)/scale.json

down: ## end the demo and the lab of the default name
	@if [ -x $(LAB) ]; then $(LAB) down --name demo && $(LAB) down; fi

clean: down ## the same, and remove what was built
	cargo clean
