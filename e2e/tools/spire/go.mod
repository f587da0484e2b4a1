module accessbroker.internal/e2e/tools/spire

go 1.26

require github.com/spiffe/spire v1.13.0
