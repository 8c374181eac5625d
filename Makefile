# Sluice. `make help` lists the targets; the text comes from the ## comments.

DATA      ?= data/dev
MQTT_PORT ?= 1883
HTTP_PORT ?= 8080
SIMULATE  ?= 100
API       := http://127.0.0.1:$(HTTP_PORT)
VERSION   := $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.0.0-dev)
GO        ?= go
SLUICE    := bin/sluice
DEV       := $(SLUICE) dev --data $(DATA) --mqtt-port $(MQTT_PORT) --http-port $(HTTP_PORT) --simulate $(SIMULATE)

.DEFAULT_GOAL := help
.PHONY: help build run up status logs health smoke-test down test test-deps test-unit test-e2e faults sim mutations FORCE soak lint fmt bench bench-failover bench-store fuzz clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/sluice, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o $(SLUICE) ./cmd/sluice

run: build ## three nodes in three zones on loopback with 100 simulated devices, until Ctrl-C
	@exec $(DEV)

up: build ## the same in the background
	@deploy/dev.sh up $(DATA) $(API) $(DEV)

status: ## nodes, shards and ledger of the cluster that up or run started
	@$(SLUICE) status --api $(API)

logs: ## follow the nodes' logs
	@tail -n 20 -F $(DATA)/dev.log $(DATA)/n*.log

health: ## ask every node whether it is healthy and ready
	@deploy/dev.sh health $(DATA)

smoke-test: ## publish through each node, read back through another
	@$(SLUICE) smoke-test --data $(DATA)

down: ## stop the cluster that up started
	@deploy/dev.sh down $(DATA)

test: test-deps test-unit test-e2e ## install what the tests need, and run all of them

test-deps: ## install what the tests need (Debian packages, npm packages)
	@deploy/test-deps.sh

test-unit: ## the tests of the packages
	$(GO) vet ./...
	$(GO) test -p 2 -timeout 20m $$($(GO) list ./... | grep -v -e /e2e -e '/bench/faults$$')

test-e2e: ## the tests that run real processes
	$(GO) test -p 2 -count 1 -timeout 30m ./e2e ./bench/faults

faults: build bin/sluice-mutations ## every fault of the table once, on power-loss disks (ONLY=F1,F4 SEED=7 choose)
	$(GO) run ./bench/faults/cmd/faults --binary $(SLUICE) --wrong bin/sluice-mutations $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED))

bin/sluice-mutations: FORCE
	CGO_ENABLED=0 $(GO) build -trimpath -tags mutations -o $@ ./cmd/sluice

FORCE:

sim: ## whole nodes, and shards alone, in simulated time under faults: about two minutes (SIM_SEEDS=8 of each, SIM_SEED=7 for one)
	SIM_SEEDS=$${SIM_SEEDS:-8} $(GO) test -count 1 -timeout 60m -v -run 'SurviveWhatever|LoseNothingWhatever|DisksThatLie' ./node ./shard/sim

mutations: bin/sluice-mutations ## show that every deliberate mistake is noticed by a check
	$(GO) run ./bench/faults/cmd/faults mutations --binary bin/sluice-mutations --dir $${TMPDIR:-/tmp}/sluice-mutations

soak: build bin/sluice-mutations ## random faults for ten minutes, in one cluster and from the table (SLUICE_SOAK_SEED, SLUICE_SOAK_DURATION)
	@seed=$${SLUICE_SOAK_SEED:-$$(date +%s)}; length=$${SLUICE_SOAK_DURATION:-10m}; set -e; \
	SLUICE_SOAK_DURATION=$$length SLUICE_SOAK_SEED=$$seed $(GO) test -count 1 -timeout 0 -v -run Soak ./e2e; \
	$(GO) run ./bench/faults/cmd/faults --binary $(SLUICE) --wrong bin/sluice-mutations --seed $$seed --for $$length

lint: ## gofmt, vet, go mod tidy and golangci-lint (built from source on first use)
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "run make fmt"; exit 1; }
	$(GO) vet ./...
	$(GO) mod tidy -diff && cd bench/rivals && $(GO) mod tidy -diff
	$(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 run ./...

fmt: ## gofmt everything
	gofmt -w .

bench-failover: build ## 50 kills of a leader's node: time until publishes are acknowledged again; elections of a busy machine
	$(SLUICE) bench failover --kills 50
	$(SLUICE) bench elections --duration 1m

bench: build ## measure acknowledged messages per second, latency, CPU and log bytes per message
	$(SLUICE) bench ingest

bench-store: ## one device's last hour out of 100 M samples: p50, p99, CPU, and the load; builds 400 MB once, see SLUICE_BENCH_STORE
	@uptime
	SLUICE_BENCH_STORE=$${SLUICE_BENCH_STORE:-$${TMPDIR:-/tmp}/sluice-bench-store} $(GO) test -run x -bench LastHourOfLarge -benchtime 150x ./store/parquet
	@uptime

fuzz: ## every fuzz target for 20 seconds
	@deploy/fuzz.sh 20s

clean: ## remove what the build and the local cluster made
	rm -rf bin data
