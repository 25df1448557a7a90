# Every command that people and CI use; `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help demo demo-map pictures test repo dataplane interop kernels e2e soak upgrade bench lint doc deny crds manifests image cli cli-check cli-archives install lab lab-up lab-down prerequisites build-prerequisites

comma := ,
NODES ?= 2
LAB := target/lab/bin/lab

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: ## taps a web server on a two-node Kubernetes on this machine (KEEP=1 leaves it up), or on your cluster: CLUSTER=current
	@case "$(CLUSTER)" in \
	  "" | lab) tests/demo/lab.sh ;; \
	  current) tests/demo/current.sh ;; \
	  *) echo 'CLUSTER is "lab", the default, or "current"' >&2; exit 2 ;; \
	esac

demo-map: ## who calls whom in a shop of 12 services, on a two-node Kubernetes on this machine (KEEP=1 leaves it up)
	@tests/demo/map.sh

pictures: prerequisites ## the pictures of docs/collector.md, from the collector's page in a browser
	cargo build -p podtap-collector --locked
	cargo test -p podtap-tests --test collector --locked -- --ignored page::pictures

test: ## every tier
	@tests/run.sh

repo: build-prerequisites ## tests without privileges
	cargo test --workspace --exclude podtap-tests --locked
	cargo test -p podtap-tests --lib --bins --test repo --locked

dataplane: prerequisites ## tests in network namespaces (root)
	cargo build -p tap-helper -p podtap-collector -p podtap-exporter --locked
	cargo test -p podtap-tests --test dataplane --test collector --locked

# What others wrote is installed once, in target/interop.
interop: prerequisites ## PodTap with programs of others that Debian does not have built (root; not part of `make test`; TESTS=kafka for a part)
	@tests/prerequisites.sh interop
	tests/interop/prepare.sh
	cargo build -p podtap-collector -p podtap-exporter --locked
	cargo test -p podtap-tests --test interop --locked -- $(TESTS)

kernels: prerequisites ## the dataplane tier on Debian's stock kernel, emulated (TESTS=destinations for a part; `make test` runs a part)
	cargo build -p tap-helper --locked
	tests/vm/run.sh $(TESTS)

# Their tests wait most of the time, and those of the e2e tier that must be alone make the others wait as well.
dataplane: export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(nproc))))
e2e: export RUST_TEST_THREADS ?= $(shell echo $$(($$(nproc) + 1)))

# These test and measure the release build, not the one that is faster to build.
e2e soak upgrade bench: export PROFILE = release

# CoreDNS is built before the tests, which a compiler would disturb.
e2e: prerequisites image install ## end-to-end tests in the lab, which stays up
	cargo build -p podtap-collector --locked
	$(LAB) dns
	cargo test -p podtap-tests --test e2e --locked -- --skip residue::
	cargo test -p podtap-tests --test e2e --locked -- --ignored residue::

soak: image install ## random changes and faults in the lab (MINUTES=30, SEED=N to repeat a run)
	PODTAP_SOAK_MINUTES=$(or $(MINUTES),30) $(if $(SEED),PODTAP_SOAK_SEED=$(SEED)) \
	  cargo test -p podtap-tests --test e2e --locked -- soak:: --nocapture

upgrade: image install ## upgrades another revision to this one, back and again, under traffic in the lab (FROM=DIR, a checkout of it)
	$(MAKE) -C $(or $(FROM),$(error FROM=DIR names a checkout of another revision)) --no-print-directory lab && cd $(FROM) && deploy/image.sh --lab
	$(LAB) load $(FROM)/target/lab/podtap-image.tar
	PODTAP_OTHER=$(abspath $(FROM)) cargo test -p podtap-tests --test e2e --locked -- --ignored rollout::another --nocapture

# The collector is measured without the lab.
BENCH_NEEDS_LAB = $(if $(ROWS),$(filter-out ring file,$(subst $(comma), ,$(ROWS))),all)

bench: prerequisites $(if $(COMPARE)$(IMAGES),,$(if $(BENCH_NEEDS_LAB),install)) ## the comparison tables, printed and in target/bench (ROWS=tcp,udp ROUNDS=5 SECONDS_EACH=1 for a part or more; in turn, COMPARE=DIR: this checkout and the one in DIR, IMAGES=A,B: two archives)
	$(if $(COMPARE)$(IMAGES),tests/bench/compare.sh $(if $(COMPARE),checkouts $(COMPARE),images $(IMAGES)) $(or $(ROUNDS),5) $(or $(ROWS),tcp$(comma)latency$(comma)udp),\
	cargo build --release -p podtap-collector --locked && cargo run -p podtap-tests --bin bench --locked -- $(if $(ROWS),--rows $(ROWS)) $(if $(ROUNDS),--rounds $(ROUNDS)) \
	  $(if $(SECONDS_EACH),--seconds $(SECONDS_EACH)) $(if $(MINUTES),--minutes $(MINUTES)))

lint: build-prerequisites ## formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

doc: build-prerequisites ## rustdoc of every crate, private items included, without warnings; in target/doc
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked

deny: ## licences, sources and banned crates of all dependencies (deny.toml)
	@tests/deny.sh

crds: build-prerequisites ## crds/ from the Rust types
	cargo run -q -p podtap-controller --locked -- crds --output crds

manifests: crds lab ## the chart's copy of crds/, and deploy/install.yaml from the chart
	$(LAB) binaries
	deploy/render.sh

prerequisites: ## the Debian packages that the tests call
	@tests/prerequisites.sh

build-prerequisites:
	@tests/prerequisites.sh build

lab:
	@cargo build -q -p podtap-lab --locked
	@mkdir -p target/lab/bin && ln -sf "$$(pwd)/target/debug/lab" $(LAB)

lab-up: lab ## a real Kubernetes of NODES nodes on this machine; kubeconfig in target/lab/kubeconfig
	$(LAB) up --nodes $(NODES)

lab-down: lab ## ends the lab, and restores what it changed on the machine
	$(LAB) down

image: lab build-prerequisites ## target/podtap-image.tar, loadable by ctr, docker, kind and k3s
	deploy/image.sh

# For tests and for work on it: not optimized.
cli: lab ## kubectl-podtap and its completion in target/lab/bin, for PATH
	cargo build -q -p kubectl-podtap --locked
	ln -sf "$$(pwd)/target/debug/kubectl-podtap" target/lab/bin/kubectl-podtap
	ln -sf kubectl-podtap target/lab/bin/kubectl_complete-podtap

cli-check: cli ## manual pages and krew manifest of kubectl-podtap
	$(LAB) krew
	tests/packages.sh

cli-archives: cli-check ## target/dist: kubectl-podtap for other machines (linux, windows), and its manifest for krew
	deploy/cli/archives.sh

# The demo installs the plain manifest, which Helm takes over.
install: build-prerequisites lab-up cli ## installs PodTap in the lab, as a user would
	deploy/image.sh --lab
	$(LAB) load target/lab/podtap-image.tar
	target/lab/bin/kubectl --kubeconfig target/lab/kubeconfig apply -f deploy/namespace.yaml
	target/lab/bin/helm upgrade --install podtap deploy/chart/podtap --namespace podtap-system --take-ownership \
	  --kubeconfig target/lab/kubeconfig --set image.pullPolicy=Never,image.tag=$$(cat target/lab/podtap-image.tag) --wait --timeout 120s
