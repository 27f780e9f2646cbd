# `make` alone shows what there is. Every target installs what it needs when root on Debian, and names it otherwise.
.DEFAULT_GOAL := help
# Where rustup puts cargo: a shell that was there before does not look there.
export PATH := $(HOME)/.cargo/bin:$(PATH)
.PHONY: help build lint test model unit reconcilers rig fuzz long rig-long bench demo image clean install-deps

help: ## Show this list
	@printf 'storage-fence-operator: fences a node'"'"'s SAN storage instead of the node\n\n'
	@sed -n 's/^\([a-z -]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F '|' '{ printf "  make %-22s %s\n", $$1, $$2 }'
	@printf '\nWhat is slow to make is kept in $${SFO_CACHE_DIR:-~/.cache/storage-fence-operator}.\n'

build: ## Build the static release binary into out/
	@hack/install-deps build lint
	@mkdir -p out && install -m 0755 "$$(hack/release-binary)" out/storage-fence && ls -l out/storage-fence

lint: ## Check form: rustfmt, clippy, cargo-deny, shellcheck, chart, generated files
	@hack/install-deps lint fuzz
	@hack/lint

test: ## Prove everything: lint, unit, fuzz, reconcilers, rig; ends in "N passed, N failed"
	@hack/install-deps lint fuzz rig
	@hack/prepare
	@hack/test

unit reconcilers rig: ## Run that suite of `make test` alone (ONLY=name: only what has that in its name; KUBERNETES=1.32: the oldest that the chart takes)
	@hack/install-deps lint rig
	@$(if $(KUBERNETES),program=$$(tests/control-plane/build $(KUBERNETES)) && SFO_KUBERNETES=$$program) ONLY=$(ONLY) hack/test $@

long: rig-long ## The long round: what `make test` leaves out because it takes longer
	cargo test --locked --test reconcilers -- long

model: ## Check the step protocol's model further than `make unit` does (a quarter of an hour; BOUNDS=events+crashes)
	@hack/install-deps lint
	SFO_MODEL=$(or $(BOUNDS),1+1) cargo test --locked --lib -- --nocapture agent::model

rig-long: ## The rig's long scenarios, and the contract's main ones on nodes of Debian forky (kernel 7, sanlock 5)
	@hack/install-deps lint rig
	cargo test --locked --test rig -- long
	cargo test --locked --test rig -- run demo unfence stacks races killed-at-the-worst-steps hook-by-sanlock black-hole-ends --suite forky

fuzz: ## Fuzz what reads other programs' bytes (ONLY=target; FUZZ_SECONDS=300 for each)
	@hack/install-deps build fuzz
	@hack/fuzz $(or $(FUZZ_SECONDS),300) $(ONLY)

bench: ## How fast and how large it is: computed alone (seconds), then against the bare ioctls, dmsetup and lsblk on a real node (an hour)
	@hack/install-deps lint rig
	cargo bench --locked --bench inventory
	cargo test --locked --test rig -- run speed scale

demo: ## A real SAN outage on two nodes in VMs, fenced and measured (KEEP=1 leaves the cluster up)
	@hack/install-deps rig
	@hack/prepare
	@KEEP=$(KEEP) cargo test --locked --test rig -- demo

image: ## Pack the image into out/image.tar (docker load -i out/image.tar)
	@hack/install-deps build lint image
	@mkdir -p out && install -m 0644 "$$(hack/image)" out/image.tar && ls -l out/image.tar

clean: ## Remove what was built here (the cache folder stays)
	rm -rf target out

install-deps: ## Install what the other targets need
	@hack/install-deps
