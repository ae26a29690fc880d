# The commands of the README. Everything honours CARGO_TARGET_DIR.
.PHONY: build quickstart dist setup test test-nightly bench
CARGO ?= cargo

build:
	scripts/setup build
	$(CARGO) build --release --locked

quickstart:
	scripts/setup quickstart
	$(CARGO) build --release --locked
	scripts/quickstart

dist:
	scripts/setup dist
	scripts/dist

setup:
	scripts/setup test

test: setup
	scripts/test

test-nightly: setup
	scripts/test --nightly

bench:
	scripts/setup bench
	$(CARGO) build --release --locked
	$(CARGO) build --release --locked -p executor --example limits --example step
	$(CARGO) build --release --locked -p exporter --example packing
	bench/run
