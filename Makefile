# make help lists the targets. Those that say root install packages, mount or run containers.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PREFIX ?= /usr/local
export THAW_CORPUS ?= /var/cache/thaw/corpus
export THAW_CONTAINERD ?= /var/cache/thaw/containerd

# What tests may not skip: see internal/testenv.
REQUIRE ?= root,fanotify,fuse,runtime,corpus,containerd,browser,tool
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOTEST ?= go test
TEST_PACKAGES ?= ./...
TEST_FLAGS ?=
BENCH ?= .
BENCHTIME ?= 1s
FUZZTIME ?= 10s
IMAGES ?= nginx node
# How long make chaos torments each mount path (all of them, or CHAOS_MOUNT); CHAOS_SEED of an earlier run repeats it.
CHAOS ?= 60s
CHAOS_MOUNT ?=
CHAOS_SEED ?=

.PHONY: build
build: ## build bin/thaw, static
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/thaw ./cmd/thaw

.PHONY: build-bench
build-bench: build ## build also bin/thaw-bench-containerd: what thaw bench --vs-containerd needs
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/thaw-bench-containerd ./cmd/thaw-bench-containerd

.PHONY: build-otel
build-otel: build ## build also bin/thaw-otel, which sends traces of starts to OpenTelemetry
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/thaw-otel ./cmd/thaw-otel

.PHONY: build-cloud
build-cloud: build ## build also bin/thaw-cloud: what thaw measure ecs and k8s, and thaw emit cloudwatch, need to speak to AWS and Kubernetes
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/thaw-cloud ./cmd/thaw-cloud

.PHONY: install
install: build ## put it into PREFIX/bin (/usr/local)
	install -D -m 0755 bin/thaw '$(DESTDIR)$(PREFIX)/bin/thaw'
	[ ! -e bin/thaw-cloud ] || install -D -m 0755 bin/thaw-cloud '$(DESTDIR)$(PREFIX)/bin/thaw-cloud'
	[ ! -e bin/thaw-otel ] || install -D -m 0755 bin/thaw-otel '$(DESTDIR)$(PREFIX)/bin/thaw-otel'

.PHONY: test
test: ## all tests, from nothing (root); TEST_PACKAGES=./cmd/thaw TEST_FLAGS='-run TestKill' for some
	scripts/setup.sh run corpus node test containerd
	scripts/corpus.sh nginx node
	scripts/containerd.sh install '$(THAW_CONTAINERD)'
	THAW_REQUIRE='$(REQUIRE)' $(GOTEST) -timeout 30m $(TEST_FLAGS) $(TEST_PACKAGES)

.PHONY: race
race: ## all tests with the race detector (root)
	scripts/setup.sh run corpus node test containerd race
	scripts/corpus.sh nginx node
	scripts/containerd.sh install '$(THAW_CONTAINERD)'
	CGO_ENABLED=1 THAW_REQUIRE='$(REQUIRE)' $(GOTEST) -race -timeout 20m ./...

.PHONY: chaos
chaos: ## kill, stop and cut off everything under readers (root); CHAOS=60s a mount path, CHAOS_MOUNT=fuse, CHAOS_SEED=N
	scripts/setup.sh run corpus node test
	scripts/corpus.sh nginx node
	THAW_REQUIRE='$(REQUIRE)' THAW_CHAOS='$(CHAOS)' THAW_CHAOS_SEED='$(CHAOS_SEED)' $(GOTEST) -count 1 -timeout 0 -v -run '^TestChaos$$/$(CHAOS_MOUNT)' ./cmd/thaw

.PHONY: check
check: ## what is checked without running the program: format, vet, staticcheck, layering, manifests, scripts
	scripts/setup.sh check
	@unformatted=$$(gofmt -l cmd internal); [ -z "$$unformatted" ] || { echo "run gofmt -w on:" $$unformatted >&2; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...
	$(GOTEST) ./internal/depcheck
	cd deploy/kubernetes/check && $(GOTEST) -count 1 ./... # it reads files outside its module, which the cache does not see
	shellcheck scripts/*.sh .ci/run

.PHONY: bench
bench: ## benchmarks on the real images (root); BENCH=REGEX BENCHTIME=1s
	scripts/setup.sh run corpus node
	scripts/corpus.sh nginx node
	$(GOTEST) -p 1 -run '^$$' -bench '$(BENCH)' -benchtime '$(BENCHTIME)' -benchmem -timeout 60m ./...

.PHONY: bench-start
bench-start: build ## time starts in all modes with thaw bench (root); RUNS=5 NET=cloud IMAGES="nginx node"
	scripts/setup.sh run corpus node
	scripts/corpus.sh $(IMAGES)
	scripts/bench-start.sh $(IMAGES)

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (10s)
	scripts/fuzz.sh '$(FUZZTIME)'

.PHONY: demo
demo: ## start a real image eagerly and lazily, side by side (root); DEMO_IMAGE=nginx DEMO_NET=cloud
	scripts/demo.sh

.PHONY: clean
clean: ## remove what was built here
	rm -rf bin

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13
