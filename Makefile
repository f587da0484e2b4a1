# Two commands are all the set-up there is: make demo, make test.
GO       ?= go
FUZZTIME ?= 10s

STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.9.0

.PHONY: build demo test servers e2e lint bench fuzz mutate

# The date is the commit's, so that a build can be reproduced.
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)
DATE    ?= $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null)
STAMP    = accessbroker.internal/internal/service

build: ## the one binary, bin/broker: stripped, stamped with version, commit and date
	$(GO) build -trimpath -ldflags '-s -w -X $(STAMP).version=$(VERSION) -X $(STAMP).commit=$(COMMIT) -X $(STAMP).date=$(DATE)' -o bin/broker ./cmd/broker

BUILT = $${XDG_CACHE_HOME:-$$HOME/.cache}/access-broker/e2e

demo: build ## the whole story in the terminal
	@./bin/broker demo
	@if ls $(BUILT)/vault-*/vault $(BUILT)/minio-*/minio $(BUILT)/spire-*/spire-agent >/dev/null 2>&1; then \
		echo; echo "And with real servers, which takes a moment:"; \
		cd e2e && STORY=1 $(GO) test -count=1 -run '^TestStory$$' . ; \
	else \
		echo; echo "Two more chapters need real servers: a database user made by Vault, and a session"; \
		echo "at S3. To see them, run make servers (about 15 minutes, once) and make demo again."; \
	fi

test: ## the tests that need nothing but Go
	$(GO) test -race ./...

SERVERS_LIMIT ?= 1h
servers: ## build the real servers that make e2e starts, once, into the user's cache
	cd e2e && $(GO) run ./cmd/servers -limit $(SERVERS_LIMIT)

e2e: servers ## the flows against real servers; screenshots of the pages go to bin/e2e
	cd e2e && $(GO) test -count=1 -timeout 40m -v -artifacts -outputdir "$$(mkdir -p ../bin/e2e && cd ../bin/e2e && pwd)" ./...

lint: ## gofmt, vet, staticcheck; govulncheck where its database can be reached
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "not gofmt-ed:"; echo "$$unformatted"; exit 1; }
	$(GO) mod verify
	$(GO) vet ./...
	cd e2e && $(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	cd e2e && $(GO) run $(STATICCHECK) ./...
	@.ci/vulncheck $(GO) $(GOVULNCHECK)

bench: ## speed: reported, never asserted
	$(GO) test -run '^$$' -bench . -benchmem ./policy ./attest ./issuers/token ./audit ./store ./broker
	$(GO) test -run '^$$' -bench . -benchtime 1x ./server
	cd e2e && $(GO) test -count=1 -run '^$$' -bench . -benchtime 1x -timeout 30m -v ./bench
	cd e2e && $(GO) test -count=1 -tags bench -run '^(TestTenThousandDue|TestOwnLatency)$$' -timeout 30m -v .

# Without a bound on minimizing, go test spends the whole time on that.
fuzz: ## every fuzz target for FUZZTIME
	@set -e; for package in $$($(GO) list ./...); do \
		for target in $$($(GO) test -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "$$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$package; \
		done; \
	done

# Read internal/mutate/main.go first. TESTS names further packages whose tests run.
PKG ?= ./policy
mutate: ## change the code of PKG, one mistake at a time, and list the mistakes that no test notices (N=60 draws 60)
	$(GO) run ./internal/mutate -n $(or $(N),0) -seed $(or $(SEED),1) -files '$(FILES)' -total $(or $(TIME),30m) $(PKG) $(TESTS)
