# Everything that a developer or a check runs. `make help` lists the targets.

SHELL := /bin/sh
GO ?= go
BIN := bin
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)
FUZZTIME ?= 60s

# The version comes from git describe above; the go command's own look at git
# fails where the checkout belongs to somebody else.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

# Packages below test/ run the built binary: pass 2, without the race detector,
# which the binary would not have anyway and which would falsify their timing.
MODULE := github.com/lacunafs/lacuna
PKGS = $(shell $(GO) list ./... | grep -v '^$(MODULE)/test\(/\|$$\)')
E2E_PKGS = $(shell $(GO) list ./... | grep '^$(MODULE)/test\(/\|$$\)')

# Test binaries run apart from each other's mounts.
APART = -exec=$(CURDIR)/scripts/apart.sh

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' Makefile

.PHONY: build
build: ## the binary, static, as bin/lacuna
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/lacuna ./cmd/lacuna

# What the demo's image is made of: machine, or debian (by debootstrap).
DEMO_ROOT ?= machine

.PHONY: demo
demo: ## mount an image from a local registry, run programs of it; then attach a file (root). KEEP=1 keeps the registry
	@[ "$$(id -u)" -eq 0 ] || { echo "make demo: mounting needs root" >&2; \
		echo "hint: sudo env PATH=\"\$$PATH\" make demo" >&2; exit 3; }
	@scripts/deps.sh demo
	@$(MAKE) --no-print-directory build
	@CGO_ENABLED=0 $(GO) build -trimpath -o $(BIN)/demo ./demo
	$(BIN)/demo -lacuna $(BIN)/lacuna -root $(DEMO_ROOT) $(if $(KEEP),-keep)
	@echo
	$(if $(KEEP),@:,$(BIN)/lacuna demo)

.PHONY: test
test: ## linters, vet, all tests; installs what they need when root
	@scripts/deps.sh test
	@$(MAKE) --no-print-directory lint vet build soci $(BIN)/testcount
	@$(BIN)/testcount \
		-pass "-race -count=1 -timeout=15m $(APART) $(PKGS)" \
		$(if $(strip $(E2E_PKGS)),-pass "-count=1 -timeout=30m -p=1 $(APART) $(E2E_PKGS)")

.PHONY: test-long
test-long: ## all tests with the long ones (build tag long): storms, limits
	@scripts/deps.sh test
	@$(MAKE) --no-print-directory build soci $(BIN)/testcount
	@$(BIN)/testcount \
		-pass "-race -tags=long -count=1 -timeout=60m $(APART) $(PKGS)" \
		$(if $(strip $(E2E_PKGS)),-pass "-tags=long -count=1 -timeout=120m -p=1 $(APART) $(E2E_PKGS)")

.PHONY: lint
lint: $(BIN)/golangci-lint ## golangci-lint as pinned in tools/go.mod
	$(BIN)/golangci-lint run ./...

.PHONY: vet
vet: ## go vet
	$(GO) vet -tags=long ./...

.PHONY: bench
bench: ## benchmarks, as ratios in one run (root)
	@scripts/deps.sh bench
	@$(MAKE) --no-print-directory build soci
	$(GO) test -run='^$$' -bench=. -timeout=60m ./...
	$(GO) run ./bench -lacuna $(BIN)/lacuna

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (60s)
	@scripts/fuzz.sh $(FUZZTIME)

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN)

# The linter is a module of its own, so that its some 200 dependencies stay out
# of go.mod. A cold build takes minutes; the file stays until the pin changes.
$(BIN)/golangci-lint: tools/go.mod tools/go.sum
	@mkdir -p $(BIN)
	$(GO) -C tools build -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

# SOCI, which tests compare with: a module of its own too, with cgo and zlib. Tests
# build what is missing; this does it before their time is counted.
.PHONY: soci
soci: ## the programs of tools/soci, which tests compare with
	@mkdir -p $(BIN)
	cd tools/soci && CGO_ENABLED=1 GOFLAGS= GOWORK=off $(GO) build -buildvcs=false -o ../../$(BIN)/soci-files .
	cd tools/soci && CGO_ENABLED=1 GOFLAGS= GOWORK=off $(GO) build -buildvcs=false -o ../../$(BIN)/soci-client ./client
	cd tools/soci && CGO_ENABLED=0 GOFLAGS= GOWORK=off $(GO) build -buildvcs=false -o ../../$(BIN)/containerd ./containerd
	cd tools/soci && CGO_ENABLED=1 GOFLAGS= GOWORK=off $(GO) build -buildvcs=false -o ../../$(BIN)/soci github.com/awslabs/soci-snapshotter/cmd/soci

$(BIN)/testcount: $(wildcard scripts/testcount/*.go)
	@mkdir -p $(BIN)
	$(GO) build -o $@ ./scripts/testcount
