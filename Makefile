# "make demo" shows the product, "make test" tests it. Both need Go and git only.
# "make help" lists the targets.
GO       ?= go
FUZZTIME ?= 10s

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0

.PHONY: help build demo cluster test servers e2e pictures soak lint bench bench-once fuzz fuzz-short mutate

# The date is the commit's, so that a build can be reproduced.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)
DATE    ?= $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null)
STAMP    = accessbroker.internal/internal/service

build: ## build bin/broker: stripped, stamped with version, commit and date
	$(GO) build -trimpath -ldflags '-s -w -X $(STAMP).version=$(VERSION) -X $(STAMP).commit=$(COMMIT) -X $(STAMP).date=$(DATE)' -o bin/broker ./cmd/broker

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

BUILT = $${XDG_CACHE_HOME:-$$HOME/.cache}/access-broker/e2e

demo: ## tell the whole story in the terminal
	@$(MAKE) --no-print-directory --silent build
	@if ls $(BUILT)/vault-*/vault $(BUILT)/minio-*/minio $(BUILT)/spire-*/spire-agent >/dev/null 2>&1; then \
		./bin/broker demo --all-but-last && \
		echo && echo "The next two chapters start real servers, which takes a moment." && \
		(cd e2e && STORY=1 $(GO) test -count=1 -run '^TestStory$$') && \
		./bin/broker demo --last 13; \
	else \
		./bin/broker demo || exit; \
		echo; echo "Two more chapters need real servers: a database user of Vault, and a session"; \
		echo "at S3. Run make servers (about 25 minutes, once), then make demo again."; \
	fi

cluster: build ## run three brokers on PostgreSQL with a standby, behind HAProxy, on this machine
	@cd e2e && $(GO) build -o ../bin/cluster ./cmd/cluster
	@./bin/cluster run -broker bin/broker

# The race detector covers all but the machine-made code of SQLite, in which it finds
# nothing and spends most of its time. By default, it also delays the end of every
# process by a second.
RACE = -race -gcflags=modernc.org/sqlite/lib=-race=false -gcflags=modernc.org/libc/...=-race=false -gcflags=modernc.org/memory=-race=false
export GORACE ?= atexit_sleep_ms=0

test: ## run the tests that need nothing but Go, with the race detector
	$(GO) test $(RACE) ./...

SERVERS_LIMIT ?= 1h
servers: ## build the real servers that make e2e starts, once, into the user's cache
	cd e2e && $(GO) run ./cmd/servers -limit $(SERVERS_LIMIT)

e2e: servers ## run the flows against real servers; screenshots of the pages go to bin/e2e
	cd e2e && $(GO) test -count=1 -timeout 40m -parallel 5 -v -artifacts -outputdir "$$(mkdir -p ../bin/e2e && cd ../bin/e2e && pwd)" ./...

pictures: build ## make the pictures of the README and docs from the real demo and pages, with Chromium
	cd e2e && $(GO) run ./cmd/pictures -broker ../bin/broker -dir ../docs/pictures

lint: ## run gofmt, vet, staticcheck; govulncheck where its database can be reached
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "not gofmt-ed:"; echo "$$unformatted"; exit 1; }
	$(GO) mod verify
	$(GO) vet ./...
	cd e2e && $(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	cd e2e && $(GO) run $(STATICCHECK) ./...
	@.ci/vulncheck $(GO) $(GOVULNCHECK)

bench: ## measure speed; it is reported and never asserted
	RECORDS=1000000 $(GO) test -run '^$$' -bench . -benchmem ./policy ./attest ./issuers/token ./audit/... ./store ./broker ./verify ./egress
	$(GO) test -run '^$$' -bench AddedLatency -benchtime 5000x ./egress/forward
	$(GO) test -run '^$$' -bench ProxyBodies -benchtime 160x -timeout 30m ./egress/forward
	$(GO) test -run '^$$' -bench . ./egress/scrub
	$(GO) test -run '^$$' -bench . -benchtime 1x ./server ./broker/campaign
	$(GO) test -run '^$$' -bench . -skip Waiting -benchtime 20000x ./internal/brokertest
	$(GO) test -run '^$$' -bench Waiting -benchtime 1x ./internal/brokertest
	cd e2e && $(GO) test -count=1 -run '^$$' -bench . -benchtime 1x -timeout 30m -v ./bench
	cd e2e && $(GO) test -count=1 -tags bench -run '^(TestTenThousandDue|TestOwnLatency|TestTwoHundredCredentials)$$' -timeout 30m -v .

# -short makes the fixtures small. A run without any benchmark fails.
BENCHED = grep -rl --include='*_test.go' --exclude-dir=e2e '^func Benchmark' . | xargs -n1 dirname | sort -u
bench-once: ## run every benchmark that needs only Go once, to prove that it runs
	packages=$$($(BENCHED)); test -n "$$packages" && $(GO) test -short -run '^$$' -bench . -benchtime 1x $$packages

FUZZED = grep -rl --include='*_test.go' --exclude-dir=e2e '^func Fuzz' . | xargs -n1 dirname | sort -u
fuzz: ## run every fuzz target for FUZZTIME (10s), from its kept corpus
	@$(FUZZED) | .ci/fuzz $(GO) $(FUZZTIME)

# A number of inputs, because a target may fail when its time ends in the middle of one.
fuzz-short: ## run every fuzz target on 1,000 inputs, from its kept corpus
	@$(FUZZED) | .ci/fuzz $(GO) 1000x 2

# The packages whose tests kill processes, lose answers, race or draw at random, and
# the crash loop: a broker under load is killed, suspended, loses its disk and its
# database, for CRASH_LOOP (5m) in each round. A failure prints the seed of the
# shuffled order and of the test.
SOAK       ?= 30m
CRASH_LOOP ?= 5m

# Before them, for CHECKER_SOAK (1h), the checker of package e2e/checker: three replicas on
# PostgreSQL under load and faults, whose memory, goroutines, open files and connections
# to the database must stay flat.
CHECKER_SOAK ?= 1h
soak: ## the checker for an hour, then the tests that draw at random, shuffled, with the race detector, for SOAK (30m)
	cd e2e && CHECKER_SOAK=$(CHECKER_SOAK) $(GO) test -count=1 -timeout 0 -v -run '^TestSoak$$' ./checker
	@timeout $(SOAK) sh -c 'n=0; while $(GO) test $(RACE) -shuffle=on -count=1 ./broker/... ./store/... ./audit/... ./policy/... ./issuers/... && \
		(cd e2e && CRASH_LOOP=$(CRASH_LOOP) LEAK_SECRETS=1000 LEAK_CALLS=100000 $(GO) test -count=1 -timeout 0 -run "^(TestCrashLoop|TestLeakHunt)\$$" .); do \
		n=$$((n+1)); echo "soak: run $$n passed"; done; exit 1'; \
	status=$$?; if [ $$status -eq 124 ]; then echo "soak: $(SOAK) without a failure"; else exit $$status; fi

# Read internal/mutate/main.go first. TESTS names further packages whose tests run.
PKG ?= ./policy
mutate: ## change the code of PKG, one mistake at a time, and list what no test notices (N=60 draws 60)
	$(GO) run ./internal/mutate -n $(or $(N),0) -seed $(or $(SEED),1) -files '$(FILES)' -total $(or $(TIME),30m) $(PKG) $(TESTS)
